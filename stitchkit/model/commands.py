"""The `convert` command, which rewrites released weights."""

from __future__ import annotations

import argparse

from stitchkit.parser import Command, add_network_flags


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="IN", help="a released file, or one of ours")
    parser.add_argument("output", metavar="OUT.safetensors", help="file to write")
    add_network_flags(parser, required=True)


convert = Command(
    "stitchkit.model.convert:convert", "rewrite a released checkpoint under our names, as safetensors", _add_flags
)
