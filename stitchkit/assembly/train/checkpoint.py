"""Checkpoints of a job: all that it needs to resume, and weights to start from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.utils import NativeScaler
from torch import nn

from stitchkit.assembly.config.job import JobConfig, differences, said
from stitchkit.assembly.config.optim import JobSchedule
from stitchkit.classes import note_origin
from stitchkit.engine.checkpoint_files import CheckpointFiles, read_alike
from stitchkit.engine.checkpoint_schema import (
    anything,
    check,
    each,
    either,
    exactly,
    fields,
    like,
    nothing,
    number,
    plain,
    table,
    text,
    whole,
)
from stitchkit.engine.epoch_state import Position
from stitchkit.engine.loop import Trainer
from stitchkit.engine.recorder import restore_position
from stitchkit.engine.training_state import restore_training
from stitchkit.errors import InputError
from stitchkit.networks.weights import load_content, misfit, weights_of

_logger = logging.getLogger(__name__)

_FORMAT = "stitchkit job 1"

# What a resumed job must have as before, beside its training, and what of that may be longer.
_NETWORK = ("model", "assembly", "head", "reformat_options", "unfrozen")
_MAY_CHANGE = ("train_config.epochs", "train_config.max_steps")


_NUMBER = either(number(finite=False), nothing)
_SCHEMA = fields(
    {
        "format": text,
        "state_dict": table(text, anything),
        "optimizer": table(text, anything),
        "opt": text,
        "scheduler": either(table(text, anything), nothing),
        "epoch": whole(0, 10**6),
        "step": whole(0),
        "rows": each(table(text, _NUMBER)),
        "classes": each(each(text)),
        "config": plain,
    },
    {
        "steps_per_epoch": whole(1),
        "state_dict_ema": table(text, anything),
        "within": table(text, anything),
        NativeScaler.state_dict_key: table(text, anything),
    },
)
"""What a job saves; its weights and states are looked at where they are used."""


def _schedule_schema(schedule: JobSchedule, done: int) -> dict[str, Any]:
    """What the state of a schedule must be after so many steps: as its settings made it, but for what moves on."""
    flag = either(exactly(True), exactly(False))
    moving: dict[str, Any] = {
        "last_epoch": whole(-1, done),
        "_step_count": whole(0, done + 2),
        "_last_lr": [number(0)] * len(schedule.scheduler.optimizer.param_groups),
        "T_cur": number(-1, done),
        "T_i": number(1, 1e9),
        "used": number(0),
        "best": number(finite=False),
        "num_bad_epochs": whole(0, done),
        "cooldown_counter": whole(0),
        "_get_lr_called_within_step": flag,
        "_is_initial": flag,
    }
    own = like(schedule.state_dict(), moving)
    if "last_epoch" in own["scheduler"]:
        own["scheduler"]["last_epoch"] = exactly(done)
    return {**own, "done": exactly(done)}


class JobCheckpoints(CheckpointFiles):
    """The checkpoints of a job: `checkpoint.pth` is the newest, `model-<step>.pth` are those of epochs' ends.

    Args:
        folder: Of the job.
    """

    def __init__(self, folder: Path):
        super().__init__(folder, newest="checkpoint.pth", previous="previous.pth", kept="model-{}.pth")

    def save(self, state: Mapping[str, Any], *, step: int, keep: bool) -> Path:
        """Write the state of a job.

        Args:
            state: Plain data and tensors.
            step: Number of steps done.
            keep: It is an epoch's end, which later ones do not replace.

        Returns:
            The newest file.
        """
        content = {"format": _FORMAT, **state, "step": step}
        if keep:
            self.write_epoch(step, content)
        else:
            self.write_newest(content)
        return self.last


def load_weights(network: nn.Module, path: str, *, strict: bool) -> None:
    """Start from the weights in a file, and note on the network that its classifier is from there, if it is.

    Args:
        network: The network.
        path: The file, ours, a published one or any of named weights.
        strict: It must have all names and no others; else what fits is loaded and the rest is named.

    Raises:
        InputError: If it cannot be read, or does not fit.
    """
    content, _ = read_alike(path)
    if strict:
        load_content(network, content, path)
        note_origin(network, content, path)
        return
    weights, own = weights_of(content), network.state_dict()
    fitting = {name: value for name, value in weights.items() if name in own and not misfit(name, value, own[name])}
    if not fitting:
        raise InputError(f"checkpoint '{path}' has nothing that fits this network; check the path")
    network.load_state_dict(fitting, strict=False)
    if next(reversed(own)) in fitting:  # the last weights are the classifier's
        note_origin(network, content, path)
    _logger.info("%d of %d weights are from %s", len(fitting), len(own), path)


def resume(
    network: nn.Module, trainer: Trainer | None, path: str, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], Position | None]:
    """Put a job back to where it stood.

    Args:
        network: The network.
        trainer: It trains the network; None where nothing is trained.
        path: The checkpoint.
        settings: All settings of the job, as plain data.

    Returns:
        All that the file holds: `epoch`, the number of epochs done, and `rows` of the result among it. Where this rank
        resumes within the next epoch; None at its start.

    Raises:
        InputError: If it is not a checkpoint of a job, or is of a different one.
    """
    content, _ = read_alike(path)
    if content.get("format") != _FORMAT:
        raise InputError(
            f"checkpoint '{path}' holds no state of a job of stitchkit; start from its weights with --load-from"
        )
    try:
        check(content, _SCHEMA, "")
    except InputError as error:
        raise InputError(f"checkpoint '{path}' is damaged: {error}") from error
    _check_settings(content["config"], settings, path, trains=trainer is not None)
    load_content(network, content, path)
    position = None
    if trainer is not None:
        restore_training(content, trainer, path, otherwise="start from its weights with --load-from")
        position = restore_position(content, trainer, path)
        _restore_schedule(content, trainer, position, path)
    last = content["rows"][-1] if content["rows"] else {}
    places = [(row.get("Epoch"), row.get("Step")) for row in content["rows"]]
    if any(None in place for place in places) or places != sorted(set(places)):
        raise InputError(f"checkpoint '{path}' is damaged: its rows are not in the order of their epochs")
    done = 0 if position is None else position.done
    if trainer is not None or "within" not in content:
        step = last.get("Step")
        if last.get("Epoch") != content["epoch"] or not isinstance(step, int) or step + done != content["step"]:
            raise InputError(f"checkpoint '{path}' is damaged: its epoch and step are not those of its last row")
    return content, position


def _restore_schedule(content: Mapping[str, Any], trainer: Trainer, position: Position | None, path: str) -> None:
    """Put the schedule back, after a look at whether it stands where the job does."""
    schedule = trainer.schedule
    if not isinstance(schedule, JobSchedule):
        return
    is_over = position is not None and position.done == len(trainer.steps(content["epoch"]))
    done = content["epoch"] + is_over if schedule.cadence == "epochs" else content["step"]
    schema = _schedule_schema(schedule, done)
    used = {"used": schema.pop("used")}  # jobs before this version did not save it
    try:
        check(content["scheduler"], fields(schema, used), "scheduler")
    except InputError as error:
        raise InputError(f"checkpoint '{path}' does not fit this job: {error}; use the same settings") from error
    schedule.load_state_dict(content["scheduler"])


def check_position(content: Mapping[str, Any], path: str, *, steps: int, max_steps: int | None) -> None:
    """See that no step of an epoch is missing that max_steps cut short; such an epoch is over.

    Args:
        content: Of the checkpoint.
        path: The checkpoint.
        steps: Steps of an epoch.
        max_steps: Steps that the job ends after.

    Raises:
        InputError: If max_steps ended it within an epoch and the job asks for more steps.
    """
    done, whole = content["step"], content["epoch"] * content.get("steps_per_epoch", steps)
    if done < whole and (max_steps is None or max_steps > done):
        raise InputError(
            f"checkpoint '{path}' was saved when max_steps ended it after {done} steps, within epoch "
            f"{content['epoch']}, and only whole epochs can be resumed; train anew without max_steps, or start from "
            "its weights with --load-from"
        )


def _check_settings(before: Mapping[str, Any], now: Mapping[str, Any], path: str, *, trains: bool) -> None:
    """See that a job resumes with the network and, where it trains, the training that it began with."""
    before = JobConfig.parse(before).to_dict()  # settings that are newer than the file have their defaults
    for key in (*_NETWORK, *(("train_config",) if trains else ())):
        for place, old, new in differences(before.get(key), now.get(key), key):
            if place not in _MAY_CHANGE:
                raise InputError(
                    f"checkpoint '{path}' was trained with {place} {said(old)}, not {said(new)}; use the same, or "
                    "start from its weights with --load-from"
                )
