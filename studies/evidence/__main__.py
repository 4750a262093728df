"""The study as a command: `python -m studies.evidence`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from stitchkit import cli
from stitchkit.errors import InputError
from stitchkit.parser import Command, add_shared, parser_of

_SEEDS = (0, 1, 2)
_SEED_LIMIT = 2**31
_SIZE = "cpu"
_RUNS = ("rows", "seeds", "size", "fonts")
"""What only a run takes."""


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", default="outputs/evidence", metavar="DIR", help="folder of the records")
    about = f"size of networks and training, cpu or gpu; by default {_SIZE}"
    parser.add_argument("--size", metavar="NAME", help=about)
    about = "folders with fonts, at any depth; by default the system's, the user's and matplotlib's"
    parser.add_argument("--fonts", nargs="+", metavar="DIR", help=about)
    parser.add_argument("--rows", nargs="+", default=[], metavar="NAME", help="only these rows; by default all")
    about = f"one run of each row for each of them; by default {' '.join(map(str, _SEEDS))}"
    parser.add_argument("--seeds", nargs="+", type=int, default=[], metavar="N", help=about)
    parser.add_argument("--table", action="store_true", help="only print the table of what is measured so far")
    add_shared(parser, "--device")


def _evidence(flags: argparse.Namespace) -> None:
    from stitchkit.distributed import choose_device
    from stitchkit.errors import unknown
    from studies.evidence.rows import ROWS
    from studies.evidence.run import check_rows, read_study, render, run_study
    from studies.evidence.size import SIZES
    from studies.evidence.study import Study
    from studies.evidence.table import table
    from studies.typefaces.fonts import default_folders

    output, named = Path(flags.output), [name for word in flags.rows for name in word.split(",")]
    rows, seeds, size = named or [*ROWS], flags.seeds or _SEEDS, flags.size or _SIZE
    check_rows(rows)
    if flags.table and (name := next((name for name in _RUNS if getattr(flags, name)), None)):
        raise InputError(f"--table shows all that is measured in -o; leave --{name} out")
    if size not in SIZES:
        raise unknown("size", size, SIZES)
    if bad := [seed for seed in seeds if not 0 <= seed < _SEED_LIMIT]:
        raise InputError(f"--seeds has {bad[0]}; give numbers from 0, below {_SEED_LIMIT}")
    if not flags.table:
        output.mkdir(parents=True, exist_ok=True)  # before hours of work that could not be written
        fonts = [Path(folder) for folder in flags.fonts] if flags.fonts else default_folders()
        splits, typefaces = render(SIZES[size], fonts)
        study = Study(SIZES[size], splits, output / "weights", choose_device(flags.device), typefaces)
        run_study(study, output, rows=[*dict.fromkeys(rows)], seeds=[*dict.fromkeys(seeds)])
    print(table(read_study(output)))


_COMMAND = Command(
    _evidence,
    "compare stitching with distillation, slimming and cascades at equal training FLOPs, row by row",
    _add_flags,
    resumes="run the same command again: finished rows are not repeated",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; arguments and exit status are as in `stitchkit.cli.main`."""
    return cli.main(arguments, parser_of("python -m studies.evidence", _COMMAND))


if __name__ == "__main__":
    raise SystemExit(main())
