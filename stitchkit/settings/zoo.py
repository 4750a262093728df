"""The zoo: configurations of families whose sizes were trained alike, listed without torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import takewhile

from stitchkit.display import aligned, counted, quantity
from stitchkit.errors import InputError, unknown
from stitchkit.settings.names import short_names
from stitchkit.settings.stitch_config import StitchConfig, ZooFacts

HEAD = ("name", "anchors", "stitches", "FLOPs", "classes", "image", "licence")


def facts_of(config: StitchConfig) -> ZooFacts:
    """What a configuration of the zoo says about itself."""
    assert config.zoo is not None, config.source
    return config.zoo


def zoo(*, max_flops: float | None = None, licence: str | None = None) -> dict[str, StitchConfig]:
    """The configurations of the zoo by name, from cheap to costly.

    Args:
        max_flops: Only those with a stitch of at most this many FLOPs.
        licence: Only those whose weights have this licence.
    """
    configs = {name: StitchConfig.load(path) for name, path in short_names().items()}
    every = {name: config for name, config in configs.items() if config.zoo is not None}
    facts = {name: facts_of(config) for name, config in every.items()}
    names = sorted(every, key=lambda name: (facts[name].flops, name))
    if licence is not None:
        names = [name for name in names if facts[name].licence == licence.lower()]
        if not names:
            raise unknown("licence", licence, sorted({fact.licence for fact in facts.values()}))
    if max_flops is not None:
        cheap = [name for name in names if facts[name].flops[0] <= max_flops]
        if not cheap:
            least = quantity(min(facts[name].flops[0] for name in names))
            raise InputError(f"no stitch takes at most {quantity(max_flops)} FLOPs; the cheapest takes {least}")
        names = cheap
    return {name: every[name] for name in names}


def row_of(name: str, config: StitchConfig) -> tuple[str, ...]:
    """The cells of a configuration under `HEAD`."""
    facts = facts_of(config)
    anchors = in_braces([anchor.label for anchor in config.anchors])
    low, high = map(quantity, facts.flops)
    return (name, anchors, str(facts.stitches), f"{low} to {high}", facts.classes, facts.image, facts.licence)


def in_braces(labels: Sequence[str]) -> str:
    """Labels as shells abbreviate them, by whole words: `deit3_{small,base}_patch16_224`."""
    words = [label.split("_") for label in labels]
    first = _alike(words)
    last = _alike([own[first:][::-1] for own in words])
    middle = ",".join("_".join(own[first : len(own) - last]) for own in words)
    begin, end = words[0][:first], words[0][len(words[0]) - last :]
    return "_".join([*begin, f"{{{middle}}}", *end]) if begin or end else middle.replace(",", ", ")


def _alike(words: Sequence[Sequence[str]]) -> int:
    """How many words all lists begin with."""
    return sum(1 for _ in takewhile(lambda column: len({*column}) == 1, zip(*words, strict=False)))


def run(flags: argparse.Namespace) -> None:
    """Run `stitchkit zoo`."""
    configs = zoo(max_flops=flags.max_flops, licence=flags.licence)
    print(aligned([HEAD, *(row_of(name, config) for name, config in configs.items())], left={0, 1, 6}))
    print(f"{counted(len(configs), 'configuration')}; stitchkit profile --stitch-config NAME shows the stitches of one")
