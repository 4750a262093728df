"""How a study gives `stitchkit` a sampler or a teacher of its own, with the task that runs its steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

from stitchkit.training.samplers import SAMPLERS, Sampler
from studies.samplers.best_of import BestOf, BestOfTask
from studies.samplers.replay import Replay, ReplayTask
from studies.samplers.sandwich import Sandwich, SandwichTask

PLUG_INS: dict[str, tuple[type[Sampler], type[ReplayTask]]] = {
    "sandwich": (Sandwich, SandwichTask),
    "best_of": (BestOf, BestOfTask),
}
"""Samplers that train several routes in a step, or choose among them by its images; each needs a task."""


def task_of(sampler: str) -> type[ReplayTask]:
    """The task that runs the steps of a sampler."""
    return PLUG_INS[sampler][1] if sampler in PLUG_INS else ReplayTask


@contextmanager
def plugged_in(sampler: str, replay: Replay | None = None) -> Iterator[None]:
    """Let the recipes of a while name a sampler of the study too, and `replay` teach anchors."""
    kinds = {name: kind for name, (kind, _) in PLUG_INS.items()}
    task = partial(task_of(sampler), replay=replay)
    with patch.dict(SAMPLERS, kinds), patch("stitchkit.training.task.StitchTask", task):
        yield
