"""The networks that a row offers; one of them meets each budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from stitchkit.measure.profile import Cost, Profiler, measure
from stitchkit.model.snnet import SNNet
from studies.evidence.size import Size


class Answered(NamedTuple):
    """The answers of some networks to images.

    Args:
        classes: `[networks, B]`.
        flops: What each answer cost, in multiply-adds, `[networks, B]`.
    """

    classes: torch.Tensor
    flops: torch.Tensor


@dataclass(frozen=True)
class Entrants:
    """Networks, each with a name and its parameters.

    Args:
        answer: The answers to images `[B, C, H, W]` of the networks with some numbers.
    """

    names: tuple[str, ...]
    params: tuple[int, ...]
    answer: Callable[[torch.Tensor, Sequence[int]], Answered]

    def __add__(self, other: Entrants) -> Entrants:
        """These, then the others."""
        first = len(self.names)

        def answer(images: torch.Tensor, numbers: Sequence[int]) -> Answered:
            assert [*numbers] == sorted(numbers), "answers come in the order of the networks"
            parts = [
                entrants.answer(images, some)
                for entrants, some in (
                    (self, [number for number in numbers if number < first]),
                    (other, [number - first for number in numbers if number >= first]),
                )
                if some
            ]
            return Answered(*(torch.cat(found) for found in zip(*parts, strict=True)))

        return Entrants(self.names + other.names, self.params + other.params, answer)


def cost_of(network: nn.Module, size: Size) -> Cost:
    """The cost of a plain network for one image."""
    return measure(network, torch.zeros(1, 1, size.side, size.side, device=next(network.parameters()).device))


def plain(networks: Mapping[str, nn.Module], size: Size) -> Entrants:
    """Networks by name."""
    nets = [network.eval() for network in networks.values()]
    costs = [cost_of(network, size) for network in nets]

    def answer(images: torch.Tensor, numbers: Sequence[int]) -> Answered:
        classes = torch.stack([nets[number](images).argmax(1) for number in numbers])
        return Answered(classes, _alike([costs[number].flops for number in numbers], classes))

    return Entrants((*networks,), tuple(cost.params for cost in costs), answer)


def stitches(model: SNNet) -> Entrants:
    """All stitches of an SN-Net."""
    model.eval()
    profiler, cfg_ids = Profiler(model), [*model.space.ids]
    costs = [profiler.cost(cfg_id) for cfg_id in cfg_ids]

    def answer(images: torch.Tensor, numbers: Sequence[int]) -> Answered:
        logits = model.forward_all(images, [cfg_ids[number] for number in numbers])
        classes = torch.stack([logits[cfg_ids[number]].argmax(1) for number in numbers])
        return Answered(classes, _alike([costs[number].flops for number in numbers], classes))

    return Entrants(tuple(str(model.space[one]) for one in cfg_ids), tuple(cost.params for cost in costs), answer)


def cascade(small: nn.Module, large: nn.Module, thresholds: Sequence[float], size: Size) -> Entrants:
    """The small network, and the large one where the small one's highest probability is under a threshold.

    Every image costs the small network, and those under the threshold also the large one.
    """
    costs = [cost_of(network.eval(), size) for network in (small, large)]
    params = costs[0].params + costs[1].params

    def answer(images: torch.Tensor, numbers: Sequence[int]) -> Answered:
        sure, first = small(images).softmax(1).max(1)
        second = large(images).argmax(1)
        unsure = torch.stack([sure < thresholds[number] for number in numbers])
        return Answered(torch.where(unsure, second, first), costs[0].flops + unsure * costs[1].flops)

    return Entrants(tuple(f"threshold {t:.3f}" for t in thresholds), (params,) * len(thresholds), answer)


def _alike(flops: Sequence[int], classes: torch.Tensor) -> torch.Tensor:
    """The same cost for every image."""
    return torch.tensor(flops, device=classes.device)[:, None].expand_as(classes)
