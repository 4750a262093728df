"""The frame of a run, whatever it computes: its folder, its lock, and the checkpoint that it resumes from."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch.distributed as dist
from tqdm.contrib.logging import logging_redirect_tqdm

from stitchkit.data.loader_processes import explained
from stitchkit.distributed import World, from_primary, init_world, ranks_together
from stitchkit.engine.checkpoint_files import CheckpointFiles
from stitchkit.engine.lock import locked, made
from stitchkit.engine.run_log import collected
from stitchkit.errors import InputError, NotFinite
from stitchkit.files import write_text
from stitchkit.networks.weights import read_checkpoint
from stitchkit.restarts import restarts

_logger = logging.getLogger(__name__)

AUTO = "auto"
TRAIN_LOCK = ".train.lock"
_LAUNCHER = ".launcher"


@contextmanager
def joined(device: str | None) -> Iterator[World]:
    """Join the process group, and leave it as it was found; every rank enters this."""
    is_ours = not dist.is_initialized()
    world = init_world(device)
    try:
        # The log filters the handler of tqdm too.
        with logging_redirect_tqdm(), collected(world), explained():
            yield world
    finally:
        if is_ours:
            dist.destroy_process_group()


@contextmanager
def entered(lock: Path, device: str | None, *, flag: str) -> Iterator[World]:
    """Join the process group, then create and lock the folder of a run; every rank enters this.

    Messages about the folder name the `flag` that chooses another one.
    """
    with joined(device) as world, made(lock.parent, flag), ranks_together(), ExitStack() as held:
        from_primary(world, lambda: held.enter_context(locked(lock)))  # a refusal is raised on all ranks
        yield world


def find_resume(resume: str | None, files: CheckpointFiles, world: World, *, only: str = "") -> tuple[str | None, bool]:
    """The file that a run resumes from, if any, and whether a launcher restarted its ranks after it had saved one.

    A launcher that restarts failed ranks (torchrun's `--max-restarts`) gives them the same flags, so the run's own
    files take precedence over the flags. The first rank decides for all.

    Args:
        resume: The flag: a file, `auto` or None.
        only: The verb of a run that does not train, such as `evaluate`.
    """
    mark = files.folder / _LAUNCHER

    def is_ours() -> bool:
        return mark.is_file() and mark.read_text() == _launcher() and bool(files.candidates())

    restarted = not only and restarts() > 0 and from_primary(world, is_ours)
    checkpoint = resume
    if resume == AUTO or restarted:
        newest = from_primary(world, lambda: newest_checkpoint(files))
        checkpoint = None if newest is None else str(newest)
        if checkpoint is None and only:
            raise InputError(f"'{files.folder}' contains no checkpoint to {only}; name one with --resume FILE")
    if checkpoint is not None and not only:
        _logger.info("resuming from %s", checkpoint)
    return checkpoint, restarted


def check_unused(files: CheckpointFiles, resume: str | None, *, flag: str) -> None:
    """Check that a training would not overwrite another run; it may continue the run that it resumes from."""
    continues = resume is not None and Path(resume).resolve().parent == files.folder.resolve()
    if (found := files.candidates()) and not continues:
        raise InputError(
            f"'{files.folder}' already contains a run, whose checkpoint is '{found[0]}'; resume it with --resume auto, "
            f"or choose another {flag}"
        )


@contextmanager
def advising(files: CheckpointFiles, *, clip: str, amp: bool) -> Iterator[None]:
    """Complete the error of a training that is not finite: what is kept, and what to change.

    `clip` is the setting that limits gradients; `amp` says whether the run mixes precisions.
    """
    try:
        yield
    except NotFinite as error:
        kept = "The last good checkpoint is kept. " if files.candidates() else ""
        clip_or_amp = f"set or lower {clip}, or train without --amp" if amp else f"or set or lower {clip}"
        raise InputError(f"{error}; stopped. {kept}Lower --lr, {clip_or_amp}") from error


@contextmanager
def advising_evaluation() -> Iterator[None]:
    """Complete the error of networks that are not finite and are not trained here: what to evaluate in their place."""
    try:
        yield
    except NotFinite as error:
        raise InputError(
            f"{error}; the weights may have diverged, so evaluate those of an earlier epoch, or without float16"
        ) from error


@contextmanager
def launched(folder: Path, world: World) -> Iterator[None]:
    """Note in the folder which launcher began the run, until the run ends, so that a restart finds its own files."""
    mark = folder / _LAUNCHER
    if "TORCHELASTIC_RUN_ID" in os.environ and world.rank == 0:
        write_text(mark, _launcher())
    yield
    # Not in a `finally`: after a failure the launcher may restart the ranks, and they look for the mark.
    if world.rank == 0:
        mark.unlink(missing_ok=True)


def _launcher() -> str:
    """The identity of the process that starts and restarts the ranks."""
    return f"{os.getppid()} on {os.uname().nodename}"


def newest_checkpoint(files: CheckpointFiles) -> Path | None:
    """The newest good checkpoint of a run; a warning names each damaged one."""
    candidates = files.candidates()
    for path in candidates:
        try:
            read_checkpoint(path)
            return path
        except InputError as error:  # noqa: PERF203
            _logger.warning("%s; using the previous one", error)
    if candidates:
        raise InputError(
            f"none of the {len(candidates)} checkpoints in '{files.folder}' can be read; move them away to start "
            "over, or choose another folder"
        )
    return None
