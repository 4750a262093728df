"""Training in the study, by the engine and the task of every other run, for as many steps as a budget allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from timm.task.distillation import DistillationTeacher
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from stitchkit.distributed import World
from stitchkit.engine.loop import Trainer
from stitchkit.networks.mode import unfused_attention
from stitchkit.networks.timm_model import as_timm
from stitchkit.settings.by_name import make_recipe
from stitchkit.settings.stitch_recipe import StitchRecipe
from stitchkit.training.features import FeatureLoss
from stitchkit.training.objective import objective_of
from stitchkit.training.optim import create_optimisation
from stitchkit.training.samplers import Sampler
from stitchkit.training.session import engine_settings
from stitchkit.training.task import StitchTask
from studies.evidence.images import Split, TrainingBatches, normalised
from studies.evidence.size import Size

_MEAN, _STD = (0.0,), (1.0,)
"""Images come normalised alike for student and teacher."""
_COUNTED = 2
"""Images of the step whose FLOPs are counted."""


@dataclass
class Spent:
    """What a row has spent on training.

    Args:
        flops: Multiply-adds.
        seconds: On this machine, with the evaluation excluded.
        images: Passes of an image.
    """

    flops: float = 0.0
    seconds: float = 0.0
    images: int = 0

    def add(self, other: Spent) -> None:
        """Add what was spent elsewhere."""
        self.flops, self.seconds, self.images = (
            self.flops + other.flops, self.seconds + other.seconds, self.images + other.images
        )  # fmt: skip


def train(
    network: nn.Module, split: Split, size: Size, *, budget: float, lr: float, seed: int, device: torch.device,
    spent: Spent, sampler: Sampler | None = None, teacher: nn.Module | None = None,
    settings: StitchRecipe | None = None, kind: type[StitchTask] = StitchTask, parts: int = 1,
    between: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Train a network for as many steps as fit a budget, and add up what they cost.

    Args:
        budget: Multiply-adds of all steps, with those of teachers.
        sampler: Draws the routes of each step; None for a plain network.
        teacher: Gives half of the loss.
        kind: The task that runs the steps.
        parts: Equal parts of the steps.
        between: Called after each part but the last; it may change what the sampler draws, so that the last part has
            as many steps as the rest of the budget pays for, but no more than the others.
    """
    settings = settings or StitchRecipe()
    world, began = World(0, 1, device), time.perf_counter()
    network.to(device)
    features = FeatureLoss(network, settings).term if settings.uses_features else None  # type: ignore[arg-type]
    objective = objective_of(
        nn.CrossEntropyLoss(label_smoothing=0.1), settings, teacher=_teacher(teacher, device), features=features,
        mean=_MEAN, std=_STD,
    )  # fmt: skip
    task = kind(network, objective, sampler=sampler, device=device)
    cost = step_cost(task, split, device)
    steps = -(-steps_within(budget / size.batch_size, cost, task.draw) // parts)
    recipe = make_recipe({
        "opt": "adamw", "weight_decay": 0.05, "lr": lr, "epochs": parts, "warmup_epochs": size.warmup * parts,
        "warmup_lr": 0.0, "sched_on_updates": True, "batch_size": size.batch_size, "seed": seed, "clip_grad": 1.0,
        "log_interval": max(1, steps // 4), **({"amp": True, "amp_dtype": "bfloat16"} if size.amp else {}),
    })  # fmt: skip
    loader = TrainingBatches(split, size.batch_size, steps, device)
    how = create_optimisation(network, recipe, batches=steps, ranks=1)
    trainer = Trainer(
        task=task, loader=loader, optimizer=how.optimizer, schedule=how.schedule, settings=engine_settings(recipe),
        world=world, folder=Path(),
    )  # fmt: skip
    trainer.start_at(0)
    used, last = 0.0, parts - 1
    for part in range(parts):
        if part:
            between()
        if part == last:
            first = trainer.steps(part).start
            fitting = steps_within((budget - used) / size.batch_size, cost, partial(_draw_from, task, first))
            trainer.settings = replace(trainer.settings, max_steps=first + fitting)
        used += size.batch_size * sum(cost(task.draw(step, 0)) for step in trainer.steps(part))
        trainer.train_epoch(part, parts)
    spent.flops += used
    spent.images += trainer.steps(last).stop * size.batch_size
    spent.seconds += time.perf_counter() - began


def _draw_from(task: StitchTask, first: int, step: int, rank: int) -> tuple[int, ...]:
    """The routes of a step, counted from the first one."""
    return task.draw(first + step, rank)


def _teacher(network: nn.Module | None, device: torch.device) -> DistillationTeacher | None:
    if network is None:
        return None
    teacher = as_timm(network.requires_grad_(False))
    teacher.pretrained_cfg = {**teacher.pretrained_cfg, "mean": _MEAN, "std": _STD}
    return DistillationTeacher(network, device=device)


def flop_counter() -> FlopCounterMode:
    """torch's counter, with a true count of the backward pass of grouped convolutions: it takes them for dense ones."""
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward})


def _convolution_backward(
    gradient: Sequence[int], x: Sequence[int], weight: Sequence[int], _bias: object, _stride: object, _padding: object,
    _dilation: object, transposed: bool, _output_padding: object, _groups: object, wanted: Sequence[bool], **_: object,
) -> int:  # fmt: skip
    """As much as the forward pass for the gradient of the input, and as much for that of the weight."""
    return sum(wanted[:2]) * conv_flop_count([*x], [*weight], [*gradient], transposed=transposed)


def step_cost(task: StitchTask, split: Split, device: torch.device) -> Callable[[tuple[int, ...]], float]:
    """What gives the multiply-adds of a training step with some routes, for one image.

    They are those of matrix products, forwards and backwards, with what teachers and the choice of routes take.
    """
    images, labels = normalised(split.images[:_COUNTED].to(device)), split.labels[:_COUNTED].to(device)
    known: dict[tuple[int, ...], float] = {}

    def cost(routes: tuple[int, ...]) -> float:
        if routes not in known:
            task.train()
            with unfused_attention(task), flop_counter() as counter:
                loss = task(images, labels, *routes)["loss"]
                loss.backward()
            task.zero_grad(set_to_none=True)
            known[routes] = counter.get_total_flops() / 2 / len(images)
        return known[routes]

    return cost


def steps_within(
    budget: float, cost: Callable[[tuple[int, ...]], float], draw: Callable[[int, int], tuple[int, ...]]
) -> int:
    """The number of steps whose costs add up to a budget at most, but at least one."""
    steps, total = 1, cost(draw(0, 0))
    while (total := total + cost(draw(steps, 0))) <= budget:
        steps += 1
    return steps
