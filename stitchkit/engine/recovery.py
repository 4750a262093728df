"""The frame of a run, whatever it computes: its folder, its lock, and the checkpoint that it resumes from."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch.distributed as dist
from tqdm.contrib.logging import logging_redirect_tqdm

from stitchkit.data.unreadable import explained
from stitchkit.distributed import World, from_primary, init_world, restarts
from stitchkit.engine.checkpoint_files import CheckpointFiles
from stitchkit.engine.lock import locked, made
from stitchkit.errors import InputError
from stitchkit.files import write_text
from stitchkit.networks.weights import read_checkpoint

_logger = logging.getLogger(__name__)

AUTO = "auto"
TRAIN_LOCK = ".train.lock"
_LAUNCHER = ".launcher"


@contextmanager
def entered(lock: Path, device: str | None, *, flag: str) -> Iterator[World]:
    """Join the process group and hold the lock and folder of a run; every rank enters this.

    Raises:
        InputError: If the device is unavailable, another run writes to the folder, or it cannot be made or written to,
            with the flag that chooses another one.
    """
    world = init_world(device)
    try:
        with made(lock.parent, flag), explained(), logging_redirect_tqdm(), ExitStack() as held:
            from_primary(world, lambda: held.enter_context(locked(lock)))  # and all ranks know who else has it
            yield world
    finally:
        dist.destroy_process_group()


def find_resume(resume: str | None, files: CheckpointFiles, world: World, *, only: str = "") -> tuple[str | None, bool]:
    """The file that a run resumes from, None where there is none yet, and whether a launcher has restarted its ranks.

    A launcher that restarts failed ranks (torchrun's `--max-restarts`) gives them the same flags; the run's own files
    take precedence over those.

    Args:
        resume: From the flags: a file, `auto` or None.
        files: Of the run.
        world: This process among all; the first looks, for all.
        only: What a run does that does not train, such as `evaluate`.

    Raises:
        InputError: If there are checkpoints and none is good, or none where one is needed.
    """
    restarted = not only and _is_restart(files, world)
    if resume != AUTO and not restarted:
        return resume, False
    found = from_primary(world, lambda: newest_checkpoint(files))
    if found is not None:
        _logger.info("resuming from %s", found)
    elif only:
        raise InputError(f"'{files.folder}' holds no checkpoint to {only}; give one as --resume FILE")
    return (None if found is None else str(found)), restarted


def check_unused(files: CheckpointFiles, resume: str | None, *, flag: str) -> None:
    """Check that a training would not overwrite another run; the one whose checkpoint it resumes from is its own.

    Raises:
        InputError: If it would, with the flag that chooses another folder.
    """
    continues = resume is not None and Path(resume).resolve().parent == files.folder.resolve()
    if (found := files.candidates()) and not continues:
        raise InputError(
            f"'{files.folder}' already holds a run, whose checkpoint is '{found[0]}'; resume it with --resume auto, or "
            f"choose another {flag}"
        )


@contextmanager
def launched(folder: Path, world: World) -> Iterator[None]:
    """Note in the folder which launcher began the run, until it is done; a restart resumes from its own files alone."""
    mark = folder / _LAUNCHER
    if "TORCHELASTIC_RUN_ID" in os.environ and world.rank == 0:
        write_text(mark, _launcher())
    yield
    # Not in a `finally`: after a failure the launcher may start the ranks again, and they look for the mark.
    if world.rank == 0:
        mark.unlink(missing_ok=True)


def _is_restart(files: CheckpointFiles, world: World) -> bool:
    """Whether a launcher has restarted the ranks of a run that it began itself and that has saved something."""
    mark = files.folder / _LAUNCHER

    def is_ours() -> bool:
        return mark.is_file() and mark.read_text() == _launcher() and bool(files.candidates())

    return restarts() > 0 and from_primary(world, is_ours)


def _launcher() -> str:
    """The process that starts the ranks, and restarts them."""
    return f"{os.getppid()} on {os.uname().nodename}"


def newest_checkpoint(files: CheckpointFiles) -> Path | None:
    """The newest good checkpoint of a run; a warning names each that is not good.

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
