"""Checkpoints of a job: all that it needs to resume, and weights to start from, whose classes must be its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from stitchkit.assembly.config.job import JobConfig, differences, in_words
from stitchkit.assembly.parts.part import Assembly, Function, ParallelPart
from stitchkit.assembly.parts.pretrained import head_of, network_names
from stitchkit.assembly.train.job import Job
from stitchkit.assembly.train.optim import JobSchedule
from stitchkit.assembly.train.preprocessing import data_config
from stitchkit.assembly.train.task import JobTask
from stitchkit.classes import check_classes, same_text, trained_classes
from stitchkit.display import command
from stitchkit.engine import checkpoint_schema as rules, training_state
from stitchkit.engine.checkpoint_files import CheckpointFiles, read_alike
from stitchkit.engine.epoch_state import Position
from stitchkit.engine.loop import Trainer
from stitchkit.errors import InputError
from stitchkit.networks.data_config import plain_data_config
from stitchkit.networks.trained_with import TrainedWith, note, noted
from stitchkit.networks.weights import load_content, misfit, put_weights, weights_of

_logger = logging.getLogger(__name__)

_FORMAT = "stitchkit job 3"
_START_ANEW = "start from its weights with --load-from"

# A resumed job must keep these settings; if it trains, also those of its training, except two.
_NETWORK = ("model", "assembly", "head", "reformat_options", "unfrozen")
_MAY_CHANGE = ("train_config.epochs", "train_config.max_steps")

_HEADER: Mapping[str, rules.Schema] = {
    "scheduler": rules.or_none(rules.table(rules.text, rules.anything)),
    "epoch": rules.whole(0, training_state.MOST_EPOCHS), "step": rules.whole(0), "steps_per_epoch": rules.whole(1),
    "rows": rules.each(rules.table(rules.text, rules.or_none(rules.number(finite=False)))),
    "classes": rules.each(rules.each(rules.text)), "config": rules.plain, "loss_scales": rules.each(rules.number(0)),
}  # fmt: skip
_PREPARATION: Mapping[str, rules.Schema] = {
    "image": rules.each(rules.table(rules.text, rules.plain)),
    "input_size": rules.image_size,
}
"""What older checkpoints do not have."""


class JobCheckpoints(CheckpointFiles):
    """The checkpoints of a job: `checkpoint.pth` is the newest, `model-<step>.pth` are those of completed epochs."""

    def __init__(self, folder: Path):
        super().__init__(folder, newest="checkpoint.pth", previous="previous.pth", kept="model-{}.pth")


def header(job: Job, trainer: Trainer, epoch: int, step: int) -> dict[str, object]:
    """The part of a checkpoint that describes its job, when `epoch` epochs and `step` steps are done."""
    assert isinstance(trainer.task, JobTask)
    return {
        "format": _FORMAT, "opt": type(trainer.optimizer).__name__,
        "scheduler": trainer.schedule.state_dict() if isinstance(trainer.schedule, JobSchedule) else None,
        "epoch": epoch, "step": step, "steps_per_epoch": trainer.updates_per_epoch, "rows": job.rows,
        "classes": [list(task.classes) for task in job.data],
        "image": [plain_data_config(data_config(task.config)) for task in job.data],
        "input_size": [3, *job.data[0].config.data_preprocessing.size],
        "loss_scales": trainer.task.scales.tolist(), "config": job.config.to_dict(),
    }  # fmt: skip


def load_weights(network: Assembly, path: str, *, strict: bool) -> None:
    """Start from the weights in a file, and note the file as the origin of the classifier if it has that.

    The file is a checkpoint of a job, ours or a published one. If `strict`, it must have exactly the network's weights;
    otherwise fitting weights are loaded and counted.
    """
    content, _ = read_alike(path)
    weights, own = network_names(network, weights_of(content)), network.state_dict()
    if strict:
        try:
            load_content(network, {"state_dict": weights}, path)
        except InputError as error:
            raise InputError(f"{error}; set strict_load: false in the job to load only the weights that fit") from error
        note(network, TrainedWith.read(content, path))
        return
    fitting = {name: value for name, value in weights.items() if name in own and not misfit(name, value, own[name])}
    if not fitting:
        raise InputError(f"checkpoint '{path}' has no weights that fit this network; check the path")
    put_weights(network, fitting, path, strict=False)
    if next(reversed(own)) in fitting:  # the last weights are the classifier's
        note(network, TrainedWith.read(content, path))
    _logger.info("%d of %d weights are from %s", len(fitting), len(own), path)


def load_pieces(network: Assembly, files: Mapping[Literal["encoder", "head"], str]) -> None:
    """Start from the weights of a network's head, or of the encoder before it, in checkpoints of jobs alike."""
    last = head_of(network)
    for piece, path in files.items():
        content, _ = read_alike(path)
        own, weights = network.state_dict(), network_names(network, weights_of(content))
        wanted = [name for name in own if name.startswith(last) == (piece == "head")]
        if missing := next((name for name in wanted if name not in weights), None):
            raise InputError(
                f"checkpoint '{path}' has no {missing}, which the {piece} needs; name a job of this network"
            )
        load_content(network, {"state_dict": own | {name: weights[name] for name in wanted}}, path)
        if piece == "head":
            note(network, TrainedWith.read(content, path))


def check_origins(network: nn.Module, classes: Sequence[Sequence[str]], *, strict: bool) -> None:
    """Check that a network's classifiers, if loaded from files, number the classes as the data do.

    A classifier within the network, whose output feeds other parts, may have any classes. `classes` are those of each
    task; `strict` is for a network that is tested without training.
    """
    for number, trained in _origins(network, None):
        tasks = classes if number is None else classes[number : number + 1]
        check_classes(trained.classes or (), tasks, trained.path, strict=strict)


def _origins(part: nn.Module, number: int | None) -> Iterator[tuple[int | None, TrainedWith]]:
    """Origins of the parts that return logits, each with the number of its task; None if all tasks share it."""
    trained = noted(part) or noted(getattr(part, "net", None))
    if trained is not None and trained.classes is not None:
        yield number, trained
    elif isinstance(part, Assembly):
        # Functions such as softmax keep the order of classes.
        lasts = (
            [part.head] if part.head is not None else [each for each in part.parts if not isinstance(each, Function)]
        )
        for last in lasts[-1:]:
            yield from _origins(last, number)
    elif isinstance(part, ParallelPart) and part.agg in ("none", "avg"):
        for index, inner in enumerate(part.parts):
            yield from _origins(inner, index if part.agg == "none" else number)


def resume(job: Job, path: str) -> tuple[int, Position | None]:
    """Restore the state of a job; one that only tests takes the weights.

    Returns:
        The number of completed epochs, and the position of this rank within the next one; None at its start.
    """
    content, _ = read_alike(path)
    if content.get("format") != _FORMAT:
        raise InputError(f"checkpoint '{path}' contains no state of a job of this version; {_START_ANEW}")
    training_state.check_saved(content, path, _HEADER, _PREPARATION)
    _check_settings(content, job, path)
    classes = [list(task.classes) for task in job.data]
    start = f"{command('--load-from', path)}, with strict_load: false in the job if their number differs"
    check_classes(trained_classes(content), classes, path, strict=True, train_by="" if job.trainer is None else start)
    if [[*map(same_text, names)] for names in content["classes"]] != classes:
        raise InputError(f"checkpoint '{path}' was trained on other tasks; labels would not agree")
    load_content(job.network, content, path)
    position = None
    if job.trainer is not None:
        position = training_state.restore(content, job.trainer, path, otherwise=_START_ANEW)
        _restore_schedule(content, job.trainer, position, path)
        assert isinstance(job.trainer.task, JobTask)
        if len(content["loss_scales"]) != len(job.trainer.task.losses):
            raise InputError(f"checkpoint '{path}' is damaged: its loss_scales are not one for each of the tasks")
        job.trainer.task.scales.copy_(torch.tensor(content["loss_scales"]))
        _check_step(content, path, job.trainer)
        job.rows = content["rows"]
    if job.trainer is not None or "within" not in content:  # otherwise the position was not read
        _check_rows(content, path, 0 if position is None else position.done)
    return content["epoch"], position


def _check_rows(content: Mapping[str, Any], path: str, done: int) -> None:
    """Check that the rows of the result lead up to the position of the job, after `done` steps of an epoch."""
    places = [(row.get("Epoch"), row.get("Step")) for row in content["rows"]]
    if any(None in place for place in places) or places != sorted(set(places)):
        raise InputError(f"checkpoint '{path}' is damaged: its rows are not in the order of their epochs")
    epoch, step = places[-1] if places else (None, None)
    if epoch != content["epoch"] or not isinstance(step, int) or step + done != content["step"]:
        raise InputError(f"checkpoint '{path}' is damaged: its epoch and step are not those of its last row")


def _restore_schedule(content: Mapping[str, Any], trainer: Trainer, position: Position | None, path: str) -> None:
    schedule = trainer.schedule
    if not isinstance(schedule, JobSchedule):
        return
    is_over = position is not None and position.done == len(trainer.steps(content["epoch"]))
    done = content["epoch"] + is_over if schedule.cadence == "epochs" else content["step"]
    schema = _schedule_schema(schedule, done)
    try:
        rules.check(content["scheduler"], schema, "scheduler")
    except InputError as error:
        raise InputError(f"checkpoint '{path}' does not fit this job: {error}; use the same settings") from error
    schedule.load_state_dict(content["scheduler"])


def _schedule_schema(schedule: JobSchedule, done: int) -> dict[str, rules.Schema]:
    """The schema of a schedule's state after `done` steps: its own, except for values that change with each step."""
    moving: dict[str, rules.Schema] = {
        "last_epoch": rules.whole(-1, done), "_step_count": rules.whole(0, done + 2),
        "_last_lr": [rules.number(0)] * len(schedule.scheduler.optimizer.param_groups),
        "T_cur": rules.number(-1, done), "T_i": rules.number(1, 1e9), "best": rules.number(finite=False),
        "num_bad_epochs": rules.whole(0, done), "cooldown_counter": rules.whole(0),
        "_get_lr_called_within_step": True, "_is_initial": True,
    }  # fmt: skip
    state = schedule.state_dict()
    inner = rules.like(state["scheduler"], moving)
    assert isinstance(inner, dict)
    if "last_epoch" in inner:  # only of the outermost: the parts of a sequence start one after the other
        inner["last_epoch"] = rules.exactly(done)
    return {"done": rules.exactly(done), "scheduler": inner}


def _check_step(content: Mapping[str, Any], path: str, trainer: Trainer) -> None:
    """Check that the job does not need the steps of an epoch that max_steps cut short."""
    most, done = trainer.settings.max_steps, content["step"]
    whole_epochs = content["epoch"] * content["steps_per_epoch"]
    if done < whole_epochs and (most is None or most > done):
        raise InputError(
            f"checkpoint '{path}' was saved when max_steps ended it after {done} steps, within epoch "
            f"{content['epoch']}, and only whole epochs can be resumed; retrain without max_steps, or {_START_ANEW}"
        )


def _check_settings(content: Mapping[str, Any], job: Job, path: str) -> None:
    """Check that a job resumes with its network and, if it trains, with its training settings."""
    # Parsed again: settings that it lacks, because they are newer, have their defaults.
    before = JobConfig.parse(content["config"])
    old_settings, new_settings = before.to_dict(), job.config.to_dict()
    for key in (*_NETWORK, *(("train_config",) if job.trainer is not None else ())):
        for changed, old, new in differences(old_settings.get(key), new_settings.get(key), key):
            if changed not in _MAY_CHANGE:
                raise InputError(
                    f"checkpoint '{path}' was trained with {changed} {in_words(old)}, not {in_words(new)}; use the "
                    f"same, or {_START_ANEW}"
                )
    changes = replace(before, load_from=None).changes(job.config)  # `resume_from` takes its place
    if changes and job.trainer is not None:
        _logger.info("the job resumes with other settings: %s", changes)
