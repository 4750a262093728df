"""`--resume auto`: the newest good checkpoint of the run's own folder."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from stitchkit.distributed import World, from_primary, restarts
from stitchkit.errors import InputError
from stitchkit.files import write_text
from stitchkit.networks.weights import read_checkpoint
from stitchkit.settings.recipe import Recipe
from stitchkit.train.checkpoint import LAST, PREVIOUS

_logger = logging.getLogger(__name__)

AUTO = "auto"
_LAUNCHER = ".launcher"


def find_resume(recipe: Recipe, folder: Path, world: World) -> Recipe:
    """The recipe with a file in place of `--resume auto`, or nothing where there is none yet.

    A launcher that starts failed ranks again (torchrun's `--max-restarts`) gives them the same flags; what the run has
    saved by then comes before what those say.

    Args:
        recipe: All settings.
        folder: Of the run.
        world: This process among all; the first looks, for all.

    Raises:
        InputError: If there are checkpoints and none is good, or there is nothing to evaluate.
    """
    run = recipe.run
    is_restart = restarts() > 0 and not run.eval and from_primary(world, lambda: _is_ours(folder))
    if run.resume != AUTO and not is_restart:
        return recipe
    found = from_primary(world, lambda: newest_checkpoint(folder))
    if found is not None:
        _logger.info("going on from %s", found)
        if is_restart:  # where the run began, and with what, was said for its first start
            run = replace(run, no_resume_opt=False)
            recipe = replace(recipe, schedule=replace(recipe.schedule, start_epoch=None))
        return replace(recipe, run=replace(run, resume=str(found)))
    if run.resume != AUTO:
        return recipe
    if run.eval:
        raise InputError(f"'{folder}' holds no checkpoint to evaluate; give one as --resume CHECKPOINT")
    return replace(recipe, run=replace(run, resume=None))


@contextmanager
def launched(folder: Path, world: World) -> Iterator[None]:
    """Note in the folder which launcher began the run, until it is done: what others left there is not gone on from."""
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


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest good checkpoint in a folder; those that are not are named.

    Raises:
        InputError: If there are some and none is good.
    """
    candidates = _candidates(folder)
    for path in candidates:
        if not (fault := _fault(path)):
            return path
        _logger.warning("%s; the one before is used", fault)
    if candidates:
        raise InputError(
            f"none of the {len(candidates)} checkpoints in '{folder}' can be read; move them away to start anew, or "
            "choose another --experiment"
        )
    return None


def _fault(path: Path) -> str:
    """Why a file cannot be gone on from; empty where it can."""
    try:
        read_checkpoint(path)
    except InputError as error:
        return str(error)
    return ""


def _candidates(folder: Path) -> list[Path]:
    numbers = {
        int(match[1]): path
        for path in folder.glob("checkpoint-*.pth.tar")
        if (match := re.fullmatch(r"checkpoint-(\d+)\.pth\.tar", path.name))
    }
    epochs = [numbers[number] for number in sorted(numbers, reverse=True)]
    return [path for path in (folder / LAST, folder / PREVIOUS, *epochs) if path.exists()]
