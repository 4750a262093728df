"""A job's configuration: every key of a published file, checked before anything is downloaded or trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from pydantic import Field
from pydantic.dataclasses import dataclass
from pydantic.json_schema import JsonSchemaValue

from stitchkit.assembly.config.job_settings import (
    PARTS,
    WRITTEN,
    JobSettings,
    read_job,
    refuse_misplaced,
    refuse_sweep,
    without_removed,
)
from stitchkit.assembly.parts.registry import WrittenPart
from stitchkit.assembly.parts.spec import NetworkSpec, PartSpec, Wanted, all_parts
from stitchkit.engine.checkpoint_schema import in_short
from stitchkit.errors import InputError
from stitchkit.settings.fields import entry
from stitchkit.settings.files import naming
from stitchkit.settings.schema import join, json_schema, parse
from stitchkit.settings.tasks import DENSE

# Settings that two starts of one job may change, because results do not depend on them.
_MAY_DIFFER = (
    *WRITTEN, "train_config.seed", "resume_from", "workers", "data_path", "device", "print_freq", "verbose",
    "save_checkpoints", "checkpoint_interval", "project", "entity", "group", "id",
)  # fmt: skip


@dataclass(frozen=True)
class JobConfig(JobSettings):
    """A stitching job: a network and its training."""

    model: WrittenPart | None = entry(None, "The network, as one part.")
    assembly: tuple[WrittenPart, ...] | None = Field(
        default=None, min_length=1, description="The network, as a list of parts."
    )
    head: WrittenPart | None = entry(None, "The part that follows an assembly.")

    @classmethod
    def load(cls, path: str | Path, **changes: object) -> JobConfig:
        """The configuration in a file, with `changes` by key, also to those of `train_config`."""
        content = read_job(path, changes)
        with naming(path):
            config = cls.parse(content)
            # The configuration may be a stranger's: only the user's own flags choose where files are written.
            for key, flag in WRITTEN.items():
                target = Path("" if key in changes else getattr(config, key) or "")
                if target.is_absolute() or ".." in target.parts or str(target).startswith("~"):
                    raise InputError(
                        f"{key} is '{target}'; files may only name relative paths without '..'; for others, set {flag}"
                    )
        return config

    @classmethod
    def parse(cls, content: Mapping[str, object]) -> JobConfig:
        """The configuration in plain data; errors begin with the key."""
        refuse_sweep(content)
        refuse_misplaced(content)
        config = parse(cls, without_removed(content))
        config._check()
        return config

    def _check(self) -> None:
        if (self.model is None) == (self.assembly is None):
            fault = "neither is set" if self.model is None else "both are set"
            raise InputError(f"model or assembly: {fault}; set model to one part, or assembly to a list of parts")
        if self.model is not None and self.head is not None:
            raise InputError("head requires assembly; move it into the part that is the model, or use assembly")
        if self.load_from and self.resume_from:
            raise InputError("load_from and resume_from are both set; set load_from for weights only, or resume_from")
        tasks = self.train_config.resolved_tasks
        if len({task.name for task in tasks}) < len(tasks):
            raise InputError(
                "train_config.tasks: two data sets have the same name, so results could not distinguish them; remove "
                "one, or rename its folder"
            )
        if len({task.data_preprocessing.size for task in tasks}) > 1:
            raise InputError("train_config.tasks: images have different sizes; set the same image_size for all")
        self.train_config.check_tasks()

    @cached_property
    def network(self) -> NetworkSpec:
        """The network that the file describes."""
        if self.assembly is not None:
            parts = tuple(PartSpec.parse(part, f"assembly[{number}]") for number, part in enumerate(self.assembly))
        else:
            parts = (PartSpec.parse(self.model, "model"),)
        head = None if self.head is None else PartSpec.parse(self.head, "head")
        return NetworkSpec(parts, head, self.reformat_options, self.unfrozen)

    def wanted(self, num_classes: Sequence[int] = ()) -> tuple[Wanted, ...]:
        """What the tasks need of the network; without the numbers of their classes, a network that fits any."""
        tasks = self.train_config.resolved_tasks
        counts = num_classes or [1] * len(tasks)
        pairs = zip(counts, tasks, strict=True)
        return tuple(Wanted(count, DENSE.get(task.task)) for count, task in pairs)

    @property
    def replaces_weights(self) -> bool:
        """Whether a checkpoint of the whole network replaces all pretrained weights, so none are downloaded or read."""
        return bool(self.resume_from or (isinstance(self.load_from, str) and self.strict_load))

    @property
    def files(self) -> list[str]:
        """All files of weights that it names."""
        paths = (part.arguments.get("ckp_path") for part in all_parts(self.network))
        return [*self._files_of_all, *(str(path) for path in paths if path)]

    @property
    def starts_from(self) -> list[str]:
        """The files whose weights the job starts from, that of the part which reads the images first."""
        if self.replaces_weights:
            return self._files_of_all
        head = self.load_from.get("head") if isinstance(self.load_from, dict) else None
        return sorted(self.files, key=lambda file: file == head)

    @property
    def _files_of_all(self) -> list[str]:
        start = self.load_from
        pieces = [start.get("encoder"), start.get("head")] if isinstance(start, dict) else [start]
        return [file for file in (*pieces, self.resume_from) if file]

    def changes(self, later: JobConfig) -> str:
        """Settings that affect results and differ in a later job, in one line: `KEY OLD -> NEW, ...`."""
        changed = differences(self.to_dict(), later.to_dict())
        each = [(key, in_words(old), in_words(new)) for key, old, new in changed if key not in _MAY_DIFFER]
        return ", ".join(f"{key} {old} -> {new}" for key, old, new in each)

    def to_dict(self) -> dict[str, object]:
        """All settings as plain data, as in a file for `load`."""
        settings = {key: _plain(value) for key, value in asdict(self).items() if value is not None}
        parts = {key: settings.pop(key) for key in PARTS if key in settings}
        return parts | settings | {"train_config": settings.pop("train_config")}


def differences(old: object, new: object, place: str = "") -> Iterator[tuple[str, object, object]]:
    """Places where two settings differ, with both values; None for a missing one."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(old.get(key), new.get(key), join(place, key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, join(place, number))
    # A checkpoint may contain values that no settings file can, such as tensors; those differ by their types.
    elif (type(old) is not type(new) and not all(isinstance(each, int | float) for each in (old, new))) or old != new:
        yield place, old, new


def in_words(value: object) -> str:
    """A setting in a message."""
    return "unset" if value is None else in_short(str(value))


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def job_schema() -> JsonSchemaValue:
    """The JSON Schema of a job's file."""
    return json_schema(JobConfig)
