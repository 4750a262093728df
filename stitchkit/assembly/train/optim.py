"""Optimizer, schedule and losses by their names in torch."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler as schedulers

from stitchkit.assembly.config.job_settings import OPTIMIZER_FLAGS
from stitchkit.assembly.config.settings import TrainConfig
from stitchkit.errors import InputError, one_line, unknown
from stitchkit.settings.schema import flag_of

Loss: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Cadence = Literal["epochs", "steps"]

_REFUSED = {
    "LBFGS": "it computes the loss several times per step, which jobs do not support",
    "SparseAdam": "it accepts only sparse gradients, which no part has",
}

# Prefixes that torch's names may have in a file.
_PREFIXES = {
    **dict.fromkeys(("loss", "metric"), ("torch.nn.functional.", "nn.functional.", "F.")),
    "optimizer": ("torch.optim.", "optim."),
    "schedule": ("torch.optim.lr_scheduler.", "optim.lr_scheduler.", "lr_scheduler."),
}


def _subclasses(module: types.ModuleType, base: type) -> dict[str, Callable[..., Any]]:
    """A module's classes by name: torch's own names, not a fixed list, so that a job can use those of a newer torch."""
    kinds = {name: kind for name, kind in vars(module).items() if isinstance(kind, type) and issubclass(kind, base)}
    return {name: kind for name, kind in kinds.items() if kind is not base and name not in _REFUSED and name[0] != "_"}


OPTIMIZERS = _subclasses(torch.optim, torch.optim.Optimizer)
SCHEDULERS = _subclasses(schedulers, schedulers.LRScheduler)
# A loss compares with a target; the rest of torch.nn.functional has no such argument.
LOSSES = {
    name: function
    for name, function in vars(F).items()
    if isinstance(function, types.FunctionType)
    and "target" in inspect.signature(function).parameters
    and not name.startswith("_")
}


def named(kind: str, name: str, known: Collection[str], where: str) -> str:
    """The bare name of an object in torch; a file may prefix its module, as the published ones do."""
    bare = name.removeprefix(next(filter(name.startswith, _PREFIXES[kind]), ""))
    if bare not in known:
        raise InputError(f"{where}: {unknown(kind, bare, known)}")
    return bare


def create_loss(name: str, arguments: Mapping[str, object], where: str, device: torch.device | None = None) -> Loss:
    """A loss of outputs and labels: a function of `torch.nn.functional` with its further arguments.

    Errors begin with `where` the task is in the file; arguments that are lists become tensors on the `device`.
    """
    loss = LOSSES[named("loss", name, LOSSES, f"{where}.loss_fn")]
    try:
        lists = {key: value for key, value in arguments.items() if isinstance(value, list)}
        tensors = {key: torch.tensor(value, device=device) for key, value in lists.items()}
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{where}.loss_fn_args: {one_line(error)}; lists must contain numbers") from error
    return partial(loss, **{**arguments, **tensors})


def create_optimizer(train: TrainConfig, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a job, for the parameters that train."""
    where = "train_config.optimizer"
    if reason := _REFUSED.get(train.optimizer.rpartition(".")[2]):
        raise InputError(f"{where} is {train.optimizer}, which cannot train a job: {reason}; use AdamW or SGD")
    name = named("optimizer", train.optimizer, OPTIMIZERS, where)
    odd = next((parameter for parameter in parameters if parameter.ndim != 2), None)
    if name == "Muon" and odd is not None:  # torch's own error does not say what to do
        raise InputError(
            f"{where} is Muon, which trains only matrices, and this network also trains weights of shape "
            f"{list(odd.shape)}; use AdamW or SGD"
        )
    known = list(inspect.signature(OPTIMIZERS[name]).parameters)[1:]
    if stray := next((key for key in train.optimizer_args if key not in known), None):
        flag = f", or {flag_of(stray)}" if stray in OPTIMIZER_FLAGS else ""
        raise InputError(f"{where}_args.{stray}{flag}: {unknown(f'argument of {name}', stray, known)}")
    try:
        optimizer: torch.optim.Optimizer = OPTIMIZERS[name](parameters, **train.optimizer_args)
    except Exception as error:  # optimizers raise many types
        raise InputError(
            f"{where}_args: {name} rejects them: {one_line(error)}; torch.optim.{name} documents what it takes"
        ) from error
    return optimizer


class JobSchedule:
    """One of torch's learning-rate schedules, which advances with every step or every epoch."""

    def __init__(self, scheduler: schedulers.LRScheduler, cadence: Cadence):
        self.scheduler = scheduler
        self.cadence = cadence
        self._done = 0

    def step_update(self, steps: int) -> None:
        """Advance to the state after this number of steps."""
        if self.cadence == "steps":
            self._advance_to(steps, 0.0)

    def step(self, epochs: int, loss: float | None = None) -> None:
        """Advance to the state after this number of epochs; `loss` is the mean of the last one."""
        if self.cadence == "epochs":
            self._advance_to(epochs, loss or 0.0)

    def _advance_to(self, count: int, loss: float) -> None:
        # One by one: torch's schedules compute each rate from the previous one, so they cannot jump.
        while self._done < count:
            if isinstance(self.scheduler, schedulers.ReduceLROnPlateau):
                self.scheduler.step(loss)
            else:
                self.scheduler.step()
            self._done += 1

    def state_dict(self) -> dict[str, Any]:
        """Its state as plain data."""
        return {"done": self._done, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore its state."""
        self._done = state["done"]
        self.scheduler.load_state_dict(state["scheduler"])


_MADE_OF_OTHERS = ("SequentialLR", "ChainedScheduler", "ReduceLROnPlateau")


def create_schedule(train: TrainConfig, optimizer: torch.optim.Optimizer) -> JobSchedule | None:
    """The learning-rate schedule of a job; None keeps the rate, as does the published `DummyScheduler`."""
    if train.lr_scheduler in (None, "DummyScheduler"):
        return None
    arguments = dict(train.lr_scheduler_args)
    cadence = arguments.pop("cadence", "epochs")
    where = "train_config.lr_scheduler_args"
    if cadence != "epochs" and cadence != "steps":
        raise InputError(f"{where}.cadence: {unknown('cadence', str(cadence), ('epochs', 'steps'))}")
    schedule = JobSchedule(_create(train.lr_scheduler, arguments, optimizer, "train_config"), cadence)
    if cadence == "steps" and isinstance(schedule.scheduler, schedulers.ReduceLROnPlateau):
        raise InputError(f"{where}.cadence is steps; ReduceLROnPlateau needs epochs, whose loss it uses")
    return schedule


def _create(
    name: object, arguments: Mapping[str, object], optimizer: torch.optim.Optimizer, where: str
) -> schedulers.LRScheduler:
    name = named("schedule", str(name), SCHEDULERS, f"{where}.lr_scheduler")
    arguments, where = dict(arguments), f"{where}.lr_scheduler_args"
    # JobSchedule advances only the outermost schedule, which advances its parts.
    if "cadence" in arguments:
        raise InputError(f"{where}.cadence: all parts of a schedule share it; set it on the outermost")
    parts = arguments.get("schedulers")
    if parts is not None:
        arguments["schedulers"] = _create_parts(parts, optimizer, f"{where}.schedulers")
    try:
        schedule: schedulers.LRScheduler = SCHEDULERS[name](optimizer=optimizer, **arguments)
    except Exception as error:  # schedules raise many types
        raise InputError(
            f"{where}: {name} rejects them: {one_line(error)}; torch.optim.lr_scheduler.{name} documents what it takes"
        ) from error
    return schedule


def _create_parts(parts: object, optimizer: torch.optim.Optimizer, where: str) -> list[schedulers.LRScheduler]:
    created = []
    if not isinstance(parts, list | tuple):
        raise InputError(f"{where} is {parts!r}; it must be a list of schedules")
    for number, part in enumerate(parts):
        own = f"{where}[{number}]"
        if not isinstance(part, Mapping) or not {"lr_scheduler"} <= part.keys() <= {
            "lr_scheduler",
            "lr_scheduler_args",
        }:
            raise InputError(f"{own} is {part!r}; set lr_scheduler and lr_scheduler_args, and nothing else")
        if part["lr_scheduler"] in _MADE_OF_OTHERS:
            raise InputError(
                f"{own}.lr_scheduler is {part['lr_scheduler']}, which torch cannot start inside another schedule; "
                "list its parts in the outer one, with more milestones"
            )
        created.append(_create(part["lr_scheduler"], part.get("lr_scheduler_args") or {}, optimizer, own))
    return created
