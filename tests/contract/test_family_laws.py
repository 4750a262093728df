"""Laws 1, 2 and 6 for every family, by one body of tests."""

import copy
import pickle
from functools import partial
from typing import NamedTuple

import pytest
import torch

import stitchkit
from stitchkit.measure.profile import FlopCountAnalysis, Profiler, measure
from stitchkit.model.layer import StitchLayer, transform_of
from stitchkit.model.snnet import SNNet
from stitchkit.model.solve import fit_stitching_layers
from stitchkit.networks.create import create_anchor
from stitchkit.networks.families import VIEWS, anchor_of
from stitchkit.routes import Proportional, SlidingWindow, StitchSpace, TwoWay
from stitchkit.routes.rules import Rule
from stitchkit.settings.stitch_config import AnchorSpec, LayerKind
from tests.networks import TRACED
from tests.support import FAMILIES, QUICK_SPACES, SPACES, family_snnet, mostly_full, pico_images, randomize

ANCHORS = {f"{family}: {anchor['label']}": anchor for family in SPACES for anchor in SPACES[family]["anchors"]}
TRACED_ANCHORS = [name for name in ANCHORS if name.rpartition(": ")[0] in TRACED]


def one_of_each_kind():
    """Anchors that differ in more than sizes."""
    kinds = {}
    for name, anchor in ANCHORS.items():
        kind = (anchor["name"], *sorted(anchor["kwargs"]), anchor["kwargs"]["num_classes"])
        kinds.setdefault(kind, name)
    return [*kinds.values()]


KINDS = one_of_each_kind()


def images(model: SNNet, count: int = 2) -> torch.Tensor:
    return pico_images(count, size=model.input_size[-1])


def twin(model: SNNet) -> SNNet:
    # eval() makes timm's LeViT forget tensors that cannot be copied
    return copy.deepcopy(model.eval())


@pytest.fixture(scope="module", params=mostly_full(SPACES, quick=QUICK_SPACES))
def model(request):
    return family_snnet(request.param)


def create(name):
    anchor = create_anchor(AnchorSpec.parse(ANCHORS[name]), pretrained=False)
    randomize(anchor.model)
    anchor.model.eval()
    return anchor


def test_every_view_has_a_pico_family():
    with torch.device("meta"):
        models = [stitchkit.create_snnet(SPACES[family]) for family in QUICK_SPACES if family in FAMILIES]
    classes = {type(anchor.model) for model in models for anchor in model.views.values()}
    tested = {f"{kind.__module__}.{kind.__qualname__}" for kind in classes}
    assert {VIEWS[name] for name in tested if name in VIEWS} == {*VIEWS.values()}


@pytest.mark.parametrize("name", mostly_full(ANCHORS, quick=KINDS))
def test_law_1_anchor_equals_the_timm_model(name):
    anchor = create(name)
    x = pico_images(size=anchor.input_size[-1])
    y = x
    for step in anchor:
        y = step(y)
    assert torch.equal(y, anchor.model(x))
    features = anchor.features(x)
    for feature, place in zip(features, anchor.boundaries, strict=True):
        assert place.layout.sized(feature) == place.layout


class Way(NamedTuple):
    """A way to stitch."""

    rule: Rule
    final_norm: bool = True
    layer: LayerKind = "linear"


WAYS = {
    "window": Way(SlidingWindow()),
    "window without norm": Way(SlidingWindow(), final_norm=False),
    "proportional": Way(Proportional("both")),
    "two-way": Way(TwoWay()),
    "low rank": Way(TwoWay(), layer="lowrank"),
    "two layers": Way(TwoWay(), layer="mlp"),
}
OF_LAYOUTS = ("vit: ti", "swin: ti", "resnet: r18", "vits of other grids and tokens, both ways: reg")
"""Anchors of every layout that a layer can have."""


@pytest.mark.parametrize(
    ("name", "way"),
    mostly_full(
        # Each rule and layer for each kind of anchor. The final norm of traced networks is not known.
        [(name, way) for name in KINDS for way in WAYS if name not in TRACED_ANCHORS or WAYS[way].final_norm],
        quick=[
            *((OF_LAYOUTS[number % len(OF_LAYOUTS)], way) for number, way in enumerate(WAYS)),
            *((name, "two-way") for name in KINDS if name not in TRACED_ANCHORS),
            *((f"{family}: s", "window") for family in QUICK_SPACES if family in TRACED),
        ],
    ),
)
def test_law_2_self_stitch_equals_the_anchor(name, way):
    rule, final_norm, kind = WAYS[way]
    first = create(name)
    if not final_norm:
        for child in first.final_norm_children:
            setattr(first.model, child, torch.nn.Identity())
    anchors = [anchor_of(first.model, label="a"), anchor_of(copy.deepcopy(first.model), label="b")]
    layer = partial(StitchLayer, transform=transform_of(kind, 2))
    model = SNNet(anchors, StitchSpace.build(anchors, rule), stitched_final_norm=final_norm, layer=layer).eval()
    model.double()  # A law without rounding: each CPU's float32 kernels round in their own way.
    for joint in model.space.layers:
        width = first.boundaries[joint.front_block + 1].layout.width
        model.layer(joint).set_map(torch.cat([torch.eye(width), torch.zeros(1, width)]))
    x = pico_images(size=first.input_size[-1]).double()
    straight = [stitch for stitch in model.space if all(j.front_block + 1 == j.end_block for j in stitch.joints)]
    assert len(straight) > len(anchors)
    for stitch in straight:
        torch.testing.assert_close(model(x, stitch), first.model.double()(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("each", [pytest.param(1, marks=pytest.mark.nightly), 5])
def test_law_6_extract_equals_the_stitch(model, each):
    """One stitch in `each`, and one through each sequence of anchors; the last of the latter is measured too."""
    through = {tuple(part.anchor for part in stitch.segments): i for i, stitch in model.space.stitches.items()}
    measured = [*through.values()][-1:]
    profiler = Profiler(model)
    x = images(model)
    outputs = []
    for cfg_id in sorted({*model.space.ids[::each], *through.values()}):
        net, stitch = model.extract(cfg_id), model.space[cfg_id]
        outputs.append(net(x))
        assert torch.equal(outputs[-1], model(x, stitch))
        cost = profiler.cost(stitch)
        assert cost.params == sum(parameter.numel() for parameter in net.parameters())
        if each == 1 or cfg_id in measured:
            assert cost == measure(net, x[:1])
    # The routes are really different ones.
    assert len({tuple(output.flatten().tolist()) for output in outputs}) == len(outputs)


@pytest.mark.parametrize("model", mostly_full(QUICK_SPACES, quick=["resnet to swin", "levit"]), indirect=True)
def test_law_6_flops_are_those_of_fvcore(model):
    net = model.extract(model.space.ids[-1])
    for module in net.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    count = FlopCountAnalysis(net, images(model, 1)).unsupported_ops_warnings(False).total()
    assert Profiler(model).cost(model.space.ids[-1]).flops == count > 0


@pytest.mark.parametrize(
    "family", mostly_full([family for family in QUICK_SPACES if family in FAMILIES], quick=["resnet to swin"])
)
def test_law_6_costs_need_no_memory_for_weights(family):
    with torch.device("meta"):
        bare = stitchkit.create_snnet(FAMILIES[family])
    whole, without = Profiler(family_snnet(family)), Profiler(bare)
    for cfg_id in bare.space.ids:
        assert without.cost(cfg_id) == whole.cost(cfg_id)
    assert all(weight.is_meta for weight in bare.parameters()), "measuring has not given the network memory"


def test_an_extracted_network_is_independent_plain_and_minimal(model):
    model = twin(model)
    net = model.extract(len(model.anchors))
    x = images(model)
    before = net(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(net(x), before)
    assert not any(isinstance(module, SNNet) for module in net.modules())
    assert torch.equal(pickle.loads(pickle.dumps(net))(x), before)


def test_gradients_reach_the_route_and_nothing_else(model):
    model = twin(model).train()
    stitch = model.space[len(model.anchors)]
    model(images(model), stitch).sum().backward()
    used = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    wanted = {
        id(parameter)
        for step in model.steps(stitch)
        for parameter in model.module_of(step).parameters()
        if parameter.requires_grad
    }
    assert used == {name for name, parameter in model.named_parameters() if id(parameter) in wanted}
    assert len(used) < len(list(model.parameters()))


def test_gradient_checkpointing_changes_no_gradient(model):
    plain, saving = twin(model).train(), twin(model).train()
    saving.set_grad_checkpointing()
    for one in (plain, saving):
        torch.manual_seed(0)  # Swin drops paths
        one(images(one), len(one.anchors)).sum().backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            assert torch.equal(one.grad, other.grad)
    for one, other in zip(plain.buffers(), saving.buffers(), strict=True):
        assert torch.equal(one, other), "running statistics see each batch once"


FITTED = ("vit", "resnet to swin", "levit", "resnet and vit, both ways", "NCHW, batch norm", "NLC, 5 prefix tokens")
"""Families whose last anchors have every layout."""


@pytest.mark.parametrize("model", mostly_full(QUICK_SPACES, quick=FITTED), indirect=True)
def test_law_2_the_closed_form_fit_of_an_anchor_to_itself(model):
    """Fronts and ends are one anchor, so the best map of a straight joint is the identity, in every layout.

    The fit drops small directions and never sees a channel that is zero in all its images, so they are used again.
    """
    first = list(model.views.values())[-1]
    anchors = [anchor_of(copy.deepcopy(first.model), label="a"), anchor_of(copy.deepcopy(first.model), label="b")]
    rule = Proportional(stages=first.stitched_stages)  # no two joints share a layer
    twins = SNNet(anchors, StitchSpace.build(anchors, rule)).eval()
    x = pico_images(64, size=first.input_size[-1])
    residuals = fit_stitching_layers(twins, [x])
    straight = [joint for joint in residuals if joint.front_block + 1 == joint.end_block]
    assert straight
    assert max(residuals[joint] for joint in straight) < 1e-5
    anchor = twins(x[:4], 0)
    for stitch in twins.space.through(straight):
        torch.testing.assert_close(twins(x[:4], stitch), anchor, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("model", mostly_full(QUICK_SPACES, quick=["levit"]), indirect=True)
def test_weights_loaded_in_evaluation_mode_are_used_at_once(model, tmp_path):
    """timm's LeViT keeps what it computed from its weights in evaluation mode."""
    other = twin(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    x = images(model)
    torch.save(other.state_dict(), tmp_path / "w.pth")
    again = twin(model)
    again(x)
    stitchkit.load_checkpoint(again, tmp_path / "w.pth")
    assert torch.equal(again(x), other.eval()(x))
