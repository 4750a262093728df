"""The command `evidence`."""

from __future__ import annotations

import argparse
from pathlib import Path

from stitchkit.errors import InputError
from stitchkit.parser import Command, add_device_flag

_SEEDS = (0, 1, 2)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", default="outputs/evidence", metavar="DIR", help="folder of the records")
    parser.add_argument("--size", default="cpu", metavar="NAME", help="size of networks and training: cpu or gpu")
    about = "folders with fonts, as stitchkit glyphs takes them; by default the system's, the user's and matplotlib's"
    parser.add_argument("--fonts", nargs="+", metavar="DIR", help=about)
    parser.add_argument("--rows", nargs="+", default=[], metavar="NAME", help="only these rows; by default all")
    about = f"one run of each row for each of them; by default {' '.join(map(str, _SEEDS))}"
    parser.add_argument("--seeds", nargs="+", type=int, default=[], metavar="N", help=about)
    parser.add_argument("--table", action="store_true", help="only print the table of what is measured so far")
    add_device_flag(parser)


def _evidence(flags: argparse.Namespace) -> None:
    from stitchkit.data.typefaces import default_folders
    from stitchkit.distributed import choose_device
    from stitchkit.errors import unknown
    from stitchkit.evidence.rows import ROWS
    from stitchkit.evidence.run import check_rows, read_study, render, run_study
    from stitchkit.evidence.size import SIZES
    from stitchkit.evidence.study import Study
    from stitchkit.evidence.table import table

    output, rows, seeds = Path(flags.output), flags.rows or [*ROWS], flags.seeds or [*_SEEDS]
    check_rows(rows)
    if flags.table and (flags.rows or flags.seeds):
        raise InputError("--table shows all that is measured; leave --rows and --seeds out")
    if flags.size not in SIZES:
        raise unknown("size", flags.size, SIZES)
    if bad := [seed for seed in seeds if seed < 0]:
        raise InputError(f"--seeds has {bad[0]}; give numbers from 0")
    if not flags.table:
        fonts = [Path(folder) for folder in flags.fonts] if flags.fonts else default_folders()
        size = SIZES[flags.size]
        study = Study(size, render(size, fonts), output / "weights", choose_device(flags.device))
        run_study(study, output, rows=rows, seeds=seeds)
    print(table(read_study(output)))


evidence = Command(
    _evidence,
    "compare stitching with distillation, slimming and cascades at equal training FLOPs, row by row",
    _add_flags,
    resumes="run the same command again: finished rows are not repeated",
)
