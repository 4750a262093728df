"""StitchNet: networks composed of fragments of pretrained ones, guided by similarity, without training.

Source: StitchNet: Composing Neural Networks from Pre-Trained Fragments, arXiv 2301.01947.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, overload

import numpy as np
import torch

from stitchnet.data import image_folder, load_hf_dataset, stitching_images
from stitchnet.net import Net
from stitchnet.pool import Pool
from stitchnet.scores import Scores
from stitchnet.search import Search
from stitchnet.store import load

__all__ = ["Net", "Scores", "Search", "generate", "image_folder", "load", "load_hf_dataset", "stitching_images"]


@overload
def generate(
    data: np.ndarray | torch.Tensor | Pool, threshold: float = ..., totalThreshold: float = ..., maxDepth: int = ...,
    sample: Literal[False] = ..., K: int | None = ..., **options: Any,
) -> Iterator[tuple[float, Net]]: ...  # fmt: skip


@overload
def generate(
    data: np.ndarray | torch.Tensor | Pool, threshold: float = ..., totalThreshold: float = ..., maxDepth: int = ..., *,
    sample: Literal[True], K: int | None = ..., **options: Any,
) -> tuple[float, Net]: ...  # fmt: skip


def generate(
    data: np.ndarray | torch.Tensor | Pool,
    threshold: float = 0.9,
    totalThreshold: float = 0.5,
    maxDepth: int = 10,
    sample: bool = False,
    K: int | None = None,
    **options: Any,
) -> Iterator[tuple[float, Net]] | tuple[float, Net]:
    """Compose networks for some images: the published call.

    Args:
        data: The stitching images `[B, C, H, W]`, prepared as the networks want them; 32 are enough. Or the pool of a
            `Search`, to use its fragments again.
        threshold: A fragment is joined if the score is above it.
        totalThreshold: A composition is pruned if the product of its scores is below it.
        maxDepth: Fragments in a composition, at most.
        sample: Draw one composition.
        K: How many of the best next fragments are tried, at each step; all by default.
        options: Of `Search`, such as `nets=["resnet50", "vgg16"]`, `seed=1`, `order="best"`, `max_macs=2e9` or
            `scores=Scores("r2")`.

    Returns:
        Scores and networks, as they are found; with `sample` one score and network.

    Raises:
        InputError: If the images or options cannot be used, or nothing that was drawn reaches an end.

    Source: StitchNet, algorithm 1.
    """
    search = Search(data, threshold=threshold, total_threshold=totalThreshold, max_depth=maxDepth, width=K, **options)
    if not sample:
        return iter(search)
    composition = search.draw()
    return composition.score, search.build(composition)
