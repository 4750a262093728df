"""Checkpoint files: reading them, writing them safely to disk, and choosing the one to resume from."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stitchkit.distributed import gather_objects
from stitchkit.errors import InputError
from stitchkit.files import DISK_FULL, replacing, sync
from stitchkit.networks.trained_with import take_over
from stitchkit.networks.weights import load_content, read_hashed


def read_alike(path: str) -> tuple[dict[str, Any], str]:
    """The content of a checkpoint and its SHA-256; all ranks read the same one, even if a run replaces the file.

    Every rank calls this, or one process without a group.
    """
    content: dict[str, Any] = {}
    digest = refusal = ""
    try:
        content, digest = read_hashed(path)
    except (InputError, OSError) as error:
        refusal = str(error)
        if Path(path).is_file():
            refusal += "; --resume auto takes the newest good checkpoint in the run's own folder"
    outcomes = gather_objects((digest, refusal))
    if refusals := [fault for _, fault in outcomes if fault]:
        raise InputError(refusal or refusals[0])
    if len(set(outcomes)) > 1:
        raise InputError(
            f"checkpoint '{path}' was replaced while the ranks read it; give a file that stays, such as "
            "a copy or the checkpoint of a completed epoch"
        )
    return content, digest


def start_from(network: nn.Module, path: str) -> None:
    """Load all weights of a network from a file, and take over what it says of their training."""
    content, _ = read_alike(path)
    load_content(network, content, path)
    take_over(network, content, path)


def save_state(path: Path, state: Mapping[str, object]) -> None:
    """Write a checkpoint; the file appears only when complete; until then the previous one stays."""
    try:
        with replacing(path) as draft, draft.open("wb") as file:
            torch.save(dict(state), file)
    except (OSError, RuntimeError) as error:
        # torch's writer replaces the system's error by its own, which does not say that the disk is full.
        fault = error if isinstance(error, OSError) else error.__context__
        if not isinstance(fault, OSError):
            raise
        advice = "make room" if fault.errno in DISK_FULL else "check the disk"
        raise InputError(
            f"checkpoint '{path}' cannot be written: {fault.strerror}; stopped. The previous one is kept: {advice}, "
            "then resume from it"
        ) from error


def link(path: Path, newest: Path) -> None:
    """Make `path` another name of the newest checkpoint."""
    if path.exists() and path.samefile(newest):
        return  # as a killed run left it; POSIX renames one name of a file onto another by doing nothing
    with replacing(path) as draft:
        draft.unlink(missing_ok=True)
        try:
            os.link(newest, draft)
        except OSError:  # a file system without hard links
            shutil.copyfile(newest, draft)


class CheckpointFiles:
    """The checkpoints in a run's folder: the newest, the previous one, and those of completed epochs.

    The newest and the previous one may be from within an epoch. Names of the same state are hard links, not copies.
    `kept` is the name of an epoch's checkpoint, with `{}` for its number.
    """

    def __init__(self, folder: Path, *, newest: str, previous: str, kept: str):
        self.folder = folder
        self.last = folder / newest
        self._previous = folder / previous
        self._kept = kept
        self._last_is_good = False

    def candidates(self) -> list[Path]:
        """The files that a run may resume from, the newest first."""
        pattern = re.compile(re.escape(self._kept).replace(r"\{\}", r"(\d+)"))
        numbers = {int(match[1]): path for path in self.folder.glob("*") if (match := pattern.fullmatch(path.name))}
        epochs = [numbers[number] for number in sorted(numbers, reverse=True)]
        return [path for path in (self.last, self._previous, *epochs) if path.exists()]

    def clear(self) -> None:
        """Remove drafts that a killed run left."""
        for name in (self.last.name, self._previous.name, self._kept.format("*")):
            for path in self.folder.glob(f"{name}.tmp"):
                path.unlink()

    def read(self, path: str | Path) -> None:
        """Note that a run resumes from this file, so it is known to be good."""
        self._last_is_good = self.last.exists() and self.last.samefile(path)

    def write_newest(self, state: Mapping[str, object]) -> Path:
        """Write a state from within an epoch, under the newest name only, and return the file."""
        self._keep_previous()
        save_state(self.last, state)
        self._last_is_good = True
        return self.last

    def write_epoch(self, number: int, state: Mapping[str, object], *, also: str | None = None) -> None:
        """Write the state at the end of an epoch; it becomes the newest once all its names exist, including `also`."""
        path = self._path(number)
        save_state(path, state)
        if also is not None:
            link(self.folder / also, path)
        self._keep_previous()
        link(self.last, path)
        self._last_is_good = True
        sync(self.folder)

    def _keep_previous(self) -> None:
        """Turn the newest checkpoint into the previous one, unless it is damaged and would replace a good one."""
        if self._last_is_good:
            link(self._previous, self.last)

    def _path(self, number: int) -> Path:
        return self.folder / self._kept.format(number)
