"""The settings of a job without its parts: checking them needs no torch, which takes seconds to import."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictInt, StrictStr
from pydantic.dataclasses import dataclass

from stitchkit.assembly.config.settings import Metric, Preprocessing, TaskConfig, TrainConfig
from stitchkit.assembly.parts.spec import ReformatOptions
from stitchkit.errors import InputError
from stitchkit.settings.fields import Count, Natural, NonNegative, Workers, entry
from stitchkit.settings.files import naming, read_settings_file
from stitchkit.settings.kinds import FILE_KINDS, SWEEPS
from stitchkit.settings.schema import LocalPath, Settings, flag_of, join, parse

_logger = logging.getLogger(__name__)

SWEEP_KEYS = (*(key for key, kind in FILE_KINDS.items() if kind in SWEEPS), *("seeds", "slurm"))
"""Keys that only sweeps have."""
PARTS = ("model", "assembly", "head")
"""Keys of a job's parts."""
STAND_IN = {"dataset": "digits"}
"""The data set in checks of settings that leave it to a sweep."""
IGNORED = {"lr"}
"""Keys of `train_config` in published files, which the published system does not use."""
_REMOVED = ("class_weights", "loss_scale")
"""Keys of `train_config` in files that earlier versions wrote."""
WRITTEN = {"save_dir": "-o", "metrics_output": "--metrics-output"}
"""Keys of the places of a job's files, and their flags; saved settings omit them, because other jobs may use those."""
_FLAGS = {**WRITTEN, "data_path": "--data", "run_cap": "--trials"}  # flags that are not called like their keys


def _gpu(value: object) -> object:
    """`cuda:N` for the number of a GPU, as the published system has it."""
    is_number = (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, str) and value.isdigit())
    return f"cuda:{value}" if is_number else value


Device = Annotated[StrictStr, BeforeValidator(_gpu, json_schema_input_type=StrictStr | StrictInt)]

OPTIMIZER_FLAGS = ("lr", "weight_decay", "momentum")
"""Arguments of optimizers that are flags too."""
_INNER = {"optimizer_args": OPTIMIZER_FLAGS, "data_preprocessing": ("image_size", "data_augmentation")}
"""Keys of `train_config`, with those of their own keys that are flags too."""


@dataclass(frozen=True)
class JobSettings(Settings):
    """A stitching job without its parts, which `JobConfig` adds: making their schemas needs torch."""

    train_config: TrainConfig = entry(..., "Settings of the training and its data.")
    reformat_options: ReformatOptions = Field(
        default_factory=dict, description="`class_token`: the replacement for a missing one, `zeros`, `ones` or `avg`."
    )
    unfrozen: StrictBool = entry(False, "Train all parts.")
    pretrained: StrictBool = entry(
        True, "Download pretrained weights; false starts from random ones where no file is named."
    )
    workers: Workers = entry(4, "Loader processes of each rank, at most one per core.")
    data_path: LocalPath | None = entry(None, "Folder of the data sets.")
    print_freq: Count = entry(10, "Steps between log lines.")
    save_checkpoints: StrictBool = entry(False, "Save a checkpoint after each epoch.")
    checkpoint_interval: Natural = entry(0, "Steps between checkpoints within an epoch; with 0, only on a signal.")
    eval_checkpoints: StrictBool = entry(True, "Test after each epoch.")
    checkpoint_initial_model: StrictBool = entry(
        False, "Test the network before the first epoch, and save it if checkpoints are saved."
    )
    test_only: StrictBool = entry(False, "Test without training.")
    deterministic: StrictBool = entry(False, "Use only deterministic algorithms.")
    load_from: LocalPath | dict[Literal["encoder", "head"], LocalPath] | None = entry(
        None, "File of weights to start from; or one for the `head`, and one for the `encoder` before it."
    )
    resume_from: LocalPath | None = entry(
        None, "Checkpoint to resume from; `auto` is the newest good one in the job's folder."
    )
    strict_load: StrictBool = entry(True, "Weights must have all names and no others.")
    start_epoch: Natural = entry(0, "Number of epochs to treat as already done.")
    save_dir: LocalPath | None = entry(None, "Folder of the job.")
    metrics_output: LocalPath | None = entry(None, "File of the results; by default `result.pkl` in the job's folder.")
    device: Device | None = entry(None, "`cpu`, `cuda` or `cuda:N`; N alone is `cuda:N`.")
    verbose: Natural = entry(0, "Detail of the log; from 2 on, every step has a line, whatever `print_freq` says.")
    metrics: tuple[Metric, ...] = entry((Metric(),), "Figures of merit.")
    project: StrictStr | None = entry(None, "Project in Weights & Biases; without one, nothing is logged there.")
    entity: StrictStr | None = entry(None, "Weights & Biases account or team.")
    group: StrictStr | None = entry(None, "Weights & Biases run group.")
    id: StrictStr | None = entry(None, "ID of the Weights & Biases run to resume.")


def check_flags(flags: Mapping[str, object]) -> None:
    """Refuse values of flags, by key, that no file could have either; errors name the flag."""
    least = {**STAND_IN, "epochs": 0}
    check_own(JobSettings, {"train_config": least}, flags)
    check_own(TrainConfig, least, flags)
    check_own(Preprocessing, {}, flags)
    finite = dict[str, Annotated[NonNegative, Field(allow_inf_nan=False)]]
    parse(finite, {key: flags[key] for key in OPTIMIZER_FLAGS if key in flags}, name=flag_of)


def check_own(kind: type[Settings], required: Mapping[str, object], flags: Mapping[str, object]) -> None:
    """Check the flags, by key, that are settings of a kind; `required` are the keys that a file must have."""
    own = {item.name: flags[item.name] for item in fields(kind) if item.name in flags}
    parse(kind, {**required, **own}, name=lambda key: _FLAGS.get(key, flag_of(key)))


def refuse_sweep(content: Mapping[str, object]) -> None:
    """Refuse the content of a file that describes a sweep, not a job."""
    if sweep := next((key for key in SWEEP_KEYS if key in content), None):
        raise InputError(f"{sweep}: this file is a sweep, not a job; use stitchkit sweep -c FILE")


def refuse_misplaced(content: Mapping[str, object]) -> None:
    """Refuse a key of the file of a job or sweep that belongs to another level, which the message names."""
    homes: dict[str, Collection[str]] = {
        "": [*(item.name for item in fields(JobSettings)), *PARTS, *SWEEP_KEYS],
        "train_config": [item.name for item in fields(TrainConfig)],
        "train_config.data_preprocessing": [item.name for item in fields(Preprocessing)],
        "train_config.optimizer_args": OPTIMIZER_FLAGS,
    }
    train = content.get("train_config")
    tasks = train.get("tasks") if isinstance(train, Mapping) else None
    of_tasks = {f"train_config.tasks[{n}]": task for n, task in enumerate(tasks if isinstance(tasks, list) else [])}
    homes |= {key: [item.name for item in fields(TaskConfig)] for key in of_tasks}
    for where, level in {"": content, "train_config": train, **of_tasks}.items():
        strangers = [key for key in level if key not in homes[where]] if isinstance(level, Mapping) else []
        for key in strangers:
            if (home := next((home for home, keys in homes.items() if key in keys), None)) is not None:
                to = f"into {home}" if home else "to the top level of the file"
                raise InputError(f"{join(where, key)} is at the wrong level; move it {to}")


def without_removed(content: Mapping[str, object]) -> Mapping[str, object]:
    """The content of a file without the unset keys of earlier versions; those that are set are refused."""
    train = content.get("train_config")
    if not isinstance(train, Mapping):
        return content
    if wrong := next((key for key in _REMOVED if train.get(key) is not None), None):
        raise InputError(f"train_config.{wrong} was removed: no table shows a gain from it; omit it")
    return {**content, "train_config": {key: value for key, value in train.items() if key not in _REMOVED}}


def read_job(path: str | Path, changes: Mapping[str, object]) -> dict[str, object]:
    """The content of a file with other settings, by key; what published files have to no effect is reported."""
    content = read_settings_file(path)
    train = content.get("train_config")
    for key in IGNORED & train.keys() if isinstance(train, Mapping) else ():
        advice = "move it to train_config.optimizer_args"
        _logger.warning("'%s': train_config.%s is ignored, as in the published system; %s", path, key, advice)
    with naming(path):
        return override(without_removed(content), changes)


def override(content: Mapping[str, object], changes: Mapping[str, object]) -> dict[str, object]:
    """The content of a file with other settings, by key: also keys of `train_config`, and those of `_INNER` in it.

    Arguments of the optimizer and the preprocessing that are not among them stay as in the file.
    """
    inner = {name for names in _INNER.values() for name in names}
    names = {item.name for item in fields(TrainConfig)} - inner
    train = {key: value for key, value in changes.items() if key in names}
    others = {key: value for key, value in changes.items() if key not in names | inner}
    own = content.get("train_config", {})
    if isinstance(own, Mapping):  # parsing refuses anything else, with its place
        own = {key: value for key, value in own.items() if key not in IGNORED}
        for key, members in _INNER.items():
            before, new = own.get(key, {}), changes.get(key, {})
            if isinstance(before, Mapping) and isinstance(new, Mapping):
                merged = {**before, **new, **{name: changes[name] for name in members if name in changes}}
                train |= {key: merged} if merged else {}
        if own or train:
            others["train_config"] = {**own, **train}
    # A job starts from one file, so either flag replaces both keys of the file.
    for key, other in (("load_from", "resume_from"), ("resume_from", "load_from")):
        if others.get(key) and not others.get(other):
            others[other] = None
    return {**content, **others}
