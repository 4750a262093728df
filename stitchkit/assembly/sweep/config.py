"""The file of a sweep: its kind, which its keys tell, and the schema of all kinds together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os.path import isfile
from pathlib import Path

from pydantic.json_schema import JsonSchemaValue

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.config.job_settings import WRITTEN, override
from stitchkit.assembly.sweep.kinds.gaps import GapFile, plan_gaps
from stitchkit.assembly.sweep.kinds.search import plan_search
from stitchkit.assembly.sweep.plan import DatasetsFile, PlannedJob, Sweep, plan_datasets
from stitchkit.assembly.sweep.settings import CrossFile, SearchFile
from stitchkit.errors import InputError
from stitchkit.settings.files import naming, read_settings_file
from stitchkit.settings.kinds import kind_of
from stitchkit.settings.schema import json_schema, parse


def load_sweep(path: str | Path, **changes: object) -> Sweep:
    """The sweep in a file, with `changes` to the settings of its jobs, as in `JobConfig.load`."""
    _, kind = kind_of(read_settings_file(path))
    if kind == "search":
        return plan_search(path, **changes)
    if "run_cap" in changes:
        raise InputError("--trials requires a search, whose file has parameters; omit it")
    if kind == "heads by encoders":
        if "seeds" in changes:
            raise InputError("--seeds has no effect on heads by encoders, which are only tested; omit it")
        return plan_cross(path, **changes)
    if kind == "gaps":
        return plan_gaps(path, **changes)
    return plan_datasets(path, **changes)


def sweep_schema() -> JsonSchemaValue:
    """The JSON Schema of a sweep's file: the keys of all kinds; each file has those of one kind."""
    kinds = [json_schema(kind) for kind in (GapFile, DatasetsFile, CrossFile, SearchFile)]
    return {
        **kinds[0],
        "$defs": {name: part for kind in kinds for name, part in kind["$defs"].items()},
        "description": " ".join(kind["description"] for kind in kinds),
        "properties": {name: part for kind in reversed(kinds) for name, part in kind["properties"].items()},
        "anyOf": [{"required": kind["required"]} for kind in kinds],
    }


_BASE = "base"  # the name of the encoder before any fine-tuning, as the file of a head has it


@dataclass(frozen=True)
class _Tuned:
    """A fine-tuned job: its name in the table, its settings file and its checkpoint."""

    name: str
    file: Path
    content: Mapping[str, object]
    checkpoint: Path


def plan_cross(path: str | Path, **changes: object) -> Sweep:
    """A test of every head on every encoder, and on the one before fine-tuning."""
    content = read_settings_file(path)
    with naming(path):
        file = parse(CrossFile, content)
        tuned = _read(file.ft_configs)
        own = {key: value for key, value in content.items() if key not in ("ft_configs", "slurm")} | changes
        jobs = [_planned(Path(path).stem, head, encoder, own) for head in tuned for encoder in (None, *tuned)]
        seed = own.get("seed")
        return Sweep(jobs, (seed if isinstance(seed, int) else None,), file.slurm)


def _read(files: tuple[str, ...]) -> list[_Tuned]:
    tuned = []
    for number, file in enumerate(map(Path, files)):
        key = f"ft_configs[{number}]"
        if not isfile(file):  # unlike that of Path, it knows names that are too long
            raise InputError(f"{key}: '{file}' is not a file; name the config.yml of a trained job")
        config = JobConfig.load(file)
        folders = file.parent, Path(config.save_dir or file.parent)
        beside = [path for folder in folders if (path := folder / "checkpoint.pth").is_file()]
        # Runs of a sweep keep their checkpoints in a folder of their own.
        checkpoints = beside[:1] or sorted(file.parent.glob("result*/checkpoint.pth"))
        if not checkpoints:
            raise InputError(f"{key}: there is no checkpoint.pth beside '{file}'; set save_checkpoints")
        if len(checkpoints) > 1:
            raise InputError(
                f"{key}: '{file}' was trained with several seeds; copy the checkpoint.pth of one, such as "
                f"'{checkpoints[0]}', beside it"
            )
        name = "+".join(task.name for task in config.train_config.resolved_tasks)
        tuned.append(_Tuned(name, file, read_settings_file(file), checkpoints[0]))
    several = Counter(each.name for each in tuned)
    return [
        each if several[each.name] == 1 else replace(each, name=f"{each.name}-{number}")
        for number, each in enumerate(tuned, 1)
    ]


def _planned(sweep: str, head: _Tuned, encoder: _Tuned | None, settings: Mapping[str, object]) -> PlannedJob:
    name = encoder.name if encoder else _BASE
    weights = {"encoder": str(encoder.checkpoint)} if encoder else {}
    changes = {
        **settings, "test_only": True, "save_checkpoints": False, "start_epoch": 0, "project": None,
        "resume_from": None, "load_from": {**weights, "head": str(head.checkpoint)},
    }  # fmt: skip
    about = {
        "arch": sweep, "head_dataset": head.name, "head_loc": str(head.file), "encoder_dataset": name,
        "encoder_loc": str(encoder.file) if encoder else "",
    }  # fmt: skip
    config = {key: value for key, value in override(head.content, changes).items() if key not in WRITTEN}
    return PlannedJob(
        f"test-{sweep}-head-{head.name}-encoder-{name}", {**about}, config, {"head": head.name, "encoder": name}
    )
