"""Stitchers: what each builds between which shapes, and that it fits."""

from itertools import product

import pytest
import torch

from stitchkit.assembly.parts.network import build_network
from stitchkit.assembly.parts.spec import NetworkSpec, PartSpec
from stitchkit.assembly.sweep.kinds.stitchers import (
    DEFAULT_STITCHERS,
    FINETUNE,
    STITCHERS,
    DoesNotApply,
)
from stitchkit.networks.layout import Layout
from tests.support import mostly_full


def shape(name, channels, side):
    return Layout.parse([name, [channels, *([side, side] if name in ("img", "bhwc") else [side**2])]])


SHAPES = {
    "img": shape("img", 16, 8),
    "img wide": shape("img", 64, 2),
    "bhwc": shape("bhwc", 24, 4),
    "bert": shape("bert", 32, 4),
    "token": shape("token", 32, 4),
}
ONLY_IMAGES = {name for name, stitcher in STITCHERS.items() if stitcher.resize == "stride"} | {
    "bottleneck_no_downsample",
    "downsample_then_3x3conv",
    "downsample_then_bottleneck",
}


def parts(name, source, destination, num_downsamples=0):
    return STITCHERS[name].parts(SHAPES[source], SHAPES[destination], num_downsamples)


def arguments(built):
    return [part.arguments for part in built]


def run(built, source, destination):
    """Send something of the source's shape through an adapter and bring it to the destination, as an assembly does."""
    stem = {"SimpleAdapter": {"num_conv": 1, "in_channels": 3, "out_channels": source.channels}}
    values = [stem, identity(source.declare()), *({part.name: part.arguments} for part in built), identity(destination)]
    specs = [PartSpec.parse(value, f"assembly[{number}]") for number, value in enumerate(values)]
    spec = NetworkSpec(tuple(specs), PartSpec.parse("ClassifierHead", "head"))
    size = (3, *source.grid)
    network = build_network(spec, num_classes=2, input_size=size, pretrained=False)
    inner = []
    network.parts[-1].register_forward_hook(lambda module, inputs, output: inner.append(list(output.shape[1:])))
    assert network(torch.randn(2, *size)).shape == (2, 2)
    return inner[0]


def identity(form):
    return {"Function": {"name": "clone", "in_format": form}}


def axes(layout):
    """The shape of one image's tensor."""
    if layout.name == "img":
        return [layout.channels, *layout.positions]
    if layout.name == "bhwc":
        return [*layout.positions, layout.channels]
    return [layout.positions[0] + (layout.name == "bert"), layout.channels]


@pytest.mark.parametrize("name", STITCHERS)
def test_every_stitcher_applies_as_the_table_says(name):
    for given, taken, count in product(SHAPES.values(), SHAPES.values(), [0, 1, 3]):
        image_like = given.is_map or taken.is_map
        if not image_like and name in ONLY_IMAGES:
            with pytest.raises(DoesNotApply, match="both sides are sequences"):
                STITCHERS[name].parts(given, taken, count)
            continue
        doubled = given.name == "bert" and taken.name != "bert"
        if not image_like and doubled and name in ("block_no_downsample", "downsample_then_block"):
            with pytest.raises(DoesNotApply, match="cannot change the number of channels, 64, to 32"):
                STITCHERS[name].parts(given, taken, count)
            continue
        values = arguments(STITCHERS[name].parts(given, taken, count))
        assert len(values) == max(count, 1)
        assert values[0].get("in_channels", values[0].get("embed_dim")) == given.channels * (2 if doubled else 1)
        assert values[-1].get("out_channels", values[-1].get("embed_dim")) == taken.channels


SIDES = [
    *(("img", "img wide"), ("img wide", "img"), ("img", "bert")),
    *(("bert", "bhwc"), ("bert", "bert"), ("bert", "token")),
]
# Which kind comes in decides what is built; of those that give an image, two are enough.
BUILT = [(name, *sides) for sides in SIDES[1:5] for name in STITCHERS]
# Each with one pair of sides, and each pair with two or three of them.
QUICK = [(name, *SIDES[number % len(SIDES)]) for number, name in enumerate(STITCHERS)]


@pytest.mark.parametrize(("name", "source", "destination"), mostly_full([*dict.fromkeys(QUICK + BUILT)], quick=QUICK))
def test_what_a_stitcher_builds_runs_and_gives_the_destinations_shape(name, source, destination):
    given, taken = SHAPES[source], SHAPES[destination]
    try:
        built = STITCHERS[name].parts(given, taken, 2)
    except DoesNotApply:
        return
    if STITCHERS[name].resize == "never":
        expected = shape(taken.name, taken.channels, given.grid[0])
        assert run(built, given, taken.name) == axes(expected)
    else:
        assert run(built, given, taken.declare()) == axes(taken)


def test_channels_double_or_halve_a_unit_and_stop_at_the_target():
    wide, narrow = shape("img", 96, 56), shape("img", 40, 7)
    values = arguments(STITCHERS["downsample_then_linear"].parts(wide, narrow, 3))
    assert [(value["in_channels"], value["out_channels"]) for value in values] == [(96, 48), (48, 40), (40, 40)]
    values = arguments(STITCHERS["downsample_then_linear"].parts(narrow, wide, 3))
    assert [(value["in_channels"], value["out_channels"]) for value in values] == [(40, 80), (80, 96), (96, 96)]


@pytest.mark.parametrize(
    ("name", "sides", "strides"),
    [
        ("linear_no_downsample", [56, 56, 56], None),
        ("downsample_then_linear", [28, 14, 7], None),
        ("linear_post_downsample", [56, 28, 14], None),
        ("conv3x3_with_downsample", [56, 28, 14], [2, 2, 2]),
    ],
)
def test_where_the_map_is_resized(name, sides, strides):
    values = arguments(STITCHERS[name].parts(shape("img", 64, 56), shape("img", 512, 7), 3))
    assert [value["in_format"][1][1:] for value in values] == [[side, side] for side in sides]
    assert strides is None or [value["stride"] for value in values] == strides
    assert strides is not None or not any("stride" in value for value in values)


def test_one_unit_can_take_the_whole_ratio_as_its_stride():
    [value] = arguments(STITCHERS["bottleneck_with_downsample"].parts(shape("img", 64, 56), shape("bert", 384, 14), 0))
    assert value["stride"] == 4
    [value] = arguments(STITCHERS["conv3x3_with_downsample"].parts(shape("bert", 384, 14), shape("img", 64, 56), 0))
    assert (value["stride"], value["in_format"]) == (1, ["img", [768, 56, 56]])


def test_a_sequence_becomes_a_map_of_its_own_side():
    """The publication takes 196 tokens for a map of 196 x 196."""
    [value] = arguments(STITCHERS["linear_no_downsample"].parts(shape("bert", 384, 14), shape("img", 512, 28), 0))
    assert value["in_format"] == ["img", [768, 14, 14]]


@pytest.mark.parametrize(
    ("name", "kind", "values"),
    [
        ("linear_no_downsample", "SimpleAdapter", {"num_conv": 1, "kernel_size": 1, "nonlinearity": False}),
        ("linear_relu_no_downsample", "SimpleAdapter", {"num_conv": 1, "kernel_size": 1, "nonlinearity": True}),
        ("downsample_then_3x3conv", "SimpleAdapter", {"num_conv": 1, "kernel_size": 3, "nonlinearity": True}),
        ("downsample_then_bottleneck", "ResNetBottleneck", {}),
        ("downsample_then_block", "ResNetBasicBlock", {}),
        ("block_with_downsample", "ResNetBasicBlock", {"stride": 4}),
    ],
)
def test_what_a_unit_is_between_images(name, kind, values):
    [part] = parts(name, "img", "img wide")
    assert part.name == kind
    assert values.items() <= part.arguments.items()


def test_what_a_unit_is_between_sequences():
    [part] = parts("downsample_then_linear", "bert", "bert")
    assert part.arguments["num_fc"] == 1
    assert part.arguments["in_format"] == ["bert", [32, 16]]
    [part] = STITCHERS["block_no_downsample"].parts(shape("bert", 384, 14), shape("bert", 384, 14), 0)
    assert part.name == "VisionTransformerBlock"
    assert part.arguments | {"in_format": None} == {
        "embed_dim": 384, "num_heads": 6, "in_format": None
    }  # fmt: skip
    with pytest.raises(DoesNotApply, match="cannot change the number of channels, 32, to 48"):
        STITCHERS["block_no_downsample"].parts(SHAPES["bert"], shape("bert", 48, 4), 0)


def test_the_ten_of_the_published_sweeps():
    assert len(DEFAULT_STITCHERS) == 10
    assert {*DEFAULT_STITCHERS} - {*STITCHERS} == {FINETUNE}
