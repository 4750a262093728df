"""The rule of SN-Netv2: numbers, routes and layers."""

from itertools import combinations, pairwise
from typing import NamedTuple

import pytest

from stitchkit.errors import InputError
from stitchkit.routes import Joint, Stitch, StitchSpace, TwoWay
from stitchkit.settings.stitch_config import StitchConfig


class Anchor(NamedTuple):
    label: str
    depths: tuple[int, ...]
    stitched_stages: tuple[int, ...] = (0,)


def plain(*depths: int) -> list[Anchor]:
    return [Anchor(label, (depth,)) for label, depth in zip("sbl", depths, strict=False)]


def units(stitch: Stitch, cheap: Anchor, costly: Anchor) -> str:
    """A route as the anchor of each share of the depth, such as `sssbbs`."""
    parts = {cheap.label: 1, costly.label: costly.depths[0] // cheap.depths[0]}
    return "".join(part.anchor * ((part.stop - part.start) // parts[part.anchor]) for part in stitch.segments)


def test_law_3_the_published_space():
    anchors = plain(12, 24)
    space = StitchSpace.build(anchors, TwoWay())
    assert (len(space), space.ids_text) == (134, "0 to 134, without 13")
    pairs = list(combinations(range(1, 12), 2))
    expected = {0: "s[0:12]", 1: "b[0:24]"}
    expected |= {1 + k: f"s[0:{k}] > b[{2 * k}:24]" for k in range(1, 12)}
    expected |= {13 + k: f"b[0:{2 * k}] > s[{k}:12]" for k in range(1, 12)}
    expected |= {25 + n: f"b[0:{2 * j}] > s[{j}:{k}] > b[{2 * k}:24]" for n, (j, k) in enumerate(pairs)}
    expected |= {80 + n: f"s[0:{j}] > b[{2 * j}:{2 * k}] > s[{k}:12]" for n, (j, k) in enumerate(pairs)}
    assert {cfg_id: stitch.name for cfg_id, stitch in space.stitches.items()} == expected


def test_layers_have_the_published_places():
    layers = StitchSpace.build(plain(12, 24), TwoWay()).layers
    assert [layers[Joint("s", k, "b", 2 * k + 2)] for k in range(12)] == [(0, k) for k in range(12)]
    assert [layers[Joint("b", 2 * k + 1, "s", k + 1)] for k in range(11)] == [(1, k) for k in range(11)]
    assert len(layers) == 23


@pytest.mark.parametrize(("switches", "count"), [(1, 24), (2, 134), (3, 464), (11, 4096)])
@pytest.mark.parametrize("end", [12, 24])
def test_routes_are_all_strings_with_so_many_switches(switches, count, end):
    anchors = plain(12, end)
    space = StitchSpace.build(anchors, TwoWay(switches))
    found = {units(stitch, *anchors) for stitch in space}
    assert len(found) == len(space) == count
    assert all(len(text) == 12 and sum(a != b for a, b in pairwise(text)) <= switches for text in found)


def test_more_switches_than_cuts_add_no_route():
    """Also not a loop that lasts: a configuration may come from anyone."""
    anchors = plain(3, 6)
    assert StitchSpace.build(anchors, TwoWay(10**9)) == StitchSpace.build(anchors, TwoWay(2))


def test_anchors_of_several_stages_and_of_more_than_two():
    staged = [Anchor("s", (1, 2), (0, 1)), Anchor("b", (2, 4), (0, 1))]
    assert [stitch.name for stitch in StitchSpace.build(staged, TwoWay())][2:] == [
        *("s[0:1] > b[2:6]", "s[0:2] > b[4:6]"),
        *("b[0:2] > s[1:3]", "b[0:4] > s[2:3]"),
        *("b[0:2] > s[1:2] > b[4:6]", "s[0:1] > b[2:4] > s[2:3]"),
    ]
    three = StitchSpace.build(plain(3, 3, 3), TwoWay())
    assert len(three) == 3 + 2 * (4 + 2)
    assert [number for number in range(three.ids[-1]) if number not in three.ids] == [5, 12]
    every = StitchSpace.build(plain(3, 3, 3), TwoWay(nearest=False))
    assert len(set(every)) == len(every)
    assert "s[0:1] > b[1:2] > l[2:3]" in map(str, every)
    assert "l[0:1] > b[1:2] > s[2:3]" in map(str, every)


def test_a_number_that_is_left_out():
    space = StitchSpace.build(plain(12, 24), TwoWay())
    for cfg_id in (13, 135, -1):
        with pytest.raises(InputError, match=f"cfg_id {cfg_id} does not exist; this space has 0 to 134, without 13"):
            space[cfg_id]
    assert space.select("11-15") == [11, 12, 14, 15]
    with pytest.raises(InputError, match="cfg_id 13 does not exist"):
        space.select("13")
    assert space.find(space[14]) == 14


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"max_switches": 0}, "max_switches is 0; it must be at least 1"),
        ({"directions": "up"}, "directions is 'up', but routes of 2 switches go both ways"),
        ({"max_switches": 40}, "max_switches is 40, which gives more than 100,000 routes between s 40, b 40"),
    ],
)
def test_bad_rules_are_refused(rule, message):
    with pytest.raises(InputError, match=message):
        StitchSpace.build(plain(40, 40), TwoWay(**rule))


TWO = ["deit_tiny_patch16_224", "deit_small_patch16_224"]


@pytest.mark.parametrize(
    ("keys", "rule"),
    [
        ({"rule": "two_way"}, TwoWay()),
        ({"rule": "two_way", "max_switches": 3}, TwoWay(3)),
        ({"rule": "two_way", "max_switches": 1, "directions": "down"}, TwoWay(1, "down")),
    ],
)
def test_a_configuration_chooses_the_rule(keys, rule):
    config = StitchConfig.parse({"anchors": TWO, **keys})
    assert config.make_rule() == rule
    assert StitchConfig.parse(config.to_dict()) == config


@pytest.mark.parametrize(
    ("keys", "layer", "rank"),
    [
        ({}, "linear", None),
        ({"lora_r": 0}, "linear", 0),
        ({"lora_r": 16}, "lowrank", 16),
        ({"layer": "lowrank"}, "lowrank", 64),
        ({"layer": "mlp"}, "mlp", None),
    ],
)
def test_a_configuration_chooses_the_layer(keys, layer, rank):
    config = StitchConfig.parse({"anchors": TWO, **keys})
    assert (config.layer, config.lora_r) == (layer, rank)
    assert StitchConfig.parse(config.to_dict()).layer == layer


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"max_switches": 2}, "max_switches belongs to the rule 'two_way', but rule is 'window'"),
        ({"rule": "two_way", "stitch_stride": 2}, "belong to windows, not 'two_way'"),
        ({"rule": "two_way", "directions": "up"}, "go both ways"),
        ({"rule": "two_way", "max_switches": 0}, "max_switches"),
        ({"layer": "mlp", "lora_r": 4}, "lora_r is 4, but layer is 'mlp'"),
        ({"layer": "lowrank", "lora_r": 0}, "lora_r is 0, but layer is 'lowrank'"),
        ({"layer": "low"}, "did you mean 'lowrank'"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(keys, message):
    with pytest.raises(InputError, match=message):
        StitchConfig.parse({"anchors": TWO, **keys})
