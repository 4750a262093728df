"""Layouts of tensors: read, printed, converted and resized as the publications do."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from stitchkit.errors import InputError
from stitchkit.networks.layout import NAMES, Layout, convert

IMAGE = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).reshape(2, 3, 4, 4)


def tokens(x):
    """`[B, C, H, W]` as a sequence, position by position."""
    return torch.stack([x[:, :, row, column] for row in range(x.shape[2]) for column in range(x.shape[3])], dim=1)


EXPECTED = {
    "img": IMAGE,
    "bhwc": torch.stack([IMAGE[:, channel] for channel in range(3)], dim=-1),
    "token": tokens(IMAGE),
    "bert": torch.cat([torch.zeros(2, 1, 3), tokens(IMAGE)], dim=1),
}


def to(x, source, target, class_token="zeros"):
    return convert(x, Layout.parse(source), Layout.parse(target), class_token=class_token)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("img", Layout("NCHW")),
        (["img", [64, 28, 30]], Layout("NCHW", 64, (28, 30))),
        (["img", [28, 30]], Layout("NCHW", None, (28, 30))),
        (["bhwc", (96, 56, 56)], Layout("NHWC", 96, (56, 56))),
        (["bert", [384, 196]], Layout("NLC", 384, (196,), 1)),
        (["bert", 196], Layout("NLC", None, (196,), 1)),
        (["token", [196]], Layout("NLC", None, (196,))),
        (["token", [256, 392]], Layout("NLC", 256, (392,))),
        (["vector", 10], Layout("vector", 10, ())),
        ("vector", Layout("vector")),
    ],
)
def test_published_formats_are_read(value, expected):
    assert Layout.parse(value) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("image", "unknown format 'image'; did you mean 'img'?"),
        (["imgs", [3, 4, 4]], "did you mean 'img'"),
        (["img", 14], r"size 14 does not suit img \[B, C, H, W\]; give \[C, H, W\] or \[H, W\]"),
        (["img", [14]], "does not suit img"),
        (["token", [3, 4, 4]], r"give \[C, L\] or L"),
        (["bert", "196"], "does not suit bert"),
        (["bert", [384, -1]], "does not suit bert"),
        (["bert", [384, True]], "does not suit bert"),
        (["vector", [3, 4]], "give N"),
        (["img", [3, 4, 4], 5], "is not a format"),
        (7, "7 is not a format"),
    ],
)
def test_other_formats_are_refused_with_what_is_allowed(value, message):
    with pytest.raises(InputError, match=message):
        Layout.parse(value)


def test_formats_print_as_they_are_written():
    for value in ("img", "img [3, 4, 5]", "img [4, 5]", "bert [384, 196]", "token [196]", "vector [10]"):
        kind, _, size = value.partition(" ")
        assert str(Layout.parse([kind, eval(size)] if size else kind)) == value


def test_a_tensor_knows_its_format_and_leaves_the_class_slot_out():
    assert NAMES["bert"].sized(torch.empty(2, 17, 5)) == Layout("NLC", 5, (16,), 1)
    assert NAMES["bhwc"].sized(torch.empty(2, 7, 8, 5)) == Layout("NHWC", 5, (7, 8))
    for name, layout in NAMES.items():
        with pytest.raises(InputError, match=rf"shape \[1, 1, 1, 1, 1\] is not {name}"):
            layout.sized(torch.empty(1, 1, 1, 1, 1))


@pytest.mark.parametrize(("source", "target"), list(itertools.product(("img", "bhwc", "token"), EXPECTED)))
def test_every_conversion_gives_every_position_its_channels(source, target):
    assert torch.equal(to(EXPECTED[source], source, target), EXPECTED[target])


@pytest.mark.parametrize(("source", "between"), list(itertools.product(("img", "bhwc", "token"), repeat=2)))
def test_conversions_go_there_and_back(source, between):
    x = EXPECTED[source]
    assert torch.equal(to(to(x, source, between), between, source), x)
    same_size = [between, [4, 4] if between in ("img", "bhwc") else 16]
    assert torch.equal(to(to(x, source, same_size), same_size, source), x)


@pytest.mark.parametrize("target", ["img", "bhwc", "token"])
def test_a_class_token_without_a_place_is_set_beside_every_position(target):
    bert = torch.cat([torch.tensor([[[7.0, 8, 9]], [[4.0, 5, 6]]]), EXPECTED["token"]], dim=1)
    beside = to(to(bert, "bert", target), target, "img")
    assert torch.equal(beside[:, :3], IMAGE)
    assert torch.equal(beside[:, 3:], bert[:, 0, :, None, None].expand(2, 3, 4, 4))


def test_a_class_token_is_zeros_ones_or_the_mean():
    for source in ("img", "bhwc", "token"):
        for name, expected in {"zeros": torch.zeros(2, 3), "ones": torch.ones(2, 3), "avg": IMAGE.mean((2, 3))}.items():
            bert = to(EXPECTED[source], source, "bert", name)
            assert torch.equal(bert[:, 0], expected)
            assert torch.equal(bert[:, 1:], EXPECTED["token"])
    with pytest.raises(InputError, match="unknown class_token 'mean'"):
        to(IMAGE, "img", "bert", "mean")


@pytest.mark.parametrize("source", ["img", "bhwc", "token"])
@pytest.mark.parametrize("target", ["img", "bhwc", "token", "bert"])
@pytest.mark.parametrize("side", [2, 7])
def test_other_sizes_are_resized_bilinearly(source, target, side):
    resized = F.interpolate(IMAGE, (side, side), mode="bilinear", align_corners=False)
    size = [3, side, side] if target in ("img", "bhwc") else [3, side * side]
    assert torch.allclose(to(EXPECTED[source], source, [target, size]), to(resized, "img", target))


def test_a_map_need_not_be_square():
    resized = F.interpolate(IMAGE, (2, 5), mode="bilinear", align_corners=False)
    assert torch.equal(to(IMAGE, "img", ["bhwc", [2, 5]]), to(resized, "img", "bhwc"))
    assert torch.equal(to(resized, "img", "token"), tokens(resized))


def test_a_sequence_that_is_resized_keeps_its_class_token():
    bert = to(IMAGE, "img", "bert", "avg")
    resized = to(bert, "bert", ["bert", [3, 49]])
    assert torch.equal(resized[:, 0], bert[:, 0])
    assert torch.equal(resized[:, 1:], to(IMAGE, "img", ["token", 49]))


def test_sequences_that_need_no_grid_may_have_any_length():
    x = torch.rand(2, 10, 3)
    assert to(x, "token", "bert").shape == (2, 11, 3)
    assert to(x, "token", ["token", [3, 10]]) is x
    assert to(to(x, "token", "bert"), "bert", "token").shape == (2, 10, 6)
    with pytest.raises(InputError, match=r"token \[3, 10\] has 10 tokens, which is not a perfect square"):
        to(x, "token", "img")
    with pytest.raises(InputError, match="10 tokens, which is not a perfect square"):
        to(to(x, "token", "bert"), "bert", "bhwc")
    with pytest.raises(InputError, match="10 tokens, which is not a perfect square"):
        to(x, "token", ["token", 16])
    with pytest.raises(InputError, match="15 tokens, which is not a perfect square"):
        to(IMAGE, "img", ["token", 15])


def test_a_vector_is_a_map_of_one_position():
    x = torch.rand(2, 3)
    assert torch.equal(to(x, "vector", "img"), x[:, :, None, None])
    assert torch.equal(to(x, "vector", "token"), x[:, None])
    assert torch.equal(to(x, "vector", "bert", "avg"), torch.stack([x, x], dim=1))
    for kind in ("img", "bhwc", "token"):
        assert torch.equal(to(to(x, "vector", kind), kind, "vector"), x)
    assert torch.allclose(to(x, "vector", ["img", [3, 2, 2]]), x[:, :, None, None].expand(2, 3, 2, 2))
    with pytest.raises(InputError, match=r"img \[3, 4, 4\] has more than one position and is not a vector; pool it"):
        to(IMAGE, "img", "vector")


def test_channels_that_differ_are_an_error_that_names_both():
    with pytest.raises(InputError, match=r"img \[3, 4, 4\] has 3 channels; bhwc \[5, 4, 4\] takes 5"):
        to(IMAGE, "img", ["bhwc", [5, 4, 4]])
    bert = to(IMAGE, "img", "bert")
    assert to(bert, "bert", ["img", [6, 4, 4]]).shape == (2, 6, 4, 4)
    with pytest.raises(InputError, match=r"has 3 channels and makes 6, its class token beside every position"):
        to(bert, "bert", ["img", [3, 4, 4]])


def test_gradients_flow_through_conversions():
    x = IMAGE.clone().requires_grad_()
    to(to(x, "img", ["bert", 49], "avg"), "bert", ["bhwc", [2, 2]]).sum().backward()
    assert x.grad.abs().sum() > 0
