"""The commands about data sets: datasets, demo-data."""

from __future__ import annotations

import argparse
from pathlib import Path

from stitchkit.parser import DATA_FLAGS, Command, add_commands, at_least


def _list(_: argparse.Namespace) -> None:
    from stitchkit.data.prepare import COLLECTIONS, read_collection
    from stitchkit.data.source import SOURCES
    from stitchkit.display import aligned

    lines = [(name, "by hand" if source.by_hand else "download", source.needs) for name, source in SOURCES.items()]
    print(aligned([*sorted(lines), ("digits", "built in", "")], left={0, 1, 2}))
    for collection in COLLECTIONS:
        print(f"collection {collection}: {', '.join(read_collection(collection))}")


def _add_prepare_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("collection", help="merging (8 tasks), geospatial (6), or a YAML file of your own")
    parser.add_argument(*DATA_FLAGS, "--root", dest="folder", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these data sets of the collection")


def _prepare(flags: argparse.Namespace) -> None:
    from stitchkit.data.prepare import prepare

    prepare(flags.collection, Path(flags.folder), flags.only)


def _add_datasets_commands(parser: argparse.ArgumentParser) -> None:
    named = Command(_list, "print the data sets known by name and the contents of their folders")
    prepared = Command(_prepare, "download a collection and lay it out as image folders", _add_prepare_flags)
    add_commands(parser, {"list": named, "prepare": prepared})


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="folder to write, such as data/digits")


def _digits(flags: argparse.Namespace) -> None:
    from stitchkit.data.demo import write_digits

    print(write_digits(Path(flags.folder)))


def _demo_glyphs(flags: argparse.Namespace) -> None:
    from stitchkit.data.demo import write_demo_glyphs

    print(write_demo_glyphs(Path(flags.folder)))


def _add_scenes_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="folder to write, e.g. data/scenes")
    parser.add_argument("--img-size", type=int, default=64, metavar="N", help="side of the images, 32 to 256")
    for split, what, count in (("train", "training", 800), ("validation", "validation", 200), ("test", "test", 200)):
        parser.add_argument(f"--{split}", type=at_least(1), default=count, metavar="N", help=f"number of {what} scenes")
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="random seed")


def _scenes(flags: argparse.Namespace) -> None:
    from stitchkit.data.scenes import write_scenes

    counts = {"train": flags.train, "validation": flags.validation, "test": flags.test}
    print(write_scenes(Path(flags.folder), counts, side=flags.img_size, seed=flags.seed))


def _add_demo_data_kinds(parser: argparse.ArgumentParser) -> None:
    kinds = {
        "digits": Command(_digits, "scans of handwritten digits", _add_folder),
        "glyphs": Command(_demo_glyphs, "rendered letters and digits, with and without labels", _add_folder),
        "scenes": Command(_scenes, "rendered scenes with the class and the depth of every pixel", _add_scenes_flags),
    }
    add_commands(parser, kinds, metavar="KIND")


datasets = Command(_list, "list the data sets known by name, or prepare a collection", _add_datasets_commands)
demo_data = Command(_digits, "write the images of a demo as a folder", _add_demo_data_kinds)
