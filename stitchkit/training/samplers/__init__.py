"""Samplers: which route each step of a training trains. docs/samplers.md compares them and shows how to write one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

from stitchkit.errors import InputError, unknown
from stitchkit.settings.recipe import flag_of
from stitchkit.settings.stitch_recipe import StitchRecipe
from stitchkit.training.samplers.cost_bins import CostBins
from stitchkit.training.samplers.sampler import Sampler
from stitchkit.training.samplers.uniform import Uniform

__all__ = ["SAMPLERS", "Sampler", "check_sampler", "create_sampler"]

_logger = logging.getLogger(__name__)

SAMPLERS: dict[str, type[Sampler]] = {"uniform": Uniform, "cost_bins": CostBins}
"""The samplers by the name that the setting `sampler` gives them; one of your own is added here."""
_REMOVED = ("sandwich", "best_of", "importance")
"""Samplers of earlier versions, which checkpoints and settings files may name."""
_IN_PUBLISHED_FILES = ("flops_gap", "flops_sampling_k")
"""Options that a file may have although the command line chooses another sampler."""


def is_removed(name: object) -> bool:
    """Whether earlier versions had the sampler, and nothing has put it back."""
    return name in _REMOVED and name not in SAMPLERS


def check_sampler(settings: StitchRecipe) -> None:
    """Refuse an unknown sampler, and settings that it does not have."""
    name, default = settings.sampler, StitchRecipe()
    if is_removed(name):
        raise InputError(
            f"--sampler {name} was removed, since no table shows that it pays (studies/samplers has it); choose from "
            f"{', '.join(SAMPLERS)}"
        )
    if name not in SAMPLERS:
        raise unknown("value of --sampler", name, SAMPLERS)
    for option in sorted(set().union(*(sampler.options for sampler in SAMPLERS.values())) - SAMPLERS[name].options):
        if getattr(settings, option) != getattr(default, option):
            having = ", ".join(other for other, sampler in SAMPLERS.items() if option in sampler.options)
            said = f"{flag_of(option)} has no effect with --sampler {name}; choose from {having}"
            if option not in _IN_PUBLISHED_FILES:
                raise InputError(said)
            _logger.warning("%s", said)


def create_sampler(
    cfg_ids: Sequence[int], cost: Callable[[int], int], settings: StitchRecipe, seed: int, anchors: Collection[int]
) -> Sampler:
    """The sampler that the settings name, which have been checked; arguments as in `Sampler`."""
    return SAMPLERS[settings.sampler](cfg_ids, cost, settings, seed, anchors)
