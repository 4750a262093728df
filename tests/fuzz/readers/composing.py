"""Readers of the commands that compose networks."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
from torch import nn

import stitchnet
from stitchkit.parser import Parser
from stitchkit.settings.schema import parse
from stitchnet.classifier import OutputMap
from stitchnet.compose import JudgedNetwork, networks_of
from stitchnet.journal import Journal
from stitchnet.search import Ranking
from stitchnet.settings import ComposeSettings, add_flags, flag_of
from tests.composing import convnet
from tests.fuzz.inputs import Seed
from tests.fuzz.readers.base import JSON, LINES, SETTINGS, Reader, arguments, shipped


@cache
def _nets() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"a": convnet(4), "b": convnet(6)}


def _configuration() -> Seed:
    [seed] = shipped("compose/*.json", JSON)
    for anchor in seed.content["anchors"]:
        del anchor["checkpoint"]  # the file does not exist here
    return seed


def _composed(folder: Path) -> list[Seed]:
    _, net = next(iter(stitchnet.generate(torch.randn(8, 3, 32, 32), 0.0, nets=_nets())))
    net.save(folder)
    return [Seed(json.loads((folder / "net.json").read_text()), JSON)]


def _read_journal(path: Path) -> object:
    journal = Journal(path)
    journal.agree_on_settings({"--top": 4}, growing="--top")
    return journal.find(JudgedNetwork, "row", "a"), journal.find(Ranking, "ranking", "a[0:1]")


def _parse_flags(path: Path) -> object:
    parser = Parser()
    add_flags(parser, ComposeSettings)
    return parse(ComposeSettings, vars(parser.parse_args(arguments(path))), name=flag_of)


_MAP = {"cat": ["tabby", "Persian cat", "n02123597", 285], "dog": "151-250"}
_JOURNAL = [
    [["settings"], {"--top": 3}],
    [["row", "a"], {"stitch": "a", "flops": 1, "params": 1, "score": 1.0, "acc1": 50.0}],
    [["ranking", "a[0:1]"], {"output": "x", "scores": {"a": 1.0}, "skipped": {}}],
]

READERS = {
    "output map": Reader("fuzzed.yml", [Seed(_MAP, SETTINGS)], lambda path: OutputMap.read(path, "max")),
    "networks to compose": Reader(
        "fuzzed.json",
        [_configuration()],
        lambda path: networks_of(ComposeSettings(data="x", nets=str(path))),
    ),
    "composed network": Reader("net.json", _composed, lambda path: stitchnet.load(path.parent, _nets())),
    "journal": Reader("compose.jsonl", [Seed(_JOURNAL, LINES)], _read_journal),
    "flags of compose": Reader(
        "arguments", [Seed(b"--data\nx\n--max-macs\n3G\n-k\n2\n--threshold\n0.3\n--top\n3")], _parse_flags
    ),
}
