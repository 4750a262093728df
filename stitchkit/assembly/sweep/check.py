"""The checks of a sweep that need no torch, which takes seconds to import."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic.dataclasses import dataclass

from stitchkit.assembly.config.job_settings import PARTS, STAND_IN, SWEEP_KEYS, JobSettings, override, refuse_misplaced
from stitchkit.assembly.sweep.kinds.search_file import SearchFile
from stitchkit.assembly.sweep.settings import CrossFile
from stitchkit.errors import InputError
from stitchkit.settings.files import naming, read_settings_file
from stitchkit.settings.kinds import kind_of
from stitchkit.settings.schema import parse


@dataclass(frozen=True)
class _SharedSettings(JobSettings):
    """What the jobs of a sweep share, without their parts."""

    further_keys: ClassVar[tuple[str, ...]] = (*PARTS, *SWEEP_KEYS)


def check_sweep(path: str | Path, **changes: object) -> None:
    """Check what can be checked without torch in the file of a sweep, with `changes` as in `load_sweep`."""
    content = read_settings_file(path)
    with naming(path):
        _, kind = kind_of(content)
        if kind == "search":
            own = {key: changes[key] for key in ("run_cap", "seeds") if key in changes}
            parse(SearchFile, content | own)
        elif "run_cap" in changes:
            raise InputError("--trials is for a search, whose file has parameters; omit it")
        elif kind == "heads by encoders":
            if "seeds" in changes:
                raise InputError("--seeds has no effect on heads by encoders, which are only tested; omit it")
            parse(CrossFile, content)
        else:
            train = content.get("train_config")
            if "datasets" in content and isinstance(train, Mapping) and "tasks" not in train:
                changes |= STAND_IN
            shared = override(content, changes)
            refuse_misplaced(shared)
            parse(_SharedSettings, {key: value for key, value in shared.items() if key not in (*PARTS, *SWEEP_KEYS)})


def check_folder(folder: str | Path) -> Path:
    """The folder of a sweep, which must exist."""
    place = Path(folder)
    if not place.is_dir():
        raise InputError(f"folder '{folder}' does not exist; name the output folder (-o) of a sweep")
    return place
