"""Closed-form fit of the stitching layers by least squares, accumulated over any number of batches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from statistics import median

import torch
from torch.nn.functional import pad

from stitchkit.distributed import sum_over_ranks
from stitchkit.errors import InputError, unknown
from stitchkit.model.layer import StitchLayer
from stitchkit.model.onepass import in_portions
from stitchkit.model.snnet import SNNet
from stitchkit.networks.layout import Layout, as_rows
from stitchkit.networks.mode import evaluating
from stitchkit.routes import Joint

_FLOAT32_EPS = torch.finfo(torch.float32).eps
_FLOAT64_EPS = torch.finfo(torch.float64).eps
METHODS = ("truncated", "exact")

_Front = tuple[str, int, Layout]
"""What rows `x` depend on: label and block of the front, and the positions and prefix tokens of the end."""


class Gram:
    """Sums for least squares from `[x, 1]` to any target; their size does not depend on the number of rows.

    Args:
        width: Columns of `x`.
        device: Device of the sums, which are float64.
        intercept: Whether there is a column of ones; without it, `[x, 1]` below is `x`.
    """

    def __init__(self, width: int, device: torch.device, *, intercept: bool = True):
        size = width + intercept
        self.product = torch.zeros(size, size, dtype=torch.float64, device=device)
        self._intercept = intercept
        self._solver: torch.Tensor | None = None

    @property
    def num_rows(self) -> int:
        """Rows seen so far: the product of the column of ones with itself; 0 without an intercept."""
        return round(self.product[-1, -1].item()) if self._intercept else 0

    def add(self, x: torch.Tensor) -> None:
        """Add rows `[x, 1]` `[rows, width + 1]`."""
        self.product += x.T @ x
        self._solver = None

    def solve(self, cross: torch.Tensor, method: str = "truncated") -> torch.Tensor:
        """The map `[width + 1, out]`, given the sums of `[x, 1]^T y`.

        Args:
            cross: `[width + 1, out]`.
            method: `truncated`: minimum norm without the singular values under `max(rows, columns) x float32 eps` of
                the largest, as PyTorch's pseudo-inverse of the rows themselves; `exact`: without only those that are
                noise of float64; `rounded`: without those that are noise of features in float32, however many rows
                there are.

        Source: SN-Net, equation 4; the threshold of `truncated` is the released code's.
        """
        if self._solver is None:  # kept, because many joints leave the same block and share its sums
            squares, vectors = torch.linalg.eigh(self.product)
            squares = squares.clamp_min(0)  # rounding can make the smallest slightly negative
            # These are eigenvalues, so thresholds of singular values are squared. `rounded` does not grow with the
            # number of rows, because the rounding of features in float32 does not either.
            size = max(self.num_rows, len(squares))
            least = {
                "truncated": (size * _FLOAT32_EPS) ** 2,
                "rounded": (8 * _FLOAT32_EPS) ** 2,
                "exact": size * _FLOAT64_EPS,
            }[method]
            inverse = torch.where(squares > least * squares[-1], 1 / squares.clamp_min(1e-300), 0.0)
            self._solver = vectors * inverse @ vectors.T
        return self._solver @ cross


@dataclass
class _Target:
    """Sums for one joint: `[x, 1]^T y` and `y^T y` summed over columns; `front` says which `x`."""

    joint: Joint
    layer: StitchLayer
    front: _Front
    cross: torch.Tensor
    square: torch.Tensor

    def left_over(self, matrix: torch.Tensor, gram: Gram) -> float:
        """The share of the target's energy that a map does not reproduce."""
        left = self.square - 2 * (matrix * self.cross).sum() + (matrix * (gram.product @ matrix)).sum()
        return max(0.0, (left / self.square).item())  # the terms nearly cancel, and rounding may leave less than 0


@torch.no_grad()
def fit_stitching_layers(
    model: SNNet, batches: Iterable[torch.Tensor], *, method: str = "truncated"
) -> dict[Joint, float]:
    """Set every stitching layer to a linear map between the features it joins, fitted by least squares.

    The map goes from the output of the front block to the input of the end block. A layer of several joints takes the
    mean of their maps. Layers that only levels have are fitted too. Every rank may bring its own batches; the sums are
    added up.

    Args:
        model: An SN-Net; features are taken in evaluation mode, then its mode is restored.
        batches: Images `[B, C, H, W]`; each anchor runs once per batch, and memory does not grow with their number.
        method: `truncated`, the published one, or `exact`; see `Gram.solve`.

    Returns:
        For each joint, the share of the target's energy that its layer does not reproduce; 0 is best.

    Raises:
        InputError: If there is no image or no such method, or features are not finite.

    Source: SN-Net, section 3.2; equation 4.
    """
    if method not in METHODS:
        raise unknown("method of least squares", method, METHODS)
    grams: dict[_Front, Gram] = {}
    targets: list[_Target] = []
    device = next(model.parameters()).device
    for joint, layer in [
        *((joint, model.layer(joint)) for joint in model.space.layers),
        *model.level_layers.joined.items(),
    ]:
        front, end = layer.layouts
        left = (joint.front, joint.front_block, replace(end, channels=None))
        grams.setdefault(left, Gram(front.width, device))
        cross = torch.zeros(front.width + 1, end.width, dtype=torch.float64, device=device)
        targets.append(_Target(joint, layer, left, cross, torch.zeros((), dtype=torch.float64, device=device)))
    layouts = [boundary.layout for anchor in model.views.values() for boundary in anchor.boundaries]
    positions = round(median(prod(layout.positions or ()) for layout in layouts))
    with evaluating(model):
        for images in batches:
            for portion in in_portions(images.to(device), positions):
                _accumulate(model, portion, grams, targets)
    for (label, block, _), gram in grams.items():
        if not sum_over_ranks(gram.product).isfinite().all():
            raise InputError(f"the output of block {block} of '{label}' is not finite; check weights and images")
    if not next(iter(grams.values())).num_rows:
        raise InputError("stitching layers cannot be fitted without images; give at least one batch")
    return _apply(model, grams, targets, method)


def _accumulate(model: SNNet, images: torch.Tensor, grams: Mapping[_Front, Gram], targets: Sequence[_Target]) -> None:
    # Entry j of the features is the input of block j, so the output of a front block i is entry i + 1.
    fronts = {(label, block + 1) for label, block, _ in grams}
    ends = {(target.joint.end, target.joint.end_block) for target in targets}
    left, rows = {}, {}
    for label, anchor in model.views.items():
        last = max((entry for wanting, entry in fronts | ends if wanting == label), default=0)
        for entry, x in enumerate(anchor.features(images, until=last)):
            if (label, entry) in fronts:
                left[label, entry] = x
            if (label, entry) in ends:
                rows[label, entry] = as_rows(x, anchor.boundaries[entry].layout.channel_dim).double()
    for front, gram in grams.items():
        own = [target for target in targets if target.front == front]
        # A stitching layer resizes bilinearly, which commutes with its map: the map is fitted at the end's positions.
        fitted = own[0].layer.fit(left[front[0], front[1] + 1])
        x = pad(as_rows(fitted, front[2].channel_dim).double(), (0, 1), value=1.0)
        gram.add(x)
        for target in own:
            y = rows[target.joint.end, target.joint.end_block]
            target.cross += x.T @ y
            target.square += y.square().sum()


def _apply(model: SNNet, grams: Mapping[_Front, Gram], targets: Sequence[_Target], method: str) -> dict[Joint, float]:
    sharing: dict[StitchLayer, list[_Target]] = defaultdict(list)
    for target in targets:
        sharing[target.layer].append(target)
    residuals = dict[Joint, float]()
    for layer, own in sharing.items():
        maps = []
        for target in own:
            sum_over_ranks(target.cross)
            sum_over_ranks(target.square)
            maps.append(grams[target.front].solve(target.cross, method))
        mean = torch.stack(maps).mean(0)  # as published: the mean of the maps, not the map of all rows together
        layer.set_map(mean)
        residuals |= {
            target.joint: target.left_over(mean, grams[target.front])
            for target in own
            if target.joint in model.space.layers
        }
    return residuals
