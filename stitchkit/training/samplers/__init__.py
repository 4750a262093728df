"""Samplers: which routes each step of a training trains. docs/samplers.md compares them and shows how to write one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stitchkit.errors import unknown
from stitchkit.settings.stitch_recipe import StitchRecipe
from stitchkit.training.samplers.best_of import BestOf
from stitchkit.training.samplers.cost_bins import CostBins
from stitchkit.training.samplers.importance import Importance
from stitchkit.training.samplers.sampler import Sampler
from stitchkit.training.samplers.sandwich import Sandwich
from stitchkit.training.samplers.uniform import Uniform

__all__ = ["SAMPLERS", "Sampler", "create_sampler", "sampler_class"]

SAMPLERS: dict[str, type[Sampler]] = {
    "uniform": Uniform,
    "cost_bins": CostBins,
    "sandwich": Sandwich,
    "best_of": BestOf,
    "importance": Importance,
}
"""The samplers by the name that the setting `sampler` gives them; one of your own is added here."""


def sampler_class(name: str) -> type[Sampler]:
    """The sampler of this name.

    Raises:
        InputError: If there is none.
    """
    if name not in SAMPLERS:
        raise unknown("value of --sampler", name, SAMPLERS)
    return SAMPLERS[name]


def create_sampler(cfg_ids: Sequence[int], cost: Callable[[int], int], settings: StitchRecipe, seed: int) -> Sampler:
    """The sampler that the settings name; arguments as in `Sampler`."""
    return sampler_class(settings.sampler)(cfg_ids, cost, settings, seed)
