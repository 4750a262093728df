"""Bilinear resizing in numpy, beside torch's."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def bilinear(maps: ArrayLike, height: int, width: int, *, has_corners_aligned: bool = False) -> NDArray[np.float64]:
    """Maps `[..., H, W]` at another size."""
    x = np.asarray(maps, dtype=np.float64)
    rows, columns = (
        _weights(now, size, has_corners_aligned) for now, size in zip(x.shape[-2:], (height, width), strict=True)
    )
    resized: NDArray[np.float64] = np.einsum("yh,...hw,xw->...yx", rows, x, columns)
    return resized


def _weights(now: int, size: int, has_corners_aligned: bool) -> NDArray[np.float64]:
    """The share of each old position in each new one, `[size, now]`."""
    places = np.linspace(0, now - 1, size) if has_corners_aligned else (np.arange(size) + 0.5) * now / size - 0.5
    return np.stack([np.interp(places, np.arange(now), one) for one in np.eye(now)], 1)
