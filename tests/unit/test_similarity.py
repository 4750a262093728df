"""Scores of similarity: equal to their plain definitions, bounded, sampled by a seed, safe with constants."""

import inspect

import pytest
import torch

from stitchkit.errors import InputError
from stitchkit.model.similarity import MEASURES, align, linear_cka, measure_by_name, r2, sample
from stitchkit.networks.layout import as_rows


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_cka(x, y):
    """By kernels `[rows, rows]` and a centring matrix, as CKA is defined."""
    x, y = x.double(), y.double()
    count = len(x)
    centre = torch.eye(count, dtype=torch.float64) - 1 / count

    def hsic(k, m):
        return torch.trace(k @ centre @ m @ centre) / (count - 1) ** 2

    k, m = x @ x.T, y @ y.T
    return (hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()).item()


SHAPES = [
    ((6, 5, 4, 4), (6, 7, 4, 4)),
    ((6, 5, 8, 8), (6, 7, 3, 3)),
    ((6, 5, 3, 3), (6, 7, 8, 8)),
    ((4, 60, 1, 1), (4, 70, 2, 2)),  # fewer rows than features: by kernels
    ((9, 5), (9, 40)),
    ((9, 50), (9, 40)),
    ((9, 5, 4, 4), (9, 30)),
    ((9, 30), (9, 5, 4, 4)),
]


@pytest.mark.parametrize(("first", "second"), SHAPES)
def test_cka_equals_its_plain_definition_and_lies_in_bounds(first, second):
    x, y = noise(*first) + 3, noise(*second, seed=1) + noise(first[0], *[1] * (len(second) - 1), seed=2)
    a, b = align(x, y)
    assert linear_cka(x, y) == pytest.approx(plain_cka(as_rows(a), as_rows(b)), abs=1e-5)
    assert 0 < linear_cka(x, y) <= 1
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x), abs=1e-6)


def test_maps_are_resized_as_published():
    x, y = noise(3, 4, 9, 9), noise(3, 5, 4, 4, seed=1)
    smaller = torch.nn.UpsamplingBilinear2d((4, 4))(x)
    torch.testing.assert_close(align(x, y)[0], smaller)
    torch.testing.assert_close(align(y, x)[1], smaller)


@pytest.mark.parametrize("name", MEASURES)
def test_what_is_equal_scores_one(name):
    x = noise(20, 6, 3, 3)
    assert measure_by_name(name)(x, x) == pytest.approx(1, abs=1e-5)


def test_rotation_and_scale_do_not_matter():
    x = noise(20, 6)
    rotation = torch.linalg.qr(noise(6, 6, seed=1))[0]
    assert linear_cka(x, 5 * x @ rotation + 2) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("first", "second"), [((30, 6), (30, 4)), ((3, 6, 5, 5), (3, 4, 5, 5)), ((8, 6), (8, 5))])
def test_r2_equals_least_squares(first, second):
    x, y = noise(*first) + 1, noise(*second, seed=1)
    y = y + x[:, : y.shape[1]]
    a, b = as_rows(x).double(), as_rows(y).double()
    centred = [value - value.mean(0) for value in (a, b)]
    left = centred[0] - centred[1] @ torch.linalg.lstsq(centred[1], centred[0]).solution
    assert r2(x, y) == pytest.approx(1 - (left.square().sum() / centred[0].square().sum()).item(), abs=1e-6)


def test_few_rows_explain_all():
    assert r2(noise(4, 3, seed=1), noise(4, 9)) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", MEASURES)
def test_a_constant_activation_scores_lowest_with_a_warning(name):
    x, y = noise(8, 4), torch.ones(8, 4)
    if name == "r2":  # what is explained is constant
        x, y = y, x
    with pytest.warns(RuntimeWarning, match="constant"):
        assert measure_by_name(name)(x, y) == 0


def test_what_is_not_finite_explains_nothing():
    with pytest.warns(RuntimeWarning):
        assert r2(torch.full((8, 4), torch.nan), noise(8, 4)) == 0


@pytest.mark.parametrize("name", ["cka", "r2"])
@pytest.mark.parametrize("rows", [None, 10])
def test_a_constant_that_was_resized_scores_lowest_with_a_warning(name, rows):
    constant = (noise(1, 4, 1, 1) * 3).expand(8, 4, 8, 8)
    for pair in ((constant, noise(8, 4, 5, 5)), (noise(8, 4, 5, 5), constant)):
        with pytest.warns(RuntimeWarning, match="constant"):
            assert measure_by_name(name)(*pair, rows_per_channel=rows) == 0


def test_small_differences_about_a_large_mean_are_not_noise():
    x = noise(8, 4, 6, 6)
    assert linear_cka(x * 1e-3 + 1, x) == pytest.approx(linear_cka(x, x), abs=1e-3)
    precise = x.double() * 1e-7 + 1
    assert linear_cka(precise, x.double()) == pytest.approx(1, abs=1e-3)


def test_maps_of_any_shape_are_compared_alike_both_ways():
    x, y = noise(6, 4, 6, 3), noise(6, 5, 6, 9, seed=1)
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x), abs=1e-6)
    assert [value.shape[2:] for value in align(x, y)] == [(6, 3), (6, 3)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_scores_lowest_with_a_warning(value):
    x = noise(8, 4, 2, 2)
    x[0, 0, 0, 0] = value
    with pytest.warns(RuntimeWarning, match="not a number"):
        assert linear_cka(x, noise(8, 4, 2, 2, seed=1)) == 0


def test_a_sample_of_rows_is_the_same_of_both_and_follows_the_seed():
    x, y = noise(4, 3, 6, 6), noise(4, 2, 6, 6, seed=1)
    a, b = sample(x, y, 10, seed=5)
    assert a.shape == (20, 3)
    assert b.shape == (20, 2)
    rows = as_rows(torch.cat([x, y], 1))
    assert all((rows == torch.cat([one, other])).all(1).sum() == 1 for one, other in zip(a, b, strict=True))
    assert linear_cka(x, y, rows_per_channel=10, seed=5) == linear_cka(x, y, rows_per_channel=10, seed=5)
    assert linear_cka(x, y, rows_per_channel=10, seed=5) != linear_cka(x, y, rows_per_channel=10, seed=6)
    assert linear_cka(x, y, rows_per_channel=1000) == pytest.approx(linear_cka(x, y), abs=1e-6)


@pytest.mark.parametrize("size", [(6, 6), (5, 7), (1, 1), (3, 9), (13, 2)])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_sample_of_resized_maps_is_one_of_their_rows(size, swapped):
    x, y = noise(4, 3, 7, 9), noise(4, 5, *size, seed=1)
    x, y = (y, x) if swapped else (x, y)
    aligned = align(x, y)
    for part, whole in zip(sample(x, y, 2, seed=3), sample(*aligned, 2, seed=3), strict=True):
        torch.testing.assert_close(part, whole, atol=1e-5, rtol=0)
    everything = sample(x, y, 1000, seed=3)
    assert {len(part) for part in everything} == {as_rows(aligned[0]).shape[0]}


def test_a_sample_of_vectors_is_one_of_columns():
    a, b = sample(noise(4, 30), noise(4, 7, seed=1), 10, seed=0)
    assert a.shape == b.shape == (4, 7)


def test_bad_input():
    with pytest.raises(InputError, match="neither"):
        linear_cka(noise(4, 3, 2), noise(4, 3))
    with pytest.raises(InputError, match="same images"):
        linear_cka(noise(4, 3), noise(5, 3))
    with pytest.raises(InputError, match="did you mean 'cka'"):
        measure_by_name("ckaa")


def test_help_shows_all_arguments_of_a_measure():
    assert list(inspect.signature(linear_cka).parameters) == ["x", "y", "rows_per_channel", "seed"]
    assert linear_cka.__name__ == "linear_cka"
    assert linear_cka.__doc__.startswith("Linear centred kernel alignment")
