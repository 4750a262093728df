"""The renderer as a command: `python -m studies.typefaces`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from stitchkit import cli
from stitchkit.parser import Command, at_least, parser_of
from studies.typefaces.folder import write_glyphs
from studies.typefaces.fonts import default_folders


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="folder to write, e.g. data/typefaces")
    about = "folders with fonts, at any depth; by default the system's, the user's and matplotlib's"
    parser.add_argument("--fonts", nargs="+", metavar="DIR", help=about)
    parser.add_argument("--img-size", type=int, default=32, metavar="N", help="side of the images, 32 to 64")
    for split, count in (("train", 400), ("validation", 100), ("test", 100)):
        about = f"{split} images of each class"
        parser.add_argument(f"--{split}", type=at_least(1), default=count, metavar="N", help=about)
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="of the split and of the images")


def _run(flags: argparse.Namespace) -> None:
    fonts = [Path(folder) for folder in flags.fonts or ()] or default_folders()
    per_class = {"train": flags.train, "validation": flags.validation, "test": flags.test}
    print(write_glyphs(Path(flags.folder), fonts, per_class=per_class, side=flags.img_size, seed=flags.seed))


_COMMAND = Command(_run, "write rendered letters and digits, split by typeface", _add_flags)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the folder; arguments and exit status are as in `stitchkit.cli.main`."""
    return cli.main(arguments, parser_of("python -m studies.typefaces", _COMMAND))


if __name__ == "__main__":
    raise SystemExit(main())
