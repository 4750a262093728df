"""Batch-norm statistics of single routes: all share the norms of an SN-Net, and each feeds them differently."""

from __future__ import annotations

import hashlib
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from stitchkit.model.heads.route_head import RouteHead
from stitchkit.networks.anchor import Anchor
from stitchkit.routes import Stitch, StitchSpace

Statistics = Mapping[str, torch.Tensor]
"""Running means and variances of batch norms, by their names in the SN-Net's `state_dict`."""

_Network = TypeVar("_Network", bound="RouteStatistics")
_KINDS = ("running_mean", "running_var")
_ADVICE = (
    "stitches run with the batch-norm statistics that all routes shared in training, and may be less accurate than "
    "with their own: keep the file that --eval writes beside the ledger, or call stitchkit.recalibrate(model, images)"
)


def batch_norms(net: nn.Module) -> list[_BatchNorm]:
    """The batch norms of a network that have running statistics."""
    return [part for part in net.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]


class RouteStatistics(nn.Module):
    """The part of an SN-Net that keeps batch-norm statistics of single routes.

    In evaluation mode, a route with statistics of its own runs with these, and every other with the shared ones.

    Attributes:
        keeps_statistics: Whether all routes are meant to run with the shared ones, as in published results.
        frozen_norms: Batch norms that keep the shared statistics in training.
        lacks_statistics: Whether the weights come from a training of all routes, so that those without statistics of
            their own deserve a warning.
    """

    space: StitchSpace
    views: dict[str, Anchor]
    route_head: RouteHead
    _statistics: Mapping[int, Statistics]
    _versions: list[tuple[nn.Parameter, int]]

    def __init__(self, *, keeps_statistics: bool = False):
        super().__init__()
        self.statistics = {}
        self.keeps_statistics = keeps_statistics
        self.frozen_norms: list[_BatchNorm] = []
        self.lacks_statistics = self._has_warned = False
        self.register_load_state_dict_post_hook(_drop_statistics)  # type: ignore[no-untyped-call]

    @abstractmethod
    def resolve(self, stitch: Stitch | int | None = None) -> Stitch:
        """The stitch for a stitch, a `cfg_id`, or None for the default one."""

    @property
    def statistics(self) -> Mapping[int, Statistics]:
        """The statistics of each route by `cfg_id`, for the present weights: other weights have none.

        A route that was found to do best with the shared ones has an empty entry.
        """
        # torch counts what changes a tensor in place, such as the step of an optimizer.
        if self._statistics and any(weight._version != version for weight, version in self._versions):
            self.statistics, self.lacks_statistics, self._has_warned = {}, True, False
        return self._statistics

    @statistics.setter
    def statistics(self, statistics: Mapping[int, Statistics]) -> None:
        self._statistics = statistics
        weights = (weight for weight in self.parameters() if not weight.is_inference())
        self._versions = [(weight, weight._version) for weight in weights] if statistics else []

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make a copy, whose weights count their changes anew."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.statistics = self._statistics

    def train(self: _Network, mode: bool = True) -> _Network:
        """Set the mode of all but frozen batch norms; training drops the statistics of single routes."""
        super().train(mode)
        if mode:
            self.drop_statistics()
        for norm in self.frozen_norms:
            norm.eval()
        return self

    def drop_statistics(self) -> None:
        """Forget the statistics of single routes, because the weights are about to change, or have changed."""
        self.statistics, self.lacks_statistics, self._has_warned = {}, False, False

    def has_statistics(self, cfg_id: int) -> bool:
        """Whether a route has statistics of its own that differ from the shared ones."""
        return bool(self.statistics.get(cfg_id))

    def norms_of(self, cfg_id: int) -> dict[str, _BatchNorm]:
        """The batch norms that a route shares with others, by their names; none for an uncut anchor."""
        if self.space[cfg_id].is_anchor and not self.route_head.is_shared:
            return {}
        names = {part: name for name, part in self.named_modules()}
        return {
            names[norm]: norm
            for step in self.route_head.steps(self.space[cfg_id])
            for norm in batch_norms(self.route_head.module_of(step))
        }

    @contextmanager
    def with_statistics(self, stitch: Stitch | int | None, *, even_in_training: bool = False) -> Iterator[None]:
        """Give the batch norms the statistics of a route for a while, if it has any.

        The norms are shared, so threads must not do this at the same time; networks of `extract` have their own.
        """
        if (self.training and not even_in_training) or not (self.statistics or self.lacks_statistics):
            yield
            return
        route = self.resolve(stitch)
        cfg_id = stitch if isinstance(stitch, int) else self.space.find(route)
        self.warn_of_shared_statistics([cfg_id], stacklevel=5)
        with holding(self, self.statistics.get(cfg_id, {})):
            yield

    def warn_of_shared_statistics(self, cfg_ids: Iterable[int], *, stacklevel: int) -> None:
        """Warn once if some of these routes should have statistics of their own, and have none."""
        statistics = self.statistics  # which may be those of other weights
        if not self.lacks_statistics or self._has_warned:
            return
        if any(cfg_id not in statistics and self.norms_of(cfg_id) for cfg_id in cfg_ids):
            self._has_warned = True
            warnings.warn(_ADVICE, stacklevel=stacklevel)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move and convert the statistics of routes as torch does its buffers."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.statistics = {
            cfg_id: {name: fn(value) for name, value in own.items()} for cfg_id, own in self.statistics.items()
        }
        return self


def _drop_statistics(model: nn.Module, _: object) -> None:
    """A hook: other weights have been loaded, and nothing says that all routes may share their statistics."""
    assert isinstance(model, RouteStatistics), "it registers the hook"
    model.drop_statistics()
    model.lacks_statistics = not model.keeps_statistics


@contextmanager
def holding(model: nn.Module, statistics: Statistics) -> Iterator[None]:
    """Give the batch norms of a network these statistics for a while; what they learn goes into these tensors."""
    before: list[tuple[dict[str, torch.Tensor | None], str, torch.Tensor | None]] = []
    for name in statistics:
        path, _, kind = name.rpartition(".")
        buffers = model.get_submodule(path)._buffers
        before.append((buffers, kind, buffers[kind]))
    try:
        for (buffers, kind, _), own in zip(before, statistics.values(), strict=True):
            buffers[kind] = own
        yield
    finally:
        for buffers, kind, shared in before:
            buffers[kind] = shared


def copied_statistics(norms: Mapping[str, _BatchNorm]) -> dict[str, torch.Tensor]:
    """A copy of the running statistics of norms."""
    return {f"{name}.{kind}": getattr(norm, kind).clone() for name, norm in norms.items() for kind in _KINDS}


def weights_digest(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the names and values of a network's weights, whatever their precision and the file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {[*value.shape]} ".encode())
        value = value.detach().cpu().contiguous().reshape(-1)
        value = value.bfloat16() if value.is_floating_point() else value
        digest.update(value.view(torch.uint8).numpy().data)
    return digest.hexdigest()
