"""The closed-form fit equals the pseudo-inverse of the rows, however they are batched."""

import numpy as np
import pytest
import torch

from stitchkit.errors import InputError
from stitchkit.model.onepass import LiveBytes
from stitchkit.model.solve import Gram, fit_stitching_layers
from stitchkit.routes import Joint
from tests.support import pico_images, pico_snnet


def reference_map(model, images, joint):
    """The published solution, straight from its description: the pseudo-inverse of all rows, truncated."""
    with torch.no_grad():
        x = model.views[joint.front].features(images)[joint.front_block + 1]
        y = model.views[joint.end].features(images)[joint.end_block]
    rows = np.concatenate([x.reshape(-1, x.shape[-1]), np.ones((x.shape[0] * x.shape[1], 1))], axis=1)
    cut = max(rows.shape) * np.finfo(np.float32).eps
    return torch.from_numpy(
        np.linalg.pinv(rows.astype(np.float64), rcond=cut) @ y.reshape(-1, y.shape[-1]).double().numpy()
    )


def test_layers_are_the_mean_of_the_published_solutions():
    model, images = pico_snnet(), pico_images(6)
    fit_stitching_layers(model, [images])
    by_layer = {}
    for joint, path in model.space.layers.items():
        by_layer.setdefault(path, []).append(joint)
    for joints in by_layer.values():
        expected = torch.stack([reference_map(model, images, joint) for joint in joints]).mean(0)
        layer = model.layer(joints[0]).transform
        torch.testing.assert_close(layer.weight.double(), expected[:-1].T, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(layer.bias.double(), expected[-1], atol=1e-4, rtol=1e-4)


def test_a_rank_deficient_front_gets_the_minimum_norm_map():
    """With fewer rows than columns the rows' null space must not enter the map."""
    model, images = pico_snnet(stitch_kernel_size=1), pico_images(1)  # 5 tokens, fewer than any width
    fit_stitching_layers(model, [images])
    for joint in model.space.layers:
        expected = reference_map(model, images, joint)
        torch.testing.assert_close(model.layer(joint).transform.weight.double(), expected[:-1].T, atol=1e-3, rtol=1e-3)


def test_batches_add_up():
    one, many, images = pico_snnet(), pico_snnet(), pico_images(6)
    fit_stitching_layers(one, [images])
    fit_stitching_layers(many, images.split(2))
    for a, b in zip(one.parameters(), many.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_residuals_are_the_energy_left_over():
    model, images = pico_snnet(stitch_kernel_size=1), pico_images(6)
    residuals = fit_stitching_layers(model, [images])
    joint = Joint("s", 2, "b", 2)
    with torch.no_grad():
        x = model.views["s"].features(images)[3]
        y = model.views["b"].features(images)[2]
        left = (model.layer(joint)(x) - y).square().sum() / y.square().sum()
    assert residuals[joint] == pytest.approx(left.item(), rel=1e-3)
    assert all(0 <= value <= 1 for value in residuals.values())


def test_residuals_are_those_of_the_layer_that_joints_share():
    model, images = pico_snnet(), pico_images(6)
    residuals = fit_stitching_layers(model, [images])
    for joint, residual in residuals.items():
        with torch.no_grad():
            y = model.views[joint.end].features(images)[joint.end_block]
            x = model.views[joint.front].features(images)[joint.front_block + 1]
            left = (model.layer(joint)(x) - y).square().sum() / y.square().sum()
        assert residual == pytest.approx(left.item(), rel=1e-3)


def test_damped_maps_are_smaller_and_fit_less():
    model, images = pico_snnet(stitch_kernel_size=1), pico_images(6)
    sizes, left = [], []
    for damping in (0.0, 1e-3, 1.0):
        residuals = fit_stitching_layers(model, [images], method="damped", damping=damping)
        left.append(sum(residuals.values()))
        sizes.append(sum(p.square().sum() for p in model.stitch_layers.parameters()).item())
    assert sizes == sorted(sizes, reverse=True)
    assert left == sorted(left)


def test_an_exact_map_fits_at_least_as_well_as_a_truncated_one():
    """Nearly dependent columns: truncation drops their difference, the exact solution uses it."""
    model, images = pico_snnet(stitch_kernel_size=1), pico_images(6)
    with torch.no_grad():
        block = model.views["ti"].blocks[0]
        block.register_forward_hook(lambda _, __, y: torch.cat([y[..., :-1], y[..., :1] + 1e-6 * y[..., -1:]], -1))
    joint = Joint("ti", 0, "s", 0)
    left = {method: fit_stitching_layers(model, [images], method=method)[joint] for method in ("truncated", "exact")}
    assert left["exact"] < left["truncated"] - 1e-4
    with pytest.raises(InputError, match="unknown method"):
        fit_stitching_layers(model, [images], method="best")


def test_what_is_kept_does_not_grow_with_the_images():
    model = pico_snnet()

    def peak(count):
        with LiveBytes() as live:
            fit_stitching_layers(model, (pico_images(4) for _ in range(count // 4)))
        return live.peak

    assert peak(64) <= 1.1 * peak(8)


def test_the_fit_is_better_than_chance_and_keeps_mode_and_anchors():
    model, images = pico_snnet().train(), pico_images(8)
    before = {name: value.clone() for name, value in model.anchors.named_parameters()}
    fit_stitching_layers(model, [images])
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.anchors.named_parameters())


def test_no_image_is_an_error():
    with pytest.raises(InputError, match="without images"):
        fit_stitching_layers(pico_snnet(), [])


def test_features_that_are_not_finite_are_an_error():
    with pytest.raises(InputError, match="the output of block 0 of 'ti' is not finite"):
        fit_stitching_layers(pico_snnet(), [torch.full((2, 3, 16, 16), torch.nan)])


def gram_of(x, y):
    rows = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    gram = Gram(x.shape[1], x.device)
    gram.add(rows)
    return gram, rows.T @ y


@pytest.mark.parametrize(("into", "out"), [(5, 5), (3, 6), (6, 3)])
def test_procrustes_finds_a_turn_with_scale_and_shift(into, out):
    generator = torch.Generator().manual_seed(0)
    x, free = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((50, into), (into, out)))
    u, _, v = torch.linalg.svd(free, full_matrices=False)
    if into > out:
        x = (x @ (u @ u.T)) + 0.5  # what a map into fewer channels can keep
    wanted = torch.cat([1.7 * u @ v, torch.arange(out, dtype=torch.float64)[None]])
    gram, cross = gram_of(x, x @ wanted[:-1] + wanted[-1])
    torch.testing.assert_close(gram.solve(cross, "procrustes"), wanted)


def test_procrustes_keeps_angles_and_fits_less_than_least_squares():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(50, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    gram, cross = gram_of(x, y)
    turn = gram.solve(cross, "procrustes")[:-1]
    square = turn @ turn.T
    torch.testing.assert_close(square, square[0, 0] * torch.eye(4, dtype=torch.float64))
    left = [
        (x @ found[:-1] + found[-1] - y).square().sum()
        for found in (gram.solve(cross, method) for method in ("exact", "procrustes"))
    ]
    assert left[0] < left[1] < (y - y.mean(0)).square().sum()


@pytest.mark.parametrize(("into", "out"), [(4, 4), (3, 6), (6, 3)])
def test_procrustes_is_the_orthonormal_factor_of_the_cross_covariance_with_the_best_scale_and_bias(into, out):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(50, width, generator=generator, dtype=torch.float64) for width in (into, out))
    x *= torch.arange(1, into + 1)  # no direction like another
    gram, cross = gram_of(x, y)
    found = gram.solve(cross, "procrustes")
    turn = found[:-1] / torch.linalg.matrix_norm(found[:-1], 2)
    covariance = (x - x.mean(0)).T @ (y - y.mean(0))
    square = turn @ turn.T if into <= out else turn.T @ turn
    torch.testing.assert_close(square, torch.eye(min(into, out), dtype=torch.float64))
    stretch = turn.T @ covariance  # the other factor: symmetric, without negative eigenvalues
    torch.testing.assert_close(stretch, stretch.T)
    assert torch.linalg.eigvalsh(stretch).min() > -1e-9

    def left(matrix):
        """What is left of the centred target by the best scale of a map."""
        moved, wanted = (x - x.mean(0)) @ matrix, y - y.mean(0)
        return wanted.square().sum() - (moved * wanted).sum() ** 2 / moved.square().sum()

    torch.testing.assert_close((x @ found[:-1] + found[-1] - y).square().sum(), left(turn))
    near = (turn + 0.1 * torch.randn(into, out, generator=generator, dtype=torch.float64) for _ in range(100))
    factors = (torch.linalg.svd(matrix, full_matrices=False) for matrix in near)
    assert all(left(turn) <= left(u @ v) for u, _, v in factors) == (into <= out), (
        "into fewer columns, others fit better"
    )


def test_procrustes_of_features_that_never_change_is_their_shift():
    gram, cross = gram_of(torch.ones(5, 3, dtype=torch.float64), torch.full((5, 2), 4.0, dtype=torch.float64))
    found = gram.solve(cross, "procrustes")
    torch.testing.assert_close(torch.ones(4, dtype=torch.float64) @ found, torch.full((2,), 4.0, dtype=torch.float64))
