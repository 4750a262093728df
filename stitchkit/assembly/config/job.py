"""A job's configuration: every key of a published file, checked before anything is downloaded or trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path

from pydantic import Field, StrictBool, StrictInt, StrictStr
from pydantic.dataclasses import dataclass
from pydantic.json_schema import JsonSchemaValue

from stitchkit.assembly.config.settings import Metric, TrainConfig
from stitchkit.assembly.parts.registry import WrittenPart
from stitchkit.assembly.parts.spec import NetworkSpec, PartSpec, ReformatOptions
from stitchkit.engine.checkpoint_schema import in_short
from stitchkit.errors import InputError
from stitchkit.settings.files import naming, read_settings_file
from stitchkit.settings.schema import LocalPath, Settings, join, json_schema, parse

SWEEP_KEYS = ("stages", "src_stages", "dest_stages", "gaps", "stitchers")
"""Keys that only sweeps have."""
WRITTEN = {"save_dir": "-o", "metrics_output": "--metrics-output"}
"""Keys for the places of a job's files, with their flags. Saved settings leave them out: another job may use those."""
# Settings that two starts of one job may change, because results do not depend on them.
_MAY_DIFFER = (
    *WRITTEN, "train_config.seed", "resume_from", "workers", "data_path", "device", "print_freq", "save_checkpoints",
    "checkpoint_interval", "project", "entity", "group", "id",
)  # fmt: skip


@dataclass(frozen=True)
class JobConfig(Settings):
    """A stitching job: a network and its training.

    Args:
        train_config: Settings of the training.
        model: The network, as one part.
        assembly: The network, as a list of parts.
        head: The part that follows an assembly.
        reformat_options: `class_token`: the replacement for a missing one, `zeros`, `ones` or `avg`.
        unfrozen: Train all parts.
        pretrained: Load pretrained weights; false starts from random ones.
        workers: Loader processes of each rank, at most one per core.
        data_path: Folder of the data sets.
        print_freq: Steps between log lines.
        save_checkpoints: Save a checkpoint after each epoch.
        checkpoint_interval: Steps between checkpoints within an epoch; with 0, only on a signal.
        eval_checkpoints: Test after each epoch.
        checkpoint_initial_model: Test the network before the first epoch, and save it if checkpoints are saved.
        test_only: Test without training.
        deterministic: Use only deterministic algorithms.
        load_from: File of weights to start from.
        resume_from: Checkpoint to resume from; `auto` is the newest good one in the job's folder.
        strict_load: Weights must have all names and no others.
        start_epoch: Number of epochs that count as done.
        save_dir: Folder of the job.
        metrics_output: File of the results; by default `result.pkl` in the job's folder.
        device: `cpu`, `cuda` or `cuda:N`.
        metrics: Figures of merit.
        project: Project in Weights & Biases; without one, nothing is logged there.
        entity: Account or team there.
        group: Group of runs there.
        id: Run there to resume.
    """

    train_config: TrainConfig
    model: WrittenPart | None = None
    assembly: tuple[WrittenPart, ...] | None = Field(default=None, min_length=1)
    head: WrittenPart | None = None
    reformat_options: ReformatOptions = Field(default_factory=dict)
    unfrozen: StrictBool = False
    pretrained: StrictBool = True
    workers: StrictInt = Field(default=4, ge=0)
    data_path: LocalPath | None = None
    print_freq: StrictInt = Field(default=10, ge=1)
    save_checkpoints: StrictBool = False
    checkpoint_interval: StrictInt = Field(default=0, ge=0)
    eval_checkpoints: StrictBool = True
    checkpoint_initial_model: StrictBool = False
    test_only: StrictBool = False
    deterministic: StrictBool = False
    load_from: LocalPath | None = None
    resume_from: LocalPath | None = None
    strict_load: StrictBool = True
    start_epoch: StrictInt = Field(default=0, ge=0)
    save_dir: LocalPath | None = None
    metrics_output: LocalPath | None = None
    device: StrictStr | None = None
    metrics: tuple[Metric, ...] = (Metric(),)
    project: StrictStr | None = None
    entity: StrictStr | None = None
    group: StrictStr | None = None
    id: StrictStr | None = None

    @classmethod
    def load(cls, path: str | Path, **changes: object) -> JobConfig:
        """The configuration in a file, with `changes` by key, also to those of `train_config`."""
        content = override(read_settings_file(path), changes)
        with naming(path):
            config = cls.parse(content)
            # The configuration may be a stranger's: only the user's own flags choose where files are written.
            for key, flag in WRITTEN.items():
                place = Path("" if key in changes else getattr(config, key) or "")
                if place.is_absolute() or ".." in place.parts or str(place).startswith("~"):
                    raise InputError(
                        f"{key} is '{place}'; files may only name relative paths without '..'; for other places, set "
                        f"{flag}"
                    )
        return config

    @classmethod
    def parse(cls, content: Mapping[str, object]) -> JobConfig:
        """The configuration in plain data; errors begin with the key."""
        if sweep := next((key for key in SWEEP_KEYS if key in content), None):
            raise InputError(f"{sweep}: this file is a sweep, not a job; use stitchkit sweep -c FILE")
        config = parse(cls, content)
        config.check()
        return config

    @cached_property
    def network(self) -> NetworkSpec:
        """The network that the file describes."""
        if self.assembly is not None:
            parts = tuple(PartSpec.parse(part, f"assembly[{number}]") for number, part in enumerate(self.assembly))
        else:
            parts = (PartSpec.parse(self.model, "model"),)
        head = None if self.head is None else PartSpec.parse(self.head, "head")
        return NetworkSpec(parts, head, self.reformat_options, self.unfrozen)

    def check(self) -> None:
        """Refuse settings that are incompatible, before anything is computed."""
        if (self.model is None) == (self.assembly is None):
            found = "neither is there" if self.model is None else "both are there"
            raise InputError(f"model or assembly: {found}; give one part as model, or a list of parts as assembly")
        if self.model is not None and self.head is not None:
            raise InputError("head goes with assembly; put it into the part that is the model, or use assembly")
        if self.load_from and self.resume_from:
            raise InputError("load_from and resume_from are both there; the first takes only weights, so give one")
        tasks = self.train_config.resolved_tasks
        if len({task.name for task in tasks}) < len(tasks):
            raise InputError(
                "train_config.tasks: two data sets have the same name, so results could not distinguish them"
            )
        if len({task.data_preprocessing.image_size for task in tasks}) > 1:
            raise InputError("train_config.tasks: images have different sizes; set the same image_size for all")

    def differences(self, other: JobConfig) -> Iterator[str]:
        """Differences from another job in settings that affect results, each as `KEY OURS, not THEIRS`."""
        for place, old, new in differences(self.to_dict(), other.to_dict()):
            if place not in _MAY_DIFFER:
                yield f"{place} {said(old)}, not {said(new)}"

    def to_dict(self) -> dict[str, object]:
        """All settings as plain data, as in a file for `load`."""
        settings = {key: _plain(value) for key, value in asdict(self).items() if value is not None}
        return settings | {"train_config": settings.pop("train_config")}


def override(content: Mapping[str, object], changes: Mapping[str, object]) -> dict[str, object]:
    """The content of a file with other settings, by key: also `lr` of the optimizer, and keys of `train_config`."""
    names = {item.name for item in fields(TrainConfig)}
    train = {key: value for key, value in changes.items() if key in names}
    others = {key: value for key, value in changes.items() if key not in names}
    rate = others.pop("lr", None)
    own = content.get("train_config", {})
    if isinstance(own, Mapping):  # parsing refuses anything else, with its place
        arguments = own.get("optimizer_args", {})
        if rate is not None and isinstance(arguments, Mapping):
            train["optimizer_args"] = {**arguments, "lr": rate}
        if train:
            others["train_config"] = {**own, **train}
    # A job starts from one file, so either flag replaces both keys of the file.
    for one, other in (("load_from", "resume_from"), ("resume_from", "load_from")):
        if others.get(one) and not others.get(other):
            others[other] = None
    return {**content, **others}


def differences(old: object, new: object, place: str = "") -> Iterator[tuple[str, object, object]]:
    """Places where two settings differ, with both values; None for a missing one."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(old.get(key), new.get(key), join(place, key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, join(place, number))
    elif _is_other(old, new):
        yield place, old, new


def _is_other(old: object, new: object) -> bool:
    # A checkpoint may contain values that no settings file can, such as tensors; those differ by their types.
    are_numbers = all(isinstance(value, int | float) for value in (old, new))
    return (type(old) is not type(new) and not are_numbers) or bool(old != new)


def said(value: object) -> str:
    """A setting in a message."""
    return "unset" if value is None else in_short(str(value))


def _plain(value: object) -> object:
    """Data that YAML can represent."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def job_schema() -> JsonSchemaValue:
    """The JSON Schema of a job's file."""
    return json_schema(JobConfig)
