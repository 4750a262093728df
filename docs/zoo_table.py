"""Measure the configurations of the zoo, and write the tables of docs/zoo.md.

    PYTHONPATH=. python docs/zoo_table.py [NAME...]

Networks are built on the meta device, whole and without their weights. Stitches, FLOPs, size of images, classes,
licence and, of networks without a classifier, tokens go into the key `zoo` of each configuration, or of those named,
and from there into the page.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from itertools import starmap
from pathlib import Path

import timm
import torch

from stitchkit.display import quantity
from stitchkit.measure.profile import Profiler
from stitchkit.model.create import create_snnet
from stitchkit.model.snnet import SNNet
from stitchkit.settings.names import CONFIGS, short_names
from stitchkit.settings.stitch_config import StitchConfig, ZooFacts
from stitchkit.settings.zoo import facts_of, zoo

PAGE = Path(__file__).resolve().parent / "zoo.md"
HEAD = (
    "| configuration | anchors | stitches | FLOPs | classes | image | licence | from |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
)
_BACKBONES = """
## Backbones without labels
[A page](backbones.md) leads through such a run. The recipes in the files are for training everything; by default,
a run without labels trains only stitching layers, which take a higher rate and fewer epochs: add
`--lr 1e-3 --epochs 5 --warmup-epochs 1`. That is not tuned for any of these.

| configuration | image | tokens | licence | command |
| --- | --- | --- | --- | --- |
"""
_RECIPE = '  "recipe": {'
_FACTS = re.compile(r'  "zoo": \{.*?\n  \},\n', re.DOTALL)
_LIST = re.compile(r"\[\s+(\d[\d,\s]*?)\s+\]")


def measure(config: StitchConfig) -> ZooFacts:
    """The facts of a configuration."""
    with torch.device("meta"):
        model = create_snnet(config, checkpoints=False)
    profiler = Profiler(model)
    flops = [profiler.cost(cfg_id).flops for cfg_id in model.space.ids]
    return ZooFacts(
        stitches=len(flops),
        flops=(min(flops), max(flops)),
        input_size=model.input_size,
        num_classes=model.num_classes,
        licence=licence(config),
        tokens=() if model.num_classes else tokens(model),
    )


def tokens(model: SNNet) -> tuple[tuple[int, int, int], ...]:
    """Prefix tokens, rows and columns of the tensor that enters the head of each anchor."""
    layouts = (anchor.boundaries[-1].layout for anchor in model.views.values())
    return tuple((layout.num_prefix_tokens, *layout.grid) for layout in layouts)


def licence(config: StitchConfig) -> str:
    """The licence of all weights, as timm states it."""
    (found,) = {timm.models.get_pretrained_cfg(anchor.name).license for anchor in config.anchors}
    return str(found)


def write_facts(path: Path) -> None:
    """Measure a configuration and write what was found into its file, before the recipe."""
    found = {key: value for key, value in asdict(measure(StitchConfig.load(path))).items() if value != ()}
    facts = json.dumps({"zoo": found}, indent=2)[2:-2]
    facts = _LIST.sub(lambda found: f"[{' '.join(found[1].split())}]", facts)  # numbers of a list on one line
    path.write_text(_FACTS.sub("", path.read_text()).replace(_RECIPE, f"{facts},\n{_RECIPE}", 1))


def table() -> str:
    """The tables of the page, from the files."""
    every = sorted(zoo().items())
    headless = [(name, facts_of(config)) for name, config in every if not facts_of(config).num_classes]
    return HEAD + "".join(starmap(_row, every)) + _BACKBONES + "".join(starmap(_backbone, headless))


def _row(name: str, config: StitchConfig) -> str:
    facts, file = facts_of(config), short_names()[name].relative_to(CONFIGS)
    low, high = map(quantity, facts.flops)
    cells = (
        f"[`{name}`](../configs/{file})",
        "<br>".join(f"`{anchor.name}`" for anchor in config.anchors),
        str(facts.stitches),
        f"{low} to {high}",
        facts.classes,
        facts.image,
        facts.licence,
        config.source,
    )
    return f"| {' | '.join(cells)} |\n"


def _backbone(name: str, facts: ZooFacts) -> str:
    command = f"`stitchkit train photos --stitch-config {name} --loss features`"
    return f"| `{name}` | {facts.image} | {facts.positions} | {facts.licence} | {command} |\n"


def main(names: list[str]) -> None:
    """Measure all configurations, or those named, and write the tables."""
    for name in names or sorted(zoo()):
        write_facts(short_names()[name])
        print(name, flush=True)
    PAGE.write_text(PAGE.read_text().partition(HEAD)[0] + table())


if __name__ == "__main__":
    main(sys.argv[1:])
