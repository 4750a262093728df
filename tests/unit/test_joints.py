"""Stitching layers between different layouts, grids and prefix tokens: what they compute, cost and refuse."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

import stitchkit
from stitchkit.errors import InputError
from stitchkit.measure.profile import Profiler, flops_by_operator, measure
from stitchkit.model.layer import StitchLayer, layouts_at
from stitchkit.model.solve import fit_stitching_layers
from stitchkit.networks.layout import Layout
from stitchkit.networks.slices import Boundary
from stitchkit.routes import Joint
from tests.support import family_snnet, pico_anchor, pico_config, pico_images

KINDS = {
    "maps": Layout("NCHW", 6, (4, 4)),
    "maps, channels last": Layout("NHWC", 5, (4, 4)),
    "tokens": Layout("NLC", 4, (16,)),
    "tokens after a class token": Layout("NLC", 6, (16,), 1),
    "larger maps": Layout("NCHW", 3, (8, 8)),
    "wide maps": Layout("NHWC", 4, (6, 3)),
    "smaller tokens after five": Layout("NLC", 5, (9,), 5),
}
BETWEEN_KINDS = [(source, target) for source in KINDS for target in KINDS]
OTHER_GRIDS = ["vits of other grids and tokens, both ways", "resnet and vit, both ways"]


def tensor(layout: Layout, count: int = 2) -> torch.Tensor:
    shape = [*layout.positions, layout.width]
    shape[0] += layout.num_prefix_tokens
    x = torch.randn(count, *shape, generator=torch.Generator().manual_seed(5))
    return x.movedim(-1, 1).contiguous() if layout.kind == "NCHW" else x


@pytest.mark.parametrize(("source", "target"), BETWEEN_KINDS)
@torch.no_grad()
def test_every_layout_becomes_every_other(source, target):
    source, target = KINDS[source], KINDS[target]
    layer = StitchLayer(source, target)
    x = tensor(source)
    y = layer(x)
    assert target.sized(y) == target
    weight = layer.transform.weight.flatten(1)
    # The same map, written out at every position and before anything is resized.
    features, prefix = source.split(x)
    mapped = F.linear(features.flatten(2).mT, weight, layer.transform.bias).mT
    if source.grid != target.grid:
        mapped = F.interpolate(mapped.unflatten(2, source.grid), target.grid, mode="bilinear").flatten(2)
    got, tokens = target.split(y)
    torch.testing.assert_close(got.flatten(2), mapped)
    if tokens is not None:
        kept = min(source.num_prefix_tokens, target.num_prefix_tokens)
        if prefix is not None:
            torch.testing.assert_close(
                tokens[..., :kept], F.linear(prefix[..., :kept].mT, weight, layer.transform.bias).mT
            )
        mean = F.linear(features.flatten(2).mean(-1), weight, layer.transform.bias)
        for new in tokens[..., kept:].unbind(-1):
            torch.testing.assert_close(new, mean, atol=0.2 if source.grid != target.grid else 1e-5, rtol=0)


def test_the_map_runs_on_the_smaller_grid():
    small, large = Layout("NLC", 6, (16,), 1), Layout("NLC", 4, (64,), 1)
    assert flops_by_operator(StitchLayer(small, large), tensor(small, 1)) == {
        "linear": 17 * 6 * 4,
        "upsample_bilinear2d": 4 * 64 * 4,
    }
    assert flops_by_operator(StitchLayer(large, small), tensor(large, 1)) == {
        "linear": 17 * 6 * 4,
        "upsample_bilinear2d": 4 * 16 * 4,
    }
    assert flops_by_operator(StitchLayer(small, small), tensor(small, 1)) == {"linear": 17 * 6 * 6}


def test_on_larger_images_the_grids_keep_their_ratio():
    layer = StitchLayer(Layout("NCHW", 3, (8, 8)), Layout("NHWC", 4, (14, 14)))
    assert layer(torch.zeros(1, 3, 16, 24)).shape == (1, 28, 42, 4)


def test_joints_of_equal_widths_cost_what_their_grids_cost():
    model = family_snnet(OTHER_GRIDS[0])
    profiler, image = Profiler(model), pico_images(1, size=32)
    layers = {
        label: model.layer(joint) for label in ("gap", "cls") for joint in model.space.layers if joint.end == label
    }
    assert layers["gap"].transform.weight.shape == layers["cls"].transform.weight.shape
    for stitch in [*model.space][::3]:
        assert profiler.cost(stitch) == measure(model.extract(stitch), image)


@pytest.mark.parametrize("family", OTHER_GRIDS)
@torch.no_grad()
def test_the_fit_finds_the_best_map_between_grids(family):
    """What it says is left over is left over, and no other map near it leaves less."""
    model, images = family_snnet(family), pico_images(24, size=family_snnet(family).input_size[-1])
    residuals = fit_stitching_layers(model, [images[:9], images[9:]], method="exact")

    def left_over(joint: Joint) -> float:
        x = model.views[joint.front].features(images)[joint.front_block + 1]
        y = model.views[joint.end].features(images)[joint.end_block]
        return float(((model.layer(joint)(x) - y).square().sum() / y.square().sum()).double())

    for joint, residual in residuals.items():
        assert left_over(joint) == pytest.approx(residual, rel=1e-3)
        for parameter in model.layer(joint).parameters():
            kept = parameter.clone()
            parameter.add_(0.05 * torch.randn(kept.shape, generator=torch.Generator().manual_seed(7)))
            assert left_over(joint) > residual
            parameter.copy_(kept)


def test_tokens_of_another_grid_join_in_published_windows_too():
    config = pico_config()
    config["anchors"][1]["kwargs"] |= {"patch_size": 4, "reg_tokens": 4}
    model = stitchkit.create_snnet(config).eval()
    assert model(pico_images(), 3).shape == (2, 4)


def _net(label: str, *layouts: Layout | None, size: tuple[int, int, int] = (3, 32, 32)) -> SimpleNamespace:
    places = [Boundary((f"in{number}",), (f"out{number}",), found=layout) for number, layout in enumerate(layouts)]
    return SimpleNamespace(label=label, boundaries=places, input_size=size)


TOKENS = Layout("NLC", 4, (16,), 1)


@pytest.mark.parametrize(
    ("front", "end", "message"),
    [
        (
            _net("a", TOKENS, None, TOKENS),
            _net("b", TOKENS, TOKENS, TOKENS),
            r"a\[0\] > b\[1\] \('out1' of a to 'in1' of b\) cannot be joined: the layout .* is unknown; "
            r"the nearest that can be joined is a\[1\] > b\[1\]",
        ),
        (
            _net("a", TOKENS, Layout("NLC", 4, (15,)), Layout("NLC", 4, (15,))),
            _net("b", TOKENS, TOKENS, TOKENS),
            "15 tokens, which is not a perfect square.*; no block of these anchors can be joined",
        ),
        (
            _net("a", TOKENS, Layout("vector", 4, ()), TOKENS),
            _net("b", TOKENS, TOKENS, TOKENS),
            r"vector \[4\] has no positions, but .* does; the nearest that can be joined is a\[1\] > b\[1\]",
        ),
        (
            _net("a", TOKENS, TOKENS, Layout("NLC", 4, (64,)), size=(3, 16, 64)),
            _net("b", *[Layout("NCHW", 4, (2, 8))] * 3, size=(3, 16, 64)),
            "rows and columns of tokens are known only for square images, not 16 x 64; no block",
        ),
    ],
)
def test_what_cannot_be_joined_names_the_boundaries_and_the_nearest(front, end, message):
    with pytest.raises(InputError, match=message):
        layouts_at(Joint("a", 0, "b", 1), front, end)


def test_joints_of_different_layouts_do_not_share_a_layer(monkeypatch):
    """Networks may change width within a stage; a window would use one layer for both."""
    config = {"anchors": [pico_anchor("a", 8), pico_anchor("b", 16)]}
    anchors = stitchkit.create_snnet(config).views.values()
    changed = next(iter(anchors))
    places = list(changed.boundaries)
    places[2] = Boundary(places[2].before, places[2].after, found=Layout("NLC", 12, (4,), 1))
    monkeypatch.setattr(type(changed), "boundaries", places)
    with pytest.raises(InputError, match=r'shares its stitching layer with joints of .* set "rule": "proportional"'):
        stitchkit.create_snnet(config)
