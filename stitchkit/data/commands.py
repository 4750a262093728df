"""The commands about data sets: datasets, demo-data."""

from __future__ import annotations

import argparse
from pathlib import Path

from stitchkit.parser import DATA_FLAGS, Command, add_commands, at_least

_LIST, _DIGITS = "stitchkit.data.prepare:list_datasets", "stitchkit.data.demo:write_digits"


def _add_prepare_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("collection", help="merging (8 tasks), geospatial (6), or a YAML file of your own")
    parser.add_argument(*DATA_FLAGS, "--root", dest="folder", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these data sets of the collection")


def _collection(flags: argparse.Namespace) -> tuple[str, Path, list[str]]:
    return flags.collection, Path(flags.folder), flags.only


def _add_datasets_commands(parser: argparse.ArgumentParser) -> None:
    named = Command(_LIST, "print the data sets known by name and the contents of their folders")
    about = "download a collection and lay it out as image folders"
    prepared = Command("stitchkit.data.prepare:prepare", about, _add_prepare_flags, check=_collection)
    add_commands(parser, {"list": named, "prepare": prepared})


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="folder to write, such as data/digits")


def _folder(flags: argparse.Namespace) -> tuple[Path]:
    return (Path(flags.folder),)


def _add_scenes_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="folder to write, e.g. data/scenes")
    parser.add_argument("--img-size", type=int, default=64, metavar="N", help="side of the images, 32 to 256")
    for split, what, count in (("train", "training", 800), ("validation", "validation", 200), ("test", "test", 200)):
        parser.add_argument(f"--{split}", type=at_least(1), default=count, metavar="N", help=f"number of {what} scenes")
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="random seed")


def _scenes(flags: argparse.Namespace) -> tuple[Path, dict[str, int], int, int]:
    counts = {"train": flags.train, "validation": flags.validation, "test": flags.test}
    return Path(flags.folder), counts, flags.img_size, flags.seed


def _add_demo_data_kinds(parser: argparse.ArgumentParser) -> None:
    digits = Command(_DIGITS, "scans of handwritten digits", _add_folder, check=_folder)
    about = "rendered letters and digits, with and without labels"
    glyphs = Command("stitchkit.data.demo:write_demo_glyphs", about, _add_folder, check=_folder)
    about = "rendered scenes with the class and the depth of every pixel"
    scenes = Command("stitchkit.data.scenes:write_scenes", about, _add_scenes_flags, check=_scenes)
    add_commands(parser, {"digits": digits, "glyphs": glyphs, "scenes": scenes}, metavar="KIND")


datasets = Command(_LIST, "list the data sets known by name, or prepare a collection", _add_datasets_commands)
demo_data = Command(_DIGITS, "write the images of a demo as a folder", _add_demo_data_kinds)
