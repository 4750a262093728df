"""The closed-form fit equals the pseudo-inverse of the rows, however they are batched."""

import numpy as np
import pytest
import torch

from stitchkit.errors import InputError
from stitchkit.model.onepass import LiveBytes
from stitchkit.model.solve import fit_stitching_layers
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
