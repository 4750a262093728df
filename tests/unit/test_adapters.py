"""Adapters: shapes for all arguments, what identity means, and the defects of the publication that are not repeated."""

import inspect

import pytest
import torch
from torch import nn

from stitchkit.assembly.parts.adapters import (
    NORMS,
    ResNetBasicBlock,
    ResNetBottleneck,
    SimpleAdapter,
    SwinTransformerBlock,
    VisionTransformerBlock,
)
from stitchkit.errors import InputError
from tests.support import pairwise, products

RESNET_BLOCKS = (ResNetBasicBlock, ResNetBottleneck)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def positive_map(channels, side=6):
    """Activations as they come from a ReLU."""
    return torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("part", "defaults"),
    [
        (
            SimpleAdapter,
            {
                **{"hid_channels": None, "num_fc": 0, "num_conv": 0, "kernel_size": 3, "stride": 1, "padding": None},
                **{"leading_norm": True, "nonlinearity": True, "init_identity": False, "fc_format": None},
            },
        ),
        *(
            (
                block,
                {
                    **{"stride": 1, "groups": 1, "base_width": 64, "dilation": 1},
                    **{"norm_type": "bn", "init_identity": True},
                },
            )
            for block in RESNET_BLOCKS
        ),
        (
            VisionTransformerBlock,
            {"num_heads": 6, "embed_dim": 384, "mlp_ratio": 4, "dropout": 0.0, "attention_dropout": 0.0},
        ),
        (
            SwinTransformerBlock,
            {
                **{"do_shift": False, "window_size": 7, "mlp_ratio": 4},
                **{"dropout": 0.0, "attention_dropout": 0.0, "drop_path_rate": 0.0},
            },
        ),
    ],
)
def test_arguments_have_the_published_names_and_defaults(part, defaults):
    parameters = inspect.signature(part).parameters.values()
    assert {p.name: p.default for p in parameters if p.default is not p.empty} == defaults
    required = {p.name for p in parameters if p.default is p.empty}
    expected = {SwinTransformerBlock: {"num_heads", "embed_dim"}, VisionTransformerBlock: set()}
    assert required == expected.get(part, {"in_channels", "out_channels"})


OPTIONS = {
    "leading_norm": (True, False),
    "nonlinearity": (True, False),
    "hid_channels": (None, 6),
    "init_identity": (True, False),
}
CONVOLUTIONS = products(num_conv=(1, 2, 3), kernel_size=(1, 3, 5), stride=(1, 2), **OPTIONS)


@pytest.mark.parametrize("arguments", pairwise(CONVOLUTIONS), ids=str)
def test_convolutional_adapters_reach_the_channels_and_divide_the_size_by_the_stride(arguments):
    adapter = SimpleAdapter(in_channels=4, out_channels=8, **arguments)
    assert adapter(positive_map(4)).shape == (2, 8, 6 // arguments["stride"], 6 // arguments["stride"])


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_a_padding_that_is_given_is_kept(padding):
    adapter = SimpleAdapter(in_channels=4, out_channels=8, num_conv=1, padding=padding)
    assert adapter(positive_map(4)).shape[2:] == (4 + 2 * padding, 4 + 2 * padding)


LINEAR = products(num_fc=(1, 2, 3), **OPTIONS)


@pytest.mark.parametrize("arguments", pairwise(LINEAR), ids=str)
def test_linear_adapters_reach_the_channels_of_sequences_maps_and_vectors(arguments):
    adapter = SimpleAdapter(in_channels=4, out_channels=8, **arguments)
    for positions in ((5,), (3, 4), ()):
        assert adapter(torch.rand(2, *positions, 4)).shape == (2, *positions, 8)


def test_an_adapter_is_a_norm_then_layers_norms_and_leaky_relus():
    kinds = [nn.BatchNorm2d, *[nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU] * 2]
    layers = SimpleAdapter(in_channels=4, out_channels=8, hid_channels=6, num_conv=2, stride=2).layers
    assert [type(layer) for layer in layers] == kinds
    assert [layer.stride for layer in layers if isinstance(layer, nn.Conv2d)] == [(2, 2), (1, 1)]
    assert {layer.negative_slope for layer in layers if isinstance(layer, nn.LeakyReLU)} == {0.1}
    layers = SimpleAdapter(in_channels=4, out_channels=8, num_fc=1).layers
    assert [type(layer) for layer in layers] == [nn.LayerNorm, nn.Linear, nn.LayerNorm, nn.LeakyReLU]
    layers = SimpleAdapter(in_channels=4, out_channels=8, num_fc=2, leading_norm=False, nonlinearity=False).layers
    assert [type(layer) for layer in layers] == [nn.Linear, nn.LayerNorm] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "num_fc is 0 and num_conv 0; exactly one of them"),
        ({"num_fc": 1, "num_conv": 2}, "num_fc is 1 and num_conv 2"),
        ({"num_conv": -1}, "num_conv -1"),
        ({"num_fc": 1, "stride": 2}, "stride is 2, but linear layers have none"),
        ({"num_fc": 1, "fc_format": "tokens"}, "did you mean 'token'"),
    ],
)
def test_wrong_arguments_of_adapters_say_what_is_allowed(arguments, message):
    with pytest.raises(InputError, match=message):
        SimpleAdapter(in_channels=4, out_channels=4, **arguments)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("num_conv", [1, 3])
@pytest.mark.parametrize(("into", "out"), [(4, 4), (6, 4), (4, 6)])
def test_an_identity_adapter_is_exactly_the_identity_on_common_channels(kernel_size, num_conv, into, out):
    arguments = {"in_channels": into, "out_channels": out, "num_conv": num_conv, "kernel_size": kernel_size}
    x = positive_map(into)
    y = SimpleAdapter(**arguments, init_identity=True).eval()(x)
    assert torch.equal(y[:, : min(into, out)], x[:, : min(into, out)])
    assert not y[:, into:].any()
    random = SimpleAdapter(**arguments).eval()(x)
    assert not torch.allclose(random[:, : min(into, out)], x[:, : min(into, out)], atol=1e-3)


def test_an_identity_adapter_with_a_stride_is_the_identity_at_every_second_position():
    x = positive_map(4)
    y = SimpleAdapter(in_channels=4, out_channels=4, num_conv=1, stride=2, init_identity=True).eval()(x)
    assert torch.equal(y, x[:, :, ::2, ::2])


@pytest.mark.parametrize(("into", "out"), [(4, 4), (6, 4)])
def test_a_linear_identity_adapter_only_normalises(into, out):
    x = torch.rand(2, 5, into)
    y = SimpleAdapter(
        in_channels=into, out_channels=out, num_fc=1, leading_norm=False, nonlinearity=False, init_identity=True
    )(x)
    assert torch.equal(y, nn.functional.layer_norm(x[..., :out], (out,)))


BLOCKS = products(norm_type=NORMS, stride=(1, 2), out_channels=(8, 12, 4), init_identity=(True, False))


@pytest.mark.parametrize("block", RESNET_BLOCKS)
@pytest.mark.parametrize("arguments", pairwise(BLOCKS), ids=str)
def test_resnet_blocks_reach_the_channels_and_divide_the_size(block, arguments):
    adapter = block(in_channels=8, **arguments)
    y = adapter(positive_map(8))
    side = 6 // arguments["stride"]
    assert y.shape == (2, arguments["out_channels"], side, side)
    y.sum().backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters())


@pytest.mark.parametrize("block", RESNET_BLOCKS)
@pytest.mark.parametrize("norm_type", NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_resnet_blocks_start_as_exactly_the_identity_and_random_ones_do_not(block, norm_type, training):
    x = positive_map(8)
    arguments = {"in_channels": 8, "out_channels": 8, "norm_type": norm_type}
    assert torch.equal(block(**arguments).train(training)(x), x)
    assert not torch.allclose(block(**arguments, init_identity=False).train(training)(x), x, atol=1e-3)


@pytest.mark.parametrize("block", RESNET_BLOCKS)
@pytest.mark.parametrize("out", [4, 12])
def test_resnet_blocks_start_as_the_identity_on_common_channels_in_evaluation_mode(block, out):
    x = positive_map(8)
    y = block(in_channels=8, out_channels=out).eval()(x)
    assert torch.equal(y[:, : min(8, out)], x[:, :out])
    assert not y[:, 8:].any()
    strided = block(in_channels=8, out_channels=8, stride=2).eval()(x)
    assert torch.equal(strided, x[:, :, ::2, ::2])


def test_a_bottleneck_takes_groups_widths_and_dilation():
    adapter = ResNetBottleneck(in_channels=8, out_channels=16, groups=2, base_width=128, dilation=2)
    assert (adapter.block.conv2.groups, adapter.block.conv2.dilation) == (2, (2, 2))
    assert adapter.block.conv2.out_channels == 16  # a quarter of 16, twice as wide, two groups
    assert adapter(positive_map(8)).shape == (2, 16, 6, 6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResNetBottleneck(in_channels=8, out_channels=10), "out_channels is 10; it must be a multiple of 4"),
        (lambda: VisionTransformerBlock(embed_dim=100), "num_heads is 6; it must divide embed_dim, which is 100"),
        (lambda: SwinTransformerBlock(num_heads=3, embed_dim=8), "num_heads is 3; it must divide embed_dim"),
    ],
)
def test_wrong_arguments_of_blocks_say_what_is_allowed(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_vit_blocks_keep_the_shape_of_both_kinds_of_sequences():
    block = VisionTransformerBlock(num_heads=2, embed_dim=8, mlp_ratio=3)
    assert block(torch.rand(2, 17, 8)).shape == (2, 17, 8)
    assert block.block.mlp.fc1.out_features == 24
    assert block.block.attn.qkv.bias is not None


@pytest.mark.parametrize("side", [14, 7, 5, 10])
@pytest.mark.parametrize("do_shift", [True, False])
def test_swin_blocks_keep_the_shape_of_any_map(side, do_shift):
    block = SwinTransformerBlock(num_heads=2, embed_dim=8, do_shift=do_shift)
    assert block(torch.rand(2, side, side, 8)).shape == (2, side, side, 8)


def changed_rows(block, row):
    """Rows of a map of 8 that change with one of them."""
    x = torch.rand(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[:, row] = other[:, row].flip(-1)
    with torch.no_grad():
        difference = (block(x) - block(other)).abs().amax(dim=(0, 2, 3))
    return [index for index, value in enumerate(difference.tolist()) if value > 1e-6]


def test_defect_do_shift_means_a_shifted_window():
    plain = SwinTransformerBlock(num_heads=2, embed_dim=8, window_size=4).eval()
    shifted = SwinTransformerBlock(num_heads=2, embed_dim=8, window_size=4, do_shift=True).eval()
    assert changed_rows(plain, 3) == [0, 1, 2, 3]
    assert changed_rows(shifted, 3) == [2, 3, 4, 5]


def test_defect_a_1x1_adapter_does_not_grow_the_map():
    adapter = SimpleAdapter(in_channels=4, out_channels=8, num_conv=2, kernel_size=1)
    assert adapter(positive_map(4)).shape == (2, 8, 6, 6)


def test_defect_convolutions_with_hidden_channels_reach_the_output_channels():
    for num_conv in (1, 2, 3):
        adapter = SimpleAdapter(in_channels=4, out_channels=8, hid_channels=6, num_conv=num_conv)
        widths = [layer.out_channels for layer in adapter.layers if isinstance(layer, nn.Conv2d)]
        assert widths == [6] * (num_conv - 1) + [8]
