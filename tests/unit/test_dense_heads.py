"""Heads for dense prediction: equal to plain computations, for every kind of levels, precision, size and file."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from stitchkit.errors import InputError
from stitchkit.model.heads.heads import HEADS
from stitchkit.model.levels import Level, LevelInfo
from tests.resizing import bilinear

KINDS = {
    "plain": [LevelInfo(8, 16, 0)] * 4,
    "with a class token": [LevelInfo(8, 16, 2)] * 4,
    "hierarchical": [LevelInfo(4, 4, 0), LevelInfo(6, 8, 0), LevelInfo(8, 16, 0), LevelInfo(10, 32, 0)],
}
PICO = {"linear": {}, "setr": {"channels": 8}, "dpt": {"channels": 32, "widths": (4, 6, 8, 10)}}
EVERY = pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in HEADS for kind in KINDS])
SIDES = 64, 96


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def levels_of(kind, *, images=2, sides=SIDES):
    """Features of images; a side that a reduction does not divide is padded, as networks do."""
    return [
        Level(
            noise(images, info.channels, *(-(-side // info.reduction) for side in sides), seed=seed),
            noise(images, info.num_prefix_tokens, info.channels, seed=9 + seed) if info.num_prefix_tokens else None,
        )
        for seed, info in enumerate(KINDS[kind])
    ]


def head_of(name, kind, *, outputs=3, **settings):
    """A head whose batch norms have seen something."""
    torch.manual_seed(0)
    head = HEADS[name](KINDS[kind], outputs, **PICO[name], **settings)
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(value, 0.5, 1.5)
    return head.eval()


def normed(x, norm):
    """Batch norm in evaluation mode, of `[B, C, H, W]`."""
    mean, var, weight, bias = (
        value.detach().double().numpy()[:, None, None]
        for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / np.sqrt(var + norm.eps) * weight + bias


def mapped(x, layer):
    """A 1x1 convolution."""
    weight = layer.weight.detach().double().numpy()[:, :, 0, 0]
    bias = 0 if layer.bias is None else layer.bias.detach().double().numpy()[:, None, None]
    return np.einsum("oc,bchw->bohw", weight, x) + bias


def of_type(head, kind):
    return [module for module in head.modules() if isinstance(module, kind)]


def close(found, expected):
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_linear_equals_plain_numpy(kind):
    head, levels = head_of("linear", kind), levels_of(kind)
    size = levels[0].map.shape[-2:]
    x = np.concatenate([bilinear(level.map, *size) for level in levels], 1)
    close(head(levels), mapped(normed(x, head.norm), head.output))


@pytest.mark.parametrize("kind", KINDS)
def test_setr_equals_plain_numpy(kind):
    """The classes are computed before the last upsampling, with which a linear map commutes."""
    head, levels = head_of("setr", kind), levels_of(kind)
    factors = {4: (4, 1), 8: (4, 2), 16: (4, 4), 32: (4, 4)}
    outputs = [*head.auxiliary(levels), head(levels)]
    for level, info, layers, output in zip(levels, KINDS[kind], [*head.others, head.main], outputs, strict=True):
        x = level.map.double().numpy()
        (norm,), *convolutions = of_type(layers, nn.LayerNorm), *of_type(layers, nn.Conv2d)
        assert norm.weight.eq(1).all()
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
        norms = of_type(layers, nn.BatchNorm2d)
        assert len(norms) == (1 if layers is head.main else 2)
        *inner, last = zip(convolutions[:-1], norms, factors[info.reduction][: len(norms)], strict=True)
        for convolution, norm, factor in inner:
            x = np.maximum(normed(mapped(x, convolution), norm), 0)
            x = bilinear(x, *(factor * side for side in x.shape[-2:]))
        x = mapped(np.maximum(normed(mapped(x, last[0]), last[1]), 0), convolutions[-1])
        close(output, bilinear(x, *(last[2] * side for side in x.shape[-2:])))


def test_setr_has_the_published_cost():
    """Multiply-adds of its main head at 512 x 512 for 150 classes: with DeiT3-L, 363.16 G in all."""
    head = HEADS["setr"]([LevelInfo(1024, 16, 1)] * 4, 150)
    conv, norm, last = head.main[1], head.main[2], head.main[-1]
    positions, tokens = 32 * 32, 32 * 32 + 1
    own = positions * (conv.weight.numel() + 5 * 1024 + 2 * norm.num_features) + 16 * positions * (
        last.weight.numel() + 4 * last.in_channels
    )
    assert own == 920_125_440  # layer norm 5 and batch norm 2 an element, upsampling 4, as fvcore counts
    block = tokens * (12 * 1024**2 + 2 * 5 * 1024) + 2 * tokens**2 * 1024
    assert round((own + 24 * block + positions * 768 * 1024) / 1e9, 2) == 363.16


@pytest.mark.parametrize("kind", KINDS)
def test_dpt_fuses_all_levels_as_a_sum_if_its_units_do_nothing(kind):
    """Convolutions copy channels, residual units add nothing: what is left are resizes and sums."""
    widths, ones = {"channels": 16, "widths": (16,) * 4}, [LevelInfo(16, info.reduction, 0) for info in KINDS[kind]]
    head = HEADS["dpt"](ones, 2, **widths)
    for module in of_type(head, nn.Conv2d):
        nn.init.dirac_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    for module in of_type(head, nn.ConvTranspose2d):  # each position fills its square
        module.weight.data = torch.eye(16)[..., None, None].expand_as(module.weight).clone()
        nn.init.zeros_(module.bias)
    for fusion in head.fusions:
        for unit in (fusion.unit1, fusion.unit2):
            if unit is not None:
                nn.init.zeros_(unit.layers[-1].weight)
    levels = [Level(noise(1, 16, *level.map.shape[-2:], seed=seed), None) for seed, level in enumerate(levels_of(kind))]
    maps = [level.map.numpy() for level in levels]
    if kind != "hierarchical":
        first, second, third, last = maps
        maps = [first.repeat(4, 2).repeat(4, 3), second.repeat(2, 2).repeat(2, 3), third, last[..., ::2, ::2]]
    x = 0
    for index, own in reversed([*enumerate(maps)]):
        height, width = own.shape[-2:]
        size = maps[index - 1].shape[-2:] if index else (2 * height, 2 * width)
        x = bilinear(own + x, *size, has_corners_aligned=True)
    x = np.maximum(x, 0)[:, :2]
    close(head(levels), bilinear(x, *(2 * side for side in x.shape[-2:]), has_corners_aligned=True))


def test_dpt_reads_the_class_token_at_every_position():
    head, levels = head_of("dpt", "with a class token"), levels_of("with a class token")
    linear = head.reassemble[0].readout[0]
    token = levels[0].prefix.double().numpy()[:, 0]
    x = levels[0].map.double().numpy()
    both = np.concatenate([x, np.broadcast_to(token[..., None, None], x.shape)], 1)
    plain = np.einsum("oc,bchw->bohw", linear.weight.detach().numpy(), both)
    plain = torch.from_numpy(plain + linear.bias.detach().numpy()[:, None, None])
    close(head.reassemble[0](levels[0]), head.reassemble[0].layers(nn.functional.gelu(plain).float()).detach())


def test_dpt_has_the_published_cost():
    """Multiply-adds at 480 x 640: with DeiT3-L, 602.6 G in all, without the upsamplings' 0.26 G."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        level = Level(torch.zeros(1, 1024, 30, 40), torch.zeros(1, 1, 1024))
        HEADS["dpt"]([LevelInfo(1024, 16, 1)] * 4, 1)([level] * 4)
    tokens = 30 * 40 + 1
    block = tokens * (12 * 1024**2 + 2 * 5 * 1024) + 2 * tokens**2 * 1024
    rest = 24 * block + 30 * 40 * 768 * 1024
    assert (counter.get_total_flops() / 2 + rest) / 1e9 == pytest.approx(602.6 - 0.26, abs=0.05)


@EVERY
def test_every_weight_and_level_takes_part_and_sizes_are_free(name, kind):
    head = head_of(name, kind).train()
    for sides in (SIDES, (48, 80), (80, 112)):
        levels = levels_of(kind, sides=sides)
        for level in levels:
            level.map.requires_grad_()
        output, auxiliary = head(levels), head.auxiliary(levels)
        assert output.shape[:2] == (2, 3)
        assert len(auxiliary) == (3 if name == "setr" else 0)
        sum(x.square().sum() for x in (output, *auxiliary)).backward()
        assert all(level.map.grad.any() for level in levels)
        for weight in head.parameters():
            assert weight.grad.isfinite().all()
            weight.grad = None


@EVERY
def test_resolutions(name, kind):
    height, width = head_of(name, kind)(levels_of(kind)).shape[-2:]
    plain = {"linear": 16, "setr": 4, "dpt": 1}
    reduction = {"linear": 4, "setr": 8, "dpt": 1} if kind == "hierarchical" else plain
    assert (height * reduction[name], width * reduction[name]) == SIDES


@EVERY
def test_a_batch_gives_what_its_images_give(name, kind):
    head, levels = head_of(name, kind), levels_of(kind, images=3)
    alone = [
        head([Level(x[i : i + 1], None if prefix is None else prefix[i : i + 1]) for x, prefix in levels])
        for i in range(3)
    ]
    torch.testing.assert_close(head(levels), torch.cat(alone))


@EVERY
@pytest.mark.parametrize("whole", [False, True], ids=["autocast", "weights"])
def test_bfloat16(name, kind, whole):
    head, levels = head_of(name, kind), levels_of(kind)
    expected = head(levels)
    if whole:
        head = copy.deepcopy(head).bfloat16()
        levels = [Level(x.bfloat16(), None if prefix is None else prefix.bfloat16()) for x, prefix in levels]
    with torch.autocast("cpu", torch.bfloat16, enabled=not whole):
        found = head(levels)
        trained = head.train()(levels), *head.auxiliary(levels)
    assert all(x.dtype == torch.bfloat16 and x.isfinite().all() for x in (found, *trained))
    assert (found.float() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("name", HEADS)
def test_depths_are_the_positive_part_and_the_smallest_depth(name):
    logits, depth = (head_of(name, "plain", outputs=1, min_depth=least) for least in (None, 0.25))
    assert logits.state_dict().keys() == depth.state_dict().keys()
    torch.manual_seed(1)
    for weight in depth.parameters():  # of both signs
        nn.init.normal_(weight, std=0.5)
    logits.load_state_dict(depth.state_dict())
    levels = levels_of("plain")
    outputs, depths = ([head(levels), *head.auxiliary(levels)] for head in (logits, depth))
    assert any((x < 0).any() for x in outputs)
    for x, y in zip(outputs, depths, strict=True):
        torch.testing.assert_close(y, x.clamp(min=0) + 0.25)


@pytest.mark.parametrize("name", HEADS)
def test_a_new_head_for_depth_has_gradients_at_many_positions(name):
    for seed in range(10):
        torch.manual_seed(seed)
        head = HEADS[name](KINDS["plain"], 1, min_depth=1e-3, **PICO[name])
        assert (head(levels_of("plain")) > 0.1).float().mean() > 0.3


class Flat(nn.Module):
    """A head whose inputs are tensors, as exporters want them."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, *tensors):
        prefixes = tensors[4:] or [None] * 4
        return self.head([Level(x, prefix) for x, prefix in zip(tensors[:4], prefixes, strict=True)])


@EVERY
def test_onnx_gives_the_same_for_other_batches_and_sizes(name, kind, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    net, path = Flat(head_of(name, kind)).eval(), tmp_path / "head.onnx"

    def flat(levels):
        return [level.map for level in levels] + [level.prefix for level in levels if level.prefix is not None]

    inputs = flat(levels_of(kind))
    names = [f"x{index}" for index in range(len(inputs))]
    axes = {name: {0: "batch", 2: f"h{name}", 3: f"w{name}"} for name in names[:4]}
    axes |= {name: {0: "batch"} for name in names[4:]} | {"y": {0: "batch", 2: "h", 3: "w"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch would rather have its other exporter used
        torch.onnx.export(
            net, tuple(inputs), path, dynamo=False, opset_version=18, input_names=names, output_names=["y"],
            dynamic_axes=axes,
        )  # fmt: skip
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for images, sides in ((2, SIDES), (1, (128, 64)), (3, (80, 112))):
        levels = levels_of(kind, images=images, sides=sides)
        values = {name: x.numpy() for name, x in zip(names, flat(levels), strict=True)}
        (found,) = session.run(None, {node.name: values[node.name] for node in session.get_inputs()})
        np.testing.assert_allclose(found, net.head(levels).detach().numpy(), rtol=1e-4, atol=1e-4)


def test_what_no_head_can_be_built_for():
    with pytest.raises(InputError, match="dpt head needs 4 levels, not 2; give 4, or choose another head"):
        HEADS["dpt"](KINDS["plain"][:2], 3)
    for levels, outputs in (([], 3), (KINDS["plain"], 0)):
        with pytest.raises(
            InputError, match=f"one level and one output, and has {len(levels)} and {outputs}; give more"
        ):
            HEADS["linear"](levels, outputs)


@pytest.mark.parametrize("name", ["linear", "setr"])
def test_one_level_is_enough(name):
    infos = KINDS["plain"][:1]
    assert HEADS[name](infos, 3, **PICO[name])(levels_of("plain")[:1]).shape[:2] == (2, 3)
