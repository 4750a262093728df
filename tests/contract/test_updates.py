"""Laws 1, 2, 6 and 7 of networks whose anchors have updates of low rank, which stitched routes have alone."""

import copy

import pytest
import torch

import stitchkit
from stitchkit.errors import InputError
from stitchkit.measure.profile import Profiler, measure
from stitchkit.model.snnet import SNNet
from stitchkit.networks.families import anchor_of
from stitchkit.routes import SlidingWindow, StitchSpace
from stitchkit.training.preserve import freeze_anchors, trainable_stitches
from tests.support import QUICK_SPACES, SPACES, mostly_full, pico_images, randomize

# Convolutions alone have no linear layers.
CASES = [f for f in QUICK_SPACES if f not in ("levit of convolutions", "NCHW, batch norm")]
CASES += ["NHWC, windows", "NLC, class token"]
"""Swin V2 and BEiT use the weights of layers that they do not call."""
QUICK = ["vit", "NHWC, windows"]


def made(family: str, *, trained: bool = True) -> SNNet:
    torch.manual_seed(0)
    model = stitchkit.create_snnet({**SPACES[family], "anchor_lora_r": 2})
    if trained:
        randomize(model)
    return model.eval()


@pytest.fixture(scope="module", params=mostly_full(CASES, quick=QUICK))
def model(request):
    return made(request.param)


def test_costs_are_counted_without_memory_for_weights():
    with torch.device("meta"):
        model = stitchkit.create_snnet({**SPACES["vit"], "anchor_lora_r": 2}, checkpoints=False)
    assert Profiler(model).cost(4) == Profiler(made("vit")).cost(4)


def images(model: SNNet, count: int = 2) -> torch.Tensor:
    return pico_images(count, size=model.input_size[-1])


@torch.no_grad()
def test_law_1_uncut_anchors_go_without_updates(model):
    x, anchors = images(model), dict(enumerate(model.views.values()))
    outputs = model.forward_all(x)
    for cfg_id, anchor in anchors.items():
        assert torch.equal(model(x, cfg_id), anchor.model(x))
        torch.testing.assert_close(outputs[cfg_id], anchor.model(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_stitched_routes_have_them(model):
    x, without = images(model), copy.deepcopy(model.eval())
    for parameter in without.updates.parameters():
        parameter.zero_()
    changed = {cfg_id: not torch.equal(model(x, cfg_id), without(x, cfg_id)) for cfg_id in model.space.ids}
    assert changed == {cfg_id: not model.space[cfg_id].is_anchor for cfg_id in model.space.ids}


def test_law_2_a_self_stitch_without_training_equals_the_anchor():
    first = next(iter(made("vit").views.values()))
    anchors = [anchor_of(first.model, label="a"), anchor_of(copy.deepcopy(first.model), label="b")]
    model = SNNet(anchors, StitchSpace.build(anchors, SlidingWindow()), updates=2).eval()
    for joint in model.space.layers:
        width = first.boundaries[joint.front_block + 1].layout.width
        model.layer(joint).set_map(torch.cat([torch.eye(width), torch.zeros(1, width)]))
    x, straight = pico_images(), "a[0:1] > b[1:3]"
    assert torch.equal(model(x, stitchkit.Stitch.parse(straight)), first.model(x))


def test_law_6_extract_equals_the_stitch_and_costs_no_more(model):
    profiler, x = Profiler(model), images(model)
    for cfg_id in [*model.space.ids][:: len(model.space) // 2]:
        net = model.extract(cfg_id)
        assert torch.equal(net(x), model(x, cfg_id))
        assert profiler.cost(cfg_id) == measure(net, x[:1])
        assert not any("lora" in name for name in net.state_dict())


@torch.no_grad()
def test_law_7_all_at_once_are_all_one_by_one(model):
    x = images(model, 3)
    for cfg_id, logits in model.forward_all(x).items():
        torch.testing.assert_close(logits, model(x, cfg_id), rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_updates_of_the_route(model):
    model = copy.deepcopy(model.eval()).train()  # eval() makes timm's LeViT forget tensors that cannot be copied
    freeze_anchors(model, class_tokens=False)
    labels = [*model.views]
    x, cfg_id = images(model), len(labels)
    route = model.space[cfg_id]
    model(x, cfg_id).sum().backward()
    used = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {name.partition(".")[0] for name in used} == {"updates", "stitch_layers"}
    joined = {labels.index(segment.anchor) for segment in route.segments}
    assert {int(name.split(".")[1]) for name in used if name.startswith("updates")} <= joined
    assert trainable_stitches(model) == [cfg_id for cfg_id in model.space.ids if not model.space[cfg_id].is_anchor]


def test_gradient_checkpointing_changes_no_gradient():
    plain, saving = made("vit").train(), made("vit").train()
    saving.set_grad_checkpointing()
    for one in (plain, saving):
        one(pico_images(), 3).sum().backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)


def test_convolutions_alone_cannot_have_updates():
    with pytest.raises(InputError, match="the blocks of r18, r50 have no linear layers"):
        made("resnet")


@torch.no_grad()
def test_law_7_in_mixed_precision():
    model, x = made("vit"), pico_images(3)
    with torch.autocast("cpu", torch.bfloat16):
        for cfg_id, logits in model.forward_all(x).items():
            torch.testing.assert_close(logits, model(x, cfg_id), rtol=0.05, atol=0.05)
