"""Checkpoints of a job: everything that it needs to resume, and weights to start from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from stitchkit.assembly.config.job import JobConfig, differences, said
from stitchkit.assembly.train.optim import JobSchedule
from stitchkit.classes import note_origin
from stitchkit.engine import checkpoint_schema as rules
from stitchkit.engine.checkpoint_files import CheckpointFiles, read_alike, start_from
from stitchkit.engine.epoch_state import Position
from stitchkit.engine.loop import Trainer
from stitchkit.engine.training_state import restore_position, restore_training
from stitchkit.errors import InputError
from stitchkit.networks.weights import load_content, misfit, weights_of

_logger = logging.getLogger(__name__)

_FORMAT = "stitchkit job 1"
_START_ANEW = "start from its weights with --load-from"

# Settings that a resumed job must keep in addition to those of its training, of which two may change.
_NETWORK = ("model", "assembly", "head", "reformat_options", "unfrozen")
_MAY_CHANGE = ("train_config.epochs", "train_config.max_steps")

_HEADER: Mapping[str, rules.Schema] = {
    "scheduler": rules.or_none(rules.table(rules.text, rules.anything)),
    "epoch": rules.whole(0, rules.MOST_EPOCHS),
    "step": rules.whole(0),
    "rows": rules.each(rules.table(rules.text, rules.or_none(rules.number(finite=False)))),
    "classes": rules.each(rules.each(rules.text)),
    "config": rules.plain,
}


class JobCheckpoints(CheckpointFiles):
    """The checkpoints of a job: `checkpoint.pth` is the newest, `model-<step>.pth` are those of completed epochs."""

    def __init__(self, folder: Path):
        super().__init__(folder, newest="checkpoint.pth", previous="previous.pth", kept="model-{}.pth")

    def save(self, state: Mapping[str, object], *, step: int, keep: bool) -> Path:
        """Write the state of a job after a step, with `keep` also under its own name; returns the newest file."""
        content = {"format": _FORMAT, **state, "step": step}
        if keep:
            self.write_epoch(step, content)
        else:
            self.write_newest(content)
        return self.last


def load_weights(network: nn.Module, path: str, *, strict: bool) -> None:
    """Start from the weights in a file, and note the file as the origin of the classifier if it has that.

    Args:
        network: The network.
        path: A checkpoint of ours, a published one or any file of named weights.
        strict: The file must have exactly the network's names; otherwise fitting weights are loaded and counted.
    """
    if strict:
        start_from(network, path)
        return
    content, _ = read_alike(path)
    weights, own = weights_of(content), network.state_dict()
    fitting = {name: value for name, value in weights.items() if name in own and not misfit(name, value, own[name])}
    if not fitting:
        raise InputError(f"checkpoint '{path}' has no weights that fit this network; check the path")
    network.load_state_dict(fitting, strict=False)
    if next(reversed(own)) in fitting:  # the last weights are the classifier's
        note_origin(network, content, path)
    _logger.info("%d of %d weights are from %s", len(fitting), len(own), path)


def resume(
    network: nn.Module, trainer: Trainer | None, path: str, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], Position | None]:
    """Restore the state of a job.

    Args:
        network: The network.
        trainer: Trains the network; None if nothing is trained.
        path: The checkpoint.
        settings: All settings of the job, as plain data.

    Returns:
        The content of the file, and the position of this rank within the next epoch; None at its start.
    """
    content, _ = read_alike(path)
    if content.get("format") != _FORMAT:
        raise InputError(f"checkpoint '{path}' contains no state of a stitchkit job; {_START_ANEW}")
    rules.check_saved(content, path, _HEADER, {"steps_per_epoch": rules.whole(1)})
    _check_settings(content["config"], settings, path, trains=trainer is not None)
    load_content(network, content, path)
    position = None
    if trainer is not None:
        restore_training(content, trainer, path, otherwise=_START_ANEW)
        position = restore_position(content, trainer, path)
        _restore_schedule(content, trainer, position, path)
        _check_step(content, path, trainer)
    _check_rows(content, path, position, trains=trainer is not None)
    return content, position


def _check_rows(content: Mapping[str, Any], path: str, position: Position | None, *, trains: bool) -> None:
    """Check that the rows of the result lead up to the position of the job."""
    places = [(row.get("Epoch"), row.get("Step")) for row in content["rows"]]
    if any(None in place for place in places) or places != sorted(set(places)):
        raise InputError(f"checkpoint '{path}' is damaged: its rows are not in the order of their epochs")
    if not trains and "within" in content:  # the position was not read
        return
    epoch, step = places[-1] if places else (None, None)
    done = 0 if position is None else position.done
    if epoch != content["epoch"] or not isinstance(step, int) or step + done != content["step"]:
        raise InputError(f"checkpoint '{path}' is damaged: its epoch and step are not those of its last row")


def _restore_schedule(content: Mapping[str, Any], trainer: Trainer, position: Position | None, path: str) -> None:
    """Restore the schedule, after checking that it is at the position of the job."""
    schedule = trainer.schedule
    if not isinstance(schedule, JobSchedule):
        return
    is_over = position is not None and position.done == len(trainer.steps(content["epoch"]))
    done = content["epoch"] + is_over if schedule.cadence == "epochs" else content["step"]
    schema = _schedule_schema(schedule, done)
    used = {"used": schema.pop("used")}  # older versions did not save it
    try:
        rules.check(content["scheduler"], rules.fields(schema, used), "scheduler")
    except InputError as error:
        raise InputError(f"checkpoint '{path}' does not fit this job: {error}; use the same settings") from error
    schedule.load_state_dict(content["scheduler"])


def _schedule_schema(schedule: JobSchedule, done: int) -> dict[str, rules.Schema]:
    """The schema of a schedule's state after `done` steps: its own, except for values that change with each step."""
    moving: dict[str, rules.Schema] = {
        "last_epoch": rules.whole(-1, done),
        "_step_count": rules.whole(0, done + 2),
        "_last_lr": [rules.number(0)] * len(schedule.scheduler.optimizer.param_groups),
        "T_cur": rules.number(-1, done),
        "T_i": rules.number(1, 1e9),
        "used": rules.number(0),
        "best": rules.number(finite=False),
        "num_bad_epochs": rules.whole(0, done),
        "cooldown_counter": rules.whole(0),
        "_get_lr_called_within_step": True,
        "_is_initial": True,
    }
    state = schedule.state_dict()
    inner = rules.like(state["scheduler"], moving)
    assert isinstance(inner, dict)
    if "last_epoch" in inner:  # only of the outermost: the parts of a sequence start one after the other
        inner["last_epoch"] = rules.exactly(done)
    return {"done": rules.exactly(done), "used": moving["used"], "scheduler": inner}


def _check_step(content: Mapping[str, Any], path: str, trainer: Trainer) -> None:
    """Check that the job does not need the steps of an epoch that max_steps cut short."""
    most, done = trainer.settings.max_steps, content["step"]
    whole_epochs = content["epoch"] * content.get("steps_per_epoch", trainer.updates_per_epoch)
    if done < whole_epochs and (most is None or most > done):
        raise InputError(
            f"checkpoint '{path}' was saved when max_steps ended it after {done} steps, within epoch "
            f"{content['epoch']}, and only whole epochs can be resumed; retrain without max_steps, or {_START_ANEW}"
        )


def _check_settings(before: Mapping[str, Any], now: Mapping[str, Any], path: str, *, trains: bool) -> None:
    """Check that a job resumes with its network and, if it trains, with its training settings."""
    before = JobConfig.parse(before).to_dict()  # settings newer than the file have their defaults
    for key in (*_NETWORK, *(("train_config",) if trains else ())):
        for place, old, new in differences(before.get(key), now.get(key), key):
            if place not in _MAY_CHANGE:
                raise InputError(
                    f"checkpoint '{path}' was trained with {place} {said(old)}, not {said(new)}; use the same, or "
                    f"{_START_ANEW}"
                )
