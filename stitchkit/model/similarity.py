"""Similarity of two representations of the same images: linear CKA and its kin.

Activations are feature maps `[B, C, H, W]` or vectors `[B, D]`. Rows are compared: positions of maps, or images of
vectors. The larger of two maps is resized to the smaller; beside a vector, a map is averaged over its positions.
Resizing aligns corners, as in StitchNet, section 3.2.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator

import torch

from stitchkit.errors import InputError, unknown
from stitchkit.networks.layout import as_rows, resize

_ROUNDING = 8
"""Differences between features, in units of the last place, that count as rounding."""


def align(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two activations of the same images with the same rows: maps of one size, or vectors."""
    _check_comparable(x, y)
    if x.ndim == y.ndim == 4:
        size = common_size(x, y)
        return resize(x, size, align_corners=True), resize(y, size, align_corners=True)
    return pool(x), pool(y)


def _check_comparable(x: torch.Tensor, y: torch.Tensor) -> None:
    for value in (x, y):
        if value.ndim not in (2, 4):
            raise InputError(f"activations are {list(value.shape)}, neither [B, C, H, W] nor [B, D]; convert them")
    if len(x) != len(y):
        raise InputError(f"activations of {len(x)} and of {len(y)} images cannot be compared; give the same images")


def common_size(x: torch.Tensor, y: torch.Tensor) -> tuple[int, int]:
    """The size to compare two maps at: the smaller height and the smaller width."""
    return min(x.shape[2], y.shape[2]), min(x.shape[3], y.shape[3])


def pool(x: torch.Tensor) -> torch.Tensor:
    """Maps `[B, C, H, W]` averaged over their positions; vectors as they are."""
    return x.mean((2, 3)) if x.ndim == 4 else x


def sample(
    x: torch.Tensor, y: torch.Tensor, rows_per_channel: int | None, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two aligned activations, or a sample of them; resized maps are computed only at the sampled rows.

    Args:
        x: Maps `[B, C, H, W]` or vectors `[B, D]`.
        y: Of the same images.
        rows_per_channel: Number of rows to draw from maps per channel of the narrower one, the same from both. With any
            number, the wider of two vectors is cut to as many columns as the narrower has. By default, all are used.
        seed: Seed of the draw, which depends otherwise only on the numbers of rows or columns.

    Returns:
        Maps or vectors, or the drawn rows `[rows, C]`.

    Source: StitchNet, released code: 10 rows for each channel.
    """
    if rows_per_channel is None:
        return align(x, y)
    _check_comparable(x, y)
    narrow = min(x.shape[1], y.shape[1])
    if x.ndim == 2 or y.ndim == 2:
        x, y = align(x, y)
        return _columns(x, narrow, seed), _columns(y, narrow, seed)
    size = common_size(x, y)
    total = len(x) * size[0] * size[1]
    chosen = _draw(total, min(rows_per_channel * narrow, total), seed).to(x.device)
    return _rows_at(x, size, chosen), _rows_at(y, size, chosen)


def _rows_at(x: torch.Tensor, size: tuple[int, int], chosen: torch.Tensor) -> torch.Tensor:
    """Chosen rows `[rows, C]` of resized maps, equal to those of `resize` without computing the others."""
    image, position = chosen // (size[0] * size[1]), chosen % (size[0] * size[1])
    row, column = position // size[1], position % size[1]
    if x.shape[2:] == size:  # nothing to interpolate, to the last bit
        return x[image, :, row, column]
    top, bottom, down = _neighbours(row, x.shape[2], size[0])
    left, right, across = _neighbours(column, x.shape[3], size[1])
    upper, lower = (
        torch.lerp(x[image, :, line, left], x[image, :, line, right], across.to(x.dtype)) for line in (top, bottom)
    )
    return torch.lerp(upper, lower, down.to(x.dtype))


def _neighbours(places: torch.Tensor, before: int, after: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The two old places between which each new place lies, and its relative distance `[rows, 1]`."""
    # With aligned corners, the first and last places of both sides coincide: hence one less than the sizes.
    exact = places * ((before - 1) / max(after - 1, 1))
    low = exact.long().clamp_max(before - 1)
    return low, (low + 1).clamp_max(before - 1), (exact - low)[:, None]


def _columns(x: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    return x[:, _draw(x.shape[1], count, seed).to(x.device)] if count < x.shape[1] else x


def _draw(total: int, count: int, seed: int) -> torch.Tensor:
    # On the CPU whatever the device, so that a seed draws the same rows everywhere.
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count]


@torch.no_grad()
def linear_cka(x: torch.Tensor, y: torch.Tensor, *, rows_per_channel: int | None = None, seed: int = 0) -> float:
    """Linear centred kernel alignment, in [0, 1]: 1 if they differ only by rotation and scale.

    It is 0 with a warning if one of them is constant. Further arguments are those of `sample`.

    Source: StitchNet, section 3.1; Kornblith et al. 2019, equation 3.
    """
    x, y = sample(x, y, rows_per_channel, seed)
    return alignment(hsic(x, y), hsic(x, x), hsic(y, y))


def alignment(joint: float, own: float, other: float) -> float:
    """CKA from three values of HSIC; 0 with a warning if it is not a number."""
    product = own * other
    score = joint / math.sqrt(product) if product > 0 else math.nan
    return min(1.0, max(0.0, _number(score)))


def _number(score: float) -> float:
    """A score; if it is not finite, 0 with a warning."""
    if math.isfinite(score):
        return score
    warnings.warn("an activation is constant or not a number; its score is 0, the lowest", RuntimeWarning, stacklevel=3)
    return 0.0


@torch.no_grad()
def hsic(x: torch.Tensor, y: torch.Tensor) -> float:
    """Hilbert-Schmidt independence criterion of two aligned activations with linear kernels, without its factor.

    It is the squared norm of the centred `X^T Y`. It is computed image by image, or by kernels
    `[rows, rows]` if these are smaller. For an activation with itself it is 0 if the values vary only by rounding.
    """
    num_rows = x.numel() // x.shape[1]
    # Both ways give the same sum; the smaller matrix wins, because layers have up to 25,088 channels and few rows.
    if num_rows * (x.shape[1] + y.shape[1]) < x.shape[1] * y.shape[1]:
        kernel = centred_kernel(x)
        value = float((kernel * (kernel if y is x else centred_kernel(y))).sum())
    else:
        value = float(_cross(x, y, x.dtype).square().sum())
    # A constant activation varies only by rounding, and a score of that noise would be meaningless.
    return 0.0 if y is x and math.sqrt(value) <= _noise(x) else value


def _noise(x: torch.Tensor) -> float:
    """The energy about the mean that rounding gives a constant activation, for example by resizing."""
    relative = _ROUNDING * torch.finfo(x.dtype).eps
    return float(relative**2 * _mean(x).double().square().sum() * (x.numel() // x.shape[1]))


def _cross(x: torch.Tensor, y: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The centred `X^T Y` `[C, C']`, image by image in the requested precision, summed in float64."""
    # Products of one image are exact enough in float32; their sum over many images is not.
    total = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64, device=x.device)
    if y is x:
        for part in _portions(x, dtype):
            total += part @ part.T
    else:
        for part, other in zip(_portions(x, dtype), _portions(y, dtype), strict=True):
            total += part @ other.T
    return total


def centred_kernel(x: torch.Tensor) -> torch.Tensor:
    """The linear kernel `[rows, rows]` of the rows about their mean, in float64."""
    rows = as_rows(x).double()
    rows = rows - rows.mean(0)
    return rows @ rows.T


def _mean(x: torch.Tensor) -> torch.Tensor:
    """The mean row `[C]`, as the first row plus the mean distance from it, which is exactly 0 if all rows are equal."""
    first, count = (x[0] if x.ndim == 2 else x[0, :, 0, 0])[:, None], x.numel() // x.shape[1]
    images = [x.T] if x.ndim == 2 else x.flatten(2)
    distance = torch.stack([(image - first).sum(1).double() for image in images]).sum(0) / count
    return (first[:, 0].double() + distance).to(x.dtype)


def _portions(x: torch.Tensor, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """The rows about their mean as columns `[C, rows]`: image by image, or all of a matrix."""
    mean = _mean(x)[:, None].to(dtype)
    for part in [x.T] if x.ndim == 2 else x.flatten(2):
        yield part.to(dtype) - mean


@torch.no_grad()
def r2(x: torch.Tensor, y: torch.Tensor, *, rows_per_channel: int | None = None, seed: int = 0) -> float:
    """The share of the variance of `x` that linear regression on `y` explains, in [0, 1].

    Source: StitchNet, the published alternative; Kornblith et al. 2019, table 1.
    """
    x, y = sample(x, y, rows_per_channel, seed)
    if not all(_energy(value) > _noise(value) for value in (x, y)):  # constant but for rounding, or not finite
        return _number(math.nan)
    num_rows = y.numel() // y.shape[1]
    if num_rows < y.shape[1]:
        a, b = (rows - rows.mean(0) for rows in (as_rows(value).double() for value in (x, y)))
        # Fewer rows than channels: the kernel of the rows has the same non-zero eigenvalues, and is smaller.
        squares, vectors = torch.linalg.eigh(b @ b.T)
        parts, energy = (vectors.T @ a).square().sum(1), a.square().sum()
    else:
        squares, vectors = torch.linalg.eigh(_cross(y, y, torch.float64))
        parts = (vectors.T @ _cross(y, x, torch.float64)).square().sum(1) / squares.clamp_min(1e-300)
        energy = _energy(x)
    noise = max(num_rows, y.shape[1]) * torch.finfo(torch.float64).eps * squares[-1]
    return min(1.0, max(0.0, _number(float(parts[squares > noise].sum() / energy))))


def _energy(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([part.square().sum() for part in _portions(x, torch.float64)]).sum()


MEASURES: dict[str, Callable[..., float]] = {"cka": linear_cka, "r2": r2}
"""Scores by name; higher is better."""


def measure_by_name(name: str) -> Callable[..., float]:
    """A score by its name."""
    if name not in MEASURES:
        raise unknown("score", name, MEASURES)
    return MEASURES[name]
