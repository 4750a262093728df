"""How a study gives `stitchkit` a sampler of its own, with the task that runs its steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from stitchkit.training.samplers import SAMPLERS, Sampler
from stitchkit.training.task import StitchTask
from studies.samplers.best_of import BestOf, BestOfTask
from studies.samplers.sandwich import Sandwich, SandwichTask

PLUG_INS: dict[str, tuple[type[Sampler], type[StitchTask]]] = {
    "sandwich": (Sandwich, SandwichTask),
    "best_of": (BestOf, BestOfTask),
}
"""Samplers that train several routes in a step, or choose among them by its images; each needs a task."""


def task_of(sampler: str) -> type[StitchTask]:
    """The task that runs the steps of a sampler."""
    return PLUG_INS[sampler][1] if sampler in PLUG_INS else StitchTask


@contextmanager
def plugged_in(sampler: str) -> Iterator[None]:
    """Let the recipes of a while name a sampler of the study, as well as the product's own."""
    kinds = {name: kind for name, (kind, _) in PLUG_INS.items()}
    with patch.dict(SAMPLERS, kinds), patch("stitchkit.training.task.StitchTask", task_of(sampler)):
        yield
