"""Names of weights in the checkpoints of jobs, ours and published ones."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set

import torch
from torch import nn

from stitchkit.assembly.parts.part import Assembly, Part
from stitchkit.errors import InputError

# A job whose file has `model` wraps it here, but not in the published system; a plain model's file has neither wrapper.
_ROOTS = ("", "parts.0.", "parts.0.net.")
# The prefix of a pretrained part in a job.
_PRETRAINED = re.compile(r"(?:(?:parts\.\d+|head)\.)*net\.")


def network_names(network: Assembly, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights under the names of a job's network, given those of a checkpoint; names that suit nothing stay."""
    own = network.state_dict().keys()
    parts = {f"{place}.": part for place, part in network.named_modules() if isinstance(part, Part) and part.published}

    def named(root: str) -> dict[str, torch.Tensor]:
        found = {root + name: value for name, value in weights.items()}
        for place, part in parts.items():
            for old, new in part.published.items():
                before, after = place + old, place + new
                found = {
                    after + name.removeprefix(before) if name.startswith(before) and name not in own else name: value
                    for name, value in found.items()
                }
        return found

    return max(map(named, _ROOTS), key=lambda found: len(found.keys() & own))


def head_of(network: Assembly) -> str:
    """The beginning of the names of the weights of a job's head, which may be in an assembly that is its `model`."""
    place, whole = "", network
    while whole.head is None and len(whole.parts) == 1 and isinstance(inner := whole.parts[0], Assembly):
        place, whole = f"{place}parts.0.", inner
    if whole.head is None:
        raise InputError("load_from.head: the network has no head; name one file for the whole network")
    return f"{place}head."


def is_of_job(weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether the weights are those of a job with pretrained parts."""
    return any(map(_PRETRAINED.match, weights))


def model_names(
    model: nn.Module, piece: Set[str], weights: Mapping[str, torch.Tensor], path: str
) -> dict[str, torch.Tensor]:
    """Weights under the names of a model, given those of a job of which one part has all weights of a piece of it.

    The model's own weights stand in for those that the piece does not need. Parts are not combined: they may be of two
    networks with the same names.
    """
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in weights.items():
        if found := _PRETRAINED.match(name):
            parts.setdefault(found[0], {})[name.removeprefix(found[0])] = value
    own = model.state_dict()
    nearest = max(parts, key=lambda part: len(piece & parts[part].keys()))
    if missing := next((name for name in own if name in piece and name not in parts[nearest]), None):
        raise InputError(
            f"checkpoint '{path}' is of a job, none of whose parts has all weights of this one: "
            f"{nearest.removesuffix('.net.')} has no {missing}; begin and end it within one part of that job, or name "
            "a file of the whole model"
        )
    return {name: value for name, value in own.items() if name not in piece} | parts[nearest]
