"""Traced anchors beyond the laws of all families: they agree with views, and survive what training does to a model."""

import copy
import re
from functools import cache

import pytest
import timm
import torch
import torchvision
from timm.layers import convert_splitbn_model, convert_sync_batchnorm
from timm.models.metaformer import Attention, LayerNorm2dNoBias, LayerNormNoBias, MetaFormer, SepConv
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import stitchkit
from stitchkit.errors import InputError
from stitchkit.networks.create import create_anchor, create_model
from stitchkit.networks.families import anchor_of
from stitchkit.networks.traced_anchor import TracedAnchor
from stitchkit.settings.stitch_config import AnchorSpec
from stitchkit.training.preserve import freeze_anchors
from tests.networks import TRACED
from tests.support import family_snnet, mostly_full, pico_images, randomize

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
NO_CLASS_TOKEN = {"class_token": False, "global_pool": "avg"}
RESNET = {"layers": (2, 2, 2, 2), "channels": (8, 16, 16, 32), "img_size": 64}
SWIN = {"img_size": 64, "window_size": 4, "embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 4)}
LEVIT = {"img_size": 64, "embed_dim": (16, 24, 32), "key_dim": 8, "num_heads": (2, 2, 2), "depth": (2, 2, 2)}
VIEWED = {
    "vit": ("vit_tiny_patch16_224", VIT),
    "vit, no class token": ("vit_tiny_patch16_224", {**VIT, **NO_CLASS_TOKEN}),
    "vit, register tokens": ("vit_tiny_patch16_224", {**VIT, "reg_tokens": 4}),
    "vit, norm_pre": ("vit_tiny_patch16_224", {**VIT, "pre_norm": True, "init_values": 0.1}),
    "distilled": ("deit_tiny_distilled_patch16_224", VIT),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
    "resnet, basic": ("resnet18", RESNET),
    "resnet, bottleneck": ("resnet50", RESNET),
    "resnet, deep stem": ("resnet18d", RESNET),
    "resnet, squeeze-excitation": ("seresnet18", RESNET),
    "resnet, anti-aliased": ("resnetblur18", RESNET),
    "levit": ("levit_128s", LEVIT),
    "levit of convolutions": ("levit_conv_128s", LEVIT),
}  # fmt: skip


def create(name, arguments):
    """An anchor by its view."""
    torch.manual_seed(0)
    spec = {"label": "a", "name": name, "kwargs": {"num_classes": 4, **arguments}}
    anchor = create_anchor(AnchorSpec.parse(spec), pretrained=False)
    randomize(anchor.model)
    anchor.model.eval()
    return anchor


@cache
def _traced(family):
    return create(*(TRACED[family]["anchors"][0][key] for key in ("name", "kwargs")))


def traced(family):
    """An anchor of a traced family of its own."""
    return copy.deepcopy(_traced(family))


def images(anchor, count=2):
    return pico_images(count, size=anchor.input_size[-1])


def run_steps(anchor, x):
    for number in range(len(anchor)):
        x = anchor.module(number)(x)
    return x


def assert_equals_the_model(anchor, x):
    torch.manual_seed(1)
    expected = anchor.model(x)
    torch.manual_seed(1)
    assert torch.equal(run_steps(anchor, x), expected)
    return expected


@torch.no_grad()
@pytest.mark.parametrize("name", mostly_full(VIEWED, quick=["vit, register tokens", "resnet, bottleneck", "levit"]))
def test_a_trace_finds_what_a_view_says(name):
    view = create(*VIEWED[name])
    found = TracedAnchor(view.model, label="a", input_size=view.input_size)
    assert found.depths == view.depths
    unpublished = (0,) if name.startswith("resnet") else ()  # the paper leaves out the first stage of ResNets
    assert found.stitched_stages == (*unpublished, *view.stitched_stages)
    assert [place.layout for place in found.boundaries] == [place.layout for place in view.boundaries]
    assert (found.num_classes, found.input_size) == (view.num_classes, view.input_size)
    x = images(view)
    for one, other in zip(found.features(x), view.features(x), strict=True):
        assert torch.equal(one, other)
    assert_equals_the_model(found, x)


QUICK = ["NCHW, batch norm", "NLC, 5 prefix tokens"]
ALL = mostly_full(TRACED, quick=QUICK)


@torch.no_grad()
@pytest.mark.parametrize("family", mostly_full(TRACED, quick=[*QUICK, "NHWC, windows"]))
def test_law_1_in_both_modes_for_any_number_of_images(family):
    anchor = traced(family)
    for count in (1, 2, 5):
        assert len(assert_equals_the_model(anchor, images(anchor, count))) == count
    anchor.model.train()
    assert_equals_the_model(anchor, images(anchor, 3))


@torch.no_grad()
@pytest.mark.parametrize("family", ALL)
def test_law_1_in_other_precisions_and_orders_of_memory(family):
    anchor = traced(family)
    with torch.autocast("cpu", torch.bfloat16):
        assert_equals_the_model(anchor, images(anchor))
    anchor.model.to(memory_format=torch.channels_last)
    assert_equals_the_model(anchor, images(anchor).to(memory_format=torch.channels_last))
    anchor.model.bfloat16()
    assert assert_equals_the_model(anchor, images(anchor).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("family", ALL)
def test_the_trace_is_in_no_state(family):
    name, arguments = (TRACED[family]["anchors"][0][key] for key in ("name", "kwargs"))
    anchor = traced(family)
    names = create_model(name, **arguments).state_dict().keys()
    assert anchor.model.state_dict().keys() == names
    parts = [set(anchor[number].state_dict()) for number in range(len(anchor))]
    assert set.union(*parts) == set(names)
    assert sum(map(len, parts)) == len(names)


@torch.no_grad()
@pytest.mark.parametrize("family", ALL)
def test_a_moving_average_runs_on_its_own_weights(family):
    model = copy.deepcopy(family_snnet(family))
    average = ModelEmaV3(model, decay=0.5)
    x = pico_images(size=model.input_size[-1])
    before = model(x, 2)
    assert torch.equal(average(x, 2), before)
    for parameter in model.parameters():
        parameter.mul_(1.5)
    assert torch.equal(average(x, 2), before)
    average.update(model)
    assert not torch.equal(average(x, 2), before)


@pytest.mark.parametrize("family", ALL)
def test_everything_moves_with_the_model(family):
    """Also constants that only the trace has: a step on the meta device meets no tensor of another one."""
    anchor = traced(family)
    anchor.model.to("meta")
    x = torch.empty(2, *anchor.input_size, device="meta")
    assert run_steps(anchor, x).device.type == "meta"
    piece = copy.deepcopy(traced(family)[1:]).to("meta")
    assert {tensor.device.type for tensor in (*piece.parameters(), *piece.buffers())} == {"meta"}


@torch.no_grad()
@pytest.mark.parametrize("convert", [convert_sync_batchnorm, lambda model: convert_splitbn_model(model, 2)])
def test_converted_batch_norms_are_run(convert):
    anchor = traced("NCHW, batch norm")
    convert(anchor.model)
    run = {part for number in range(len(anchor)) for part in anchor.module(number).modules()}
    assert {part for part in anchor.model.modules() if isinstance(part, _BatchNorm)} <= run
    if convert is not convert_sync_batchnorm:  # these need GPUs
        anchor.model.train()
        assert_equals_the_model(anchor, images(anchor, 4))


@pytest.mark.parametrize("family", ALL)
def test_frozen_anchors_train_only_layers_and_class_tokens(family):
    model = copy.deepcopy(family_snnet(family))
    freeze_anchors(model)
    model.train()
    model(pico_images(size=model.input_size[-1]), 2).sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert any(name.startswith("stitch_layers.") for name in trained)
    assert all(re.match(r"stitch_layers\.|anchors\.\d\.cls_token", name) for name in trained)


def test_images_of_another_size_are_refused():
    anchor = traced("NCHW, layer norm")
    message = r"anchor 'a' takes images of \(3, 64, 64\), not \(3, 32, 64\); create it with their size as img_size"
    with pytest.raises(InputError, match=message):
        anchor[0](torch.zeros(1, 3, 32, 64))
    model = family_snnet("NLC, 5 prefix tokens")
    with pytest.raises(InputError, match="anchor 's' takes images of"):
        model(torch.zeros(1, 3, 64, 64), 3)


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))

    def forward(self, x):
        return x + self.inner(x).relu()


class Pair(nn.Module):
    """A block that passes two tensors."""

    def __init__(self, width):
        super().__init__()
        self.left, self.right = Residual(width), Residual(width)

    def forward(self, x, y):
        return self.left(y), self.right(x)


class Plain(nn.Module):
    """A network of one's own: its blocks run one after the other, and a constant goes to each."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.ModuleList(Residual(8) for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        scale = torch.linspace(0.5, 1, x.shape[-1], device=x.device)
        for block in self.blocks:
            x = block(x) * scale
        return self.head(x.mean((2, 3)))


class TwoStreams(Plain):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Pair(8) for _ in range(3))

    def forward(self, x):
        x = y = self.stem(x)
        for block in self.blocks:
            x, y = block(x, y)
        return self.head((x + y).mean((2, 3)))


class LongSkip(Plain):
    def forward(self, x):
        x = y = self.stem(x)
        for block in self.blocks:
            x = block(x) + y
        return self.head((x + y).mean((2, 3)))


def small_metaformer():
    mixers, norms = [SepConv] * 2 + [Attention] * 2, [LayerNorm2dNoBias] * 2 + [LayerNormNoBias] * 2
    sizes = {"depths": (1, 2, 2, 1), "dims": (8, 16, 32, 32)}
    return MetaFormer(num_classes=4, **sizes, token_mixers=mixers, norm_layers=norms, mlp_act=nn.GELU)


OTHERS = {
    "own": (Plain, (3,), "NCHW"),
    "timm's class": (small_metaformer, (1, 2, 2, 1), "NCHW NLC"),
    "torchvision, batch norm": (lambda: torchvision.models.mobilenet_v3_small(num_classes=4), None, "NCHW"),
    "torchvision, NHWC": (
        lambda: torchvision.models.SwinTransformer([4, 4], 8, [2, 2], [1, 2], [4, 4], num_classes=4),
        (2, 2),
        "NHWC",
    ),
    "torchvision, class token": (
        lambda: torchvision.models.VisionTransformer(64, 16, 3, 2, 16, 32, num_classes=4),
        (3,),
        "NLC",
    ),
    "a chain of layers": (lambda: torchvision.models.alexnet(num_classes=4), None, "NCHW vector"),
}
"""Networks without timm's description: the blocks of their stages, if known, and kinds of layout."""


@torch.no_grad()
@pytest.mark.parametrize("name", mostly_full(OTHERS, quick=["own", "timm's class", "torchvision, class token"]))
def test_law_1_of_networks_without_a_description(name):
    make, depths, kinds = OTHERS[name]
    torch.manual_seed(0)
    model = make().eval()
    randomize(model)
    anchor = TracedAnchor(model, label="a", input_size=(3, 64, 64))
    assert anchor.depths == (depths or anchor.depths)
    assert {place.layout.kind for place in anchor.boundaries} == set(kinds.split())
    x = pico_images(3, size=64)
    for feature, place in zip(anchor.features(x), anchor.boundaries, strict=True):
        assert place.layout.sized(feature) == place.layout
    for training in (False, True):
        model.train(training)
        assert_equals_the_model(copy.deepcopy(anchor), x)
    assert anchor.model.state_dict().keys() == make().state_dict().keys()
    assert anchor.num_classes == 4


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            TwoStreams,
            "its blocks pass more than one tensor: after 'blocks.0', a Pair, the rest needs 'blocks.0.left' and "
            "'blocks.0'; choose a network whose blocks pass one",
        ),
        (LongSkip, "after 'blocks.0', a Residual, the rest needs 'stem' and 'blocks.0'; choose"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 4)), "it has 2 steps with one tensor between them"),
    ],
)
def test_networks_that_have_no_two_blocks_are_refused(make, reason):
    with pytest.raises(InputError, match=f"^anchor 'a': .*{re.escape(reason)}") as refusal:
        TracedAnchor(make().eval(), label="a", input_size=(3, 32, 32))
    assert "\n" not in str(refusal.value)


@pytest.mark.full
def test_a_network_of_two_branches_is_refused():
    model = timm.create_model("crossvit_tiny_240", pretrained=False)
    with pytest.raises(InputError, match=r"one tensor: after 'blocks\.0\.blocks\.1\.0', a Block, the rest needs"):
        TracedAnchor(model, label="a")


class _Two(nn.Module):
    def forward(self, x, y):
        return x + y


def test_a_network_of_two_inputs_is_refused():
    with pytest.raises(InputError, match="takes x and y; wrap it in a module"):
        anchor_of(_Two(), label="two", input_size=(3, 32, 32))


def test_views_and_networks_of_ones_own_take_the_size_and_the_classes_that_are_given():
    resnet = timm.create_model("resnet10t", num_classes=5)
    assert anchor_of(resnet, label="r", input_size=(3, 64, 64)).input_size == (3, 64, 64)
    vit = timm.create_model("test_vit", num_classes=5)
    with pytest.raises(InputError, match="takes images of"):
        anchor_of(vit, label="v", input_size=(3, 64, 64))
    with pytest.raises(InputError, match="has 5 classes, not 7"):
        anchor_of(resnet, label="r", num_classes=7)


@torch.no_grad()
@pytest.mark.parametrize("family", [family for family in TRACED if family.startswith("NLC")])
def test_equal_networks_of_tokens_are_stitched_on_images_that_are_not_square(family):
    torch.manual_seed(0)
    model = stitchkit.create_snnet(TRACED[family], img_size=(16, 40)).eval()
    prefix = {"NLC, no prefix": 0, "NLC, class token": 1, "NLC, 5 prefix tokens": 5}[family]
    for anchor in model.views.values():
        assert {place.layout.positions for place in anchor.boundaries} == {(10,)}
        assert {place.layout.num_prefix_tokens for place in anchor.boundaries} == {prefix}
    x = torch.randn(2, 3, 16, 40)
    assert model(x, model.space.ids[-1]).shape == (2, 4)


@torch.no_grad()
def test_prefix_tokens_that_come_late_are_not_counted_before_on_images_that_are_not_square():
    anchor = create("xcit_nano_12_p8_224", {**VIT, "cls_attn_layers": 1, "img_size": (16, 40)})
    assert anchor.model.num_prefix_tokens == 1
    layouts = {(place.layout.positions, place.layout.num_prefix_tokens) for place in anchor.boundaries}
    assert layouts == {((10,), 0)}


@pytest.mark.full
def test_torchvision_anchors_of_a_plan_need_no_memory_for_weights():
    model = stitchkit.create_snnet(anchors=["torchvision/regnet_y_400mf", "torchvision/regnet_y_800mf"], img_size=64)
    assert [*model.views] == ["torchvision_regnet_y_400mf", "torchvision_regnet_y_800mf"]
