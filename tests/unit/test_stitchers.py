"""Stitchers: what each builds between which shapes, and that it fits."""

import pytest
import torch

from assembly.network import build_network
from assembly.spec import NetworkSpec, PartSpec
from assembly.stitchers import DEFAULT_STITCHERS, FINETUNE, STITCHERS, DoesNotApply, Shape, check_stitcher
from stitchkit.errors import InputError

SHAPES = {
    "img": Shape("img", 16, 8),
    "img wide": Shape("img", 64, 2),
    "bhwc": Shape("bhwc", 24, 4),
    "bert": Shape("bert", 32, 4),
    "token": Shape("token", 32, 4),
}
ONLY_IMAGES = {name for name, stitcher in STITCHERS.items() if stitcher.resize == "stride"} | {
    "bottleneck_no_downsample",
    "downsample_then_3x3conv",
    "downsample_then_bottleneck",
}


def parts(name, source, destination, num_downsamples=0):
    return STITCHERS[name].parts(SHAPES[source], SHAPES[destination], num_downsamples)


def arguments(built):
    return [next(iter(part.values())) for part in built]


def chain(built, source):
    """The adapter as a network, with what comes declared by a function that does nothing."""
    before = {"Function": {"name": "relu", "in_format": source.declare(), "out_format": source.format}}
    specs = [PartSpec.parse(part, f"assembly[{number}]") for number, part in enumerate(built)]
    return PartSpec.parse(before, "before"), specs


def run(built, source, destination):
    """Send a tensor of the source's shape through an adapter and bring it to the destination, as an assembly does."""
    size = (3, source.side, source.side)
    stem = {"SimpleAdapter": {"num_conv": 1, "in_channels": 3, "out_channels": source.channels, "kernel_size": 1}}
    if source.format == "bert":
        # Brought into the format of a ViT here: the class slot is added, the channels stay.
        stem["SimpleAdapter"]["out_format"] = source.declare()
    else:
        stem["SimpleAdapter"]["out_format"] = source.format
    pool = {"ClassifierHead": {"num_classes": 2, "in_channels": destination.channels}}
    values = [stem, *built]
    specs = tuple(PartSpec.parse(value, f"assembly[{number}]") for number, value in enumerate(values))
    end = {"Function": {"name": "relu", "in_format": [destination.format, destination.declare()[1]]}}
    network = build_network(
        NetworkSpec((*specs, PartSpec.parse(end, "end")), PartSpec.parse(pool, "head")),
        num_classes=2,
        input_size=size,
        pretrained=False,
    )
    return network(torch.randn(2, *size))


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("destination", SHAPES)
@pytest.mark.parametrize("source", SHAPES)
@pytest.mark.parametrize("name", STITCHERS)
def test_every_stitcher_fits_or_says_why_not(name, source, destination, count):
    given, taken = SHAPES[source], SHAPES[destination]
    image_like = given.is_image_like or taken.is_image_like
    try:
        built = parts(name, source, destination, count)
    except DoesNotApply as reason:
        assert not image_like
        assert name in ONLY_IMAGES or "block keeps its channels" in str(reason)
        return
    assert image_like or name not in ONLY_IMAGES
    assert len(built) == max(count, 1)
    first, last = arguments(built)[0], arguments(built)[-1]
    assert last.get("out_channels", last.get("embed_dim")) == taken.channels
    doubled = given.format == "bert" and taken.format != "bert"
    assert first.get("in_channels", first.get("embed_dim")) == given.channels * (2 if doubled else 1)
