"""`--resume auto`: the newest good checkpoint of the run's own folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stitchkit.distributed import World, from_primary, restarts
from stitchkit.engine.checkpoint_files import CheckpointFiles
from stitchkit.errors import InputError
from stitchkit.files import write_text
from stitchkit.networks.weights import read_checkpoint

_logger = logging.getLogger(__name__)

AUTO = "auto"
_LAUNCHER = ".launcher"


def find_resume(resume: str | None, files: CheckpointFiles, world: World, *, restarted: bool) -> str | None:
    """The file that a run resumes from in place of `--resume auto`; None where there is none yet.

    A launcher that starts failed ranks again (torchrun's `--max-restarts`) gives them the same flags; what the run has
    saved by then comes before what those say.

    Args:
        resume: What the flags say: a file, `auto` or None.
        files: Of the run.
        world: This process among all; the first looks, for all.
        restarted: What `is_restart` says of the run.

    Raises:
        InputError: If there are checkpoints and none is good.
    """
    if resume != AUTO and not restarted:
        return resume
    found = from_primary(world, lambda: newest_checkpoint(files))
    if found is not None:
        _logger.info("resuming from %s", found)
        return str(found)
    return None


def is_restart(files: CheckpointFiles, world: World) -> bool:
    """Whether a launcher starts the ranks of a run again which it began itself, and which has saved something."""
    return restarts() > 0 and from_primary(world, lambda: _is_ours(files.folder) and bool(files.candidates()))


@contextmanager
def launched(folder: Path, world: World) -> Iterator[None]:
    """Note in the folder which launcher began the run, until it is done; a restart resumes from its own files alone."""
    mark = folder / _LAUNCHER
    if "TORCHELASTIC_RUN_ID" in os.environ and world.rank == 0:
        write_text(mark, _launcher())
    yield
    if world.rank == 0:
        mark.unlink(missing_ok=True)


def _is_ours(folder: Path) -> bool:
    """Whether the run in the folder was begun by the launcher that started this process."""
    mark = folder / _LAUNCHER
    return mark.is_file() and mark.read_text() == _launcher()


def _launcher() -> str:
    """The process that starts the ranks, and starts them again."""
    return f"{os.getppid()} on {os.uname().nodename}"


def newest_checkpoint(files: CheckpointFiles) -> Path | None:
    """The newest good checkpoint of a run; those that are not are named.

    Raises:
        InputError: If there are some and none is good.
    """
    candidates = files.candidates()
    for path in candidates:
        if not (fault := _fault(path)):
            return path
        _logger.warning("%s; the one before is used", fault)
    if candidates:
        raise InputError(
            f"none of the {len(candidates)} checkpoints in '{files.folder}' can be read; move them away to start "
            "again, or choose another folder"
        )
    return None


def _fault(path: Path) -> str:
    """Why a file cannot be resumed from; empty where it can."""
    try:
        read_checkpoint(path)
    except InputError as error:
        return str(error)
    return ""
