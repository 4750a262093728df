"""Losses of dense prediction equal plain numpy, and stay finite where there is little to learn from."""

import numpy as np
import pytest
import torch

from stitchkit.tasks.depth import SigLoss
from stitchkit.tasks.segmentation import SegmentationLoss
from tests.resizing import bilinear

B, K, H, W = 4, 5, 9, 14


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def logits(*, auxiliary=2):
    sizes = [(5, 7), (9, 14), (18, 20)][: 1 + auxiliary]
    return [noise(B, K, *size, seed=seed).requires_grad_() for seed, size in enumerate(sizes)]


def depths(*, auxiliary=2):
    return [(output[:, :1].detach().exp() + 0.1).requires_grad_() for output in logits(auxiliary=auxiliary)]


def classes():
    masks = torch.randint(K, (B, H, W), generator=torch.Generator().manual_seed(3))
    masks[:, :2] = 255
    return masks


def true_depths():
    """Some are unknown: none, too far, not a number."""
    target = noise(B, H, W, seed=4).exp() * 3
    target[:, 0], target[:, 1, :5], target[0, 2, 0], target[0, 2, 1] = 0, 40, torch.nan, torch.inf
    return target


def plain_cross_entropy(output, masks):
    x, masks = bilinear(output, H, W), masks.numpy()
    share = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    known = np.argwhere(masks != 255)
    return -sum(np.log(share[b, masks[b, y, x], y, x]) for b, y, x in known) / masks.size


def begun(loss, *, warm):
    loss.begin(0 if warm else 100)
    return loss


def plain_sig(output, target, *, warm=False, farthest=10.0):
    x, t = bilinear(output, H, W)[:, 0], target.numpy().astype(np.float64)
    pairs = [(p, t) for p, t in zip(x.flat, t.flat, strict=True) if 1e-3 <= t <= farthest]
    g = np.array([np.log(p + 1e-3) - np.log(t + 1e-3) for p, t in pairs])
    variance = 0 if warm else g.var(ddof=1)
    return np.sqrt(variance + 0.15 * g.mean() ** 2)


def check(loss, outputs, expected):
    """The value, and that it teaches every output."""
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    for output in outputs:
        assert output.grad.isfinite().all()
        assert output.grad.any()


def weighed(losses, weight):
    return losses[0] + weight * sum(losses[1:])


@pytest.mark.parametrize(("auxiliary", "weight"), [(0, 0.4), (2, 0.4), (2, 1.5)])
def test_segmentation_equals_plain_numpy(auxiliary, weight):
    outputs, masks = logits(auxiliary=auxiliary), classes()
    expected = weighed([plain_cross_entropy(output.detach(), masks) for output in outputs], weight)
    loss = SegmentationLoss()
    loss.auxiliary_weight = weight
    check(loss(outputs, masks), outputs, expected)


@pytest.mark.parametrize("auxiliary", [0, 2])
@pytest.mark.parametrize(("warm", "farthest"), [(False, 10.0), (True, 10.0), (False, 3.0)])
def test_depth_equals_plain_numpy(warm, farthest, auxiliary):
    outputs, target = depths(auxiliary=auxiliary), true_depths()
    plain = [plain_sig(output.detach(), target, warm=warm, farthest=farthest) for output in outputs]
    check(begun(SigLoss(max_depth=farthest), warm=warm)(outputs, target), outputs, weighed(plain, 0.4))


def test_only_depth_has_warm_steps():
    outputs, masks = logits(), classes()
    assert (SegmentationLoss.warm_steps, SigLoss.warm_steps) == (0, 100)
    loss = SegmentationLoss()
    assert begun(loss, warm=True)(outputs, masks) == begun(loss, warm=False)(outputs, masks)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_of_outputs_is_not_that_of_the_loss(dtype):
    for make, loss, target in ((logits, SegmentationLoss(), classes()), (depths, SigLoss(), true_depths())):
        outputs = [output.detach().to(dtype) for output in make()]
        found = loss(outputs, target)
        assert found.dtype == torch.float32
        assert found == loss([output.float() for output in outputs], target)


@pytest.mark.parametrize("warm", [False, True])
def test_a_batch_of_which_nothing_is_known_teaches_nothing(warm):
    nothing = torch.zeros(B, H, W)
    for outputs, loss, target in ((logits(), SegmentationLoss(), nothing + 255), (depths(), SigLoss(), nothing)):
        found = begun(loss, warm=warm)(outputs, target)
        found.backward()
        assert found == 0
        assert all(output.grad is not None and not output.grad.any() for output in outputs)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("pixels", [1, 2, H * W])
def test_gradients_are_finite_for_few_pixels_and_for_right_depths(pixels, warm):
    output = depths(auxiliary=0)[0].detach()[:1, :, :1, :1].expand(1, 1, H, W).clone().requires_grad_()
    for factor in (1, 2):  # right, or wrong by the same factor everywhere, so that there is no variance
        target = torch.zeros(1, H, W)
        target.view(-1)[:pixels] = factor * output.detach().view(-1)[:pixels]
        output.grad = None
        loss = begun(SigLoss(), warm=warm)([output], target)
        loss.backward()
        assert loss.item() == pytest.approx(np.sqrt(0.15) * abs(np.log(factor)), abs=1e-3)
        assert output.grad.isfinite().all()
        assert bool(output.grad.any()) == (factor == 2)


def gradients(loss, output, target):
    """Of a batch, and the mean of those of its halves."""
    halves = []
    for part, known in zip(output.split(B // 2), target.split(B // 2), strict=True):
        halves.append(torch.autograd.grad(loss([part], known), output)[0])
    return torch.autograd.grad(loss([output], target), output)[0], sum(halves) / 2


def test_halves_of_a_batch_average_to_it():
    """Of cross-entropy always, so that ranks are one batch; of depths in the warm loss, if all err in one direction."""
    output, masks = logits(auxiliary=0)[0], classes()
    masks[0] = 255
    torch.testing.assert_close(*gradients(SegmentationLoss(), output, masks))

    near = depths(auxiliary=0)[0]
    far = torch.full((B, H, W), 9.0) - noise(H, W).abs()  # farther than all that is predicted
    torch.testing.assert_close(*gradients(begun(SigLoss(), warm=True), near, far))
    whole, halves = gradients(SigLoss(), near, far)
    assert not torch.allclose(whole, halves, rtol=0.1)
