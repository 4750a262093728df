"""Checkpoints of a run: what is in them, how they reach the disk, how a run goes on from one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.utils import NativeScaler, unwrap_model

from stitchkit.classes import check_classes, trained_classes
from stitchkit.errors import InputError
from stitchkit.files import replacing, sync
from stitchkit.networks.weights import load_content
from stitchkit.settings.recipe import Recipe
from stitchkit.train.checkpoint_header import (
    FORMAT,
    SUFFIX,
    check_configuration,
    check_header,
    read_alike,
    trained_input_size,
)
from stitchkit.train.checkpoint_schema import (
    check,
)
from stitchkit.train.optim import load_optimizer
from stitchkit.train.session import Session
from stitchkit.train.task import StitchTask

LAST = f"last{SUFFIX}"
"""The newest checkpoint of a run."""
PREVIOUS = f"previous{SUFFIX}"
"""The one before it."""
_OF_EVALUATIONS = ("stitches_res", "eval_args")


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint; the file appears only when it is complete, and the one before stays until then.

    Args:
        path: The file.
        state: Plain data and tensors.

    Raises:
        InputError: If the disk does not take it.
    """
    try:
        with replacing(path) as draft, draft.open("wb") as file:
            torch.save(dict(state), file)
    except (OSError, RuntimeError) as error:
        fault = error if isinstance(error, OSError) else error.__context__  # torch has its own error for a write
        if not isinstance(fault, OSError):
            raise
        raise InputError(
            f"checkpoint '{path}' cannot be written: {fault.strerror}; stopped. The one before is kept: make room, "
            "then go on from it"
        ) from error


def link(path: Path, newest: Path) -> None:
    """Make `path` another name of the newest checkpoint."""
    if path.exists() and path.samefile(newest):
        return  # as a killed run left it; renaming one name of a file to another one would leave both
    with replacing(path) as draft:
        draft.unlink(missing_ok=True)
        try:
            os.link(newest, draft)
        except OSError:  # a file system without hard links
            shutil.copyfile(newest, draft)


class Checkpoints:
    """The checkpoint files of a run, under timm's names.

    `last` is the newest and `previous` the one before; both may be from within an epoch. `model_best` is the best
    epoch, `checkpoint-<epoch>` are the best few. timm's own saver is not used because it unlinks before it renames and
    does not sync.

    Args:
        folder: Where the files are.
        keep: How many epochs to keep.
    """

    def __init__(self, folder: Path, *, keep: int):
        self.folder = folder
        self.keep = keep
        self.history: dict[int, float] = {}
        self._last_is_good = False
        self._whole: tuple[Path, int] | None = None

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.folder / LAST

    def clear(self) -> None:
        """Remove what a killed run was about to write, and finish what it had begun."""
        for path in self.folder.glob("*.tmp"):
            if path.name.startswith(_OF_EVALUATIONS):  # one may be running
                continue
            path.unlink()
        if self._whole is not None:
            self._link_epoch(*self._whole)

    def _link_epoch(self, path: Path, epoch: int) -> None:
        """Give a whole epoch the names that it lacks where the run was killed before it had them all."""
        newest = max(other.stat().st_mtime_ns for other in self.folder.glob(f"*{SUFFIX}"))
        if epoch not in self.history or path.stat().st_mtime_ns < newest:  # names of later ones are not taken
            return
        names = [self.last] if not self.last.exists() else []
        if epoch in self._ranked()[-self.keep :]:
            names.append(self._path(epoch))
        if self.history[epoch] > max((self.history[n] for n in self.history if n != epoch), default=float("-inf")):
            names.append(self.folder / f"model_best{SUFFIX}")
        for name in names:
            if not name.exists() or not name.samefile(path):
                link(name, path)

    def resumed(self, path: str | Path, history: Mapping[int, float], *, epoch: int | None = None) -> None:
        """Go on with a run.

        Args:
            path: The checkpoint that was read, and so is good.
            history: The figures of the epochs before.
            epoch: The epoch whose end it is; None within one.
        """
        self.history = dict(history)
        if epoch is not None and Path(path).resolve().parent == self.folder.resolve():
            self._whole = Path(path), epoch
        self._last_is_good = self.last.exists() and self.last.samefile(path)

    def save_within(self, state: Mapping[str, Any], *, epoch: int) -> None:
        """Write the state within an epoch.

        Args:
            state: Plain data and tensors.
            epoch: Number of the epoch.
        """
        self._keep_previous()
        save_state(self.last, self._content(state, epoch - 1, self.history.get(epoch - 1, float("-inf"))))
        self._last_is_good = True

    def save(self, state: Mapping[str, Any], *, epoch: int, metric: float) -> None:
        """Write the state of a finished epoch; it is the newest only when all its files are there.

        Args:
            state: Plain data and tensors.
            epoch: Number of the epoch.
            metric: How good it is; higher is better.
        """
        is_best = metric > max(self.history.values(), default=float("-inf"))
        self.history[epoch] = metric
        save_state(self._path(epoch), self._content(state, epoch, metric))
        if is_best:
            link(self.folder / f"model_best{SUFFIX}", self._path(epoch))
        self._keep_previous()
        link(self.last, self._path(epoch))
        self._last_is_good = True
        sync(self.folder)
        for outdated in self._ranked()[: -self.keep]:
            self._path(outdated).unlink(missing_ok=True)

    def _ranked(self) -> list[int]:
        """The epochs, the best last."""
        return sorted(self.history, key=lambda number: self.history[number])

    def _keep_previous(self) -> None:
        """Make the newest the one before; a damaged one does not take the place of a good one."""
        if self._last_is_good:
            link(self.folder / PREVIOUS, self.last)

    def _content(self, state: Mapping[str, Any], epoch: int, metric: float) -> dict[str, Any]:
        return {"format": FORMAT, **state, "epoch": epoch, "metric": metric, "history": dict(self.history)}

    def _path(self, epoch: int) -> Path:
        return self.folder / f"checkpoint-{epoch}{SUFFIX}"


def training_state(
    session: Session, task: StitchTask, optimizer: torch.optim.Optimizer, scaler: NativeScaler | None
) -> dict[str, Any]:
    """All that a run needs to go on: plain data and tensors only."""
    state: dict[str, Any] = {
        "state_dict": unwrap_model(task.trainable_module).state_dict(),
        "optimizer": optimizer.state_dict(),
        "opt": session.recipe.optim.opt,
        "stitch_config": session.config.to_dict() if session.config else None,
        "classes": list(session.classes),
        "input_size": list(session.input_size),
    }
    if task.has_ema():
        state["state_dict_ema"] = task.get_trainable_module(ema=True).module.state_dict()  # type: ignore[union-attr]
    if scaler is not None:
        state[scaler.state_dict_key] = scaler.state_dict()
    return state


def load_weights(session: Session, *, ema: bool = False) -> tuple[dict[str, Any], str]:
    """Load the weights of `--resume` after a look at what they were trained for.

    Args:
        session: The run that asks for them.
        ema: Load the moving average.

    Returns:
        All that the file holds, and its SHA-256.

    Raises:
        InputError: If it cannot be read, or belongs to another configuration or other classes; the model is then
            unchanged.
    """
    path = session.recipe.run.resume
    assert path is not None
    content, digest = read_alike(path)
    check_header(content, path)
    if session.config is not None:
        check_configuration(content, session.config, path)
    trained_size, size, model = trained_input_size(content), list(session.input_size), session.recipe.model
    if trained_size and trained_size != size and not (model.img_size or model.input_size):
        raise InputError(
            f"checkpoint '{path}' was trained on images of {trained_size}, here they are {size} (channels, height, "
            f"width); give --input-size {' '.join(map(str, trained_size))}, or the size to use it with"
        )
    check_classes(trained_classes(content), [session.classes], path, strict=True)
    load_content(session.model, content, path, ema=ema)
    return content, digest


def restore(
    content: Mapping[str, Any],
    recipe: Recipe,
    task: StitchTask,
    optimizer: torch.optim.Optimizer,
    scaler: NativeScaler | None,
) -> int:
    """Put optimizer, scaler and moving average back as they were.

    Args:
        content: What `load_weights` gave.
        recipe: All settings.
        task: Its model has the weights already.
        optimizer: Made with the same settings.
        scaler: The loss scaler, if there is one.

    Returns:
        The first epoch still to be trained.

    Raises:
        InputError: If the file was not written by this trainer, or its optimizer or moving average does not fit.
    """
    path = recipe.run.resume
    if content.get("format") != FORMAT:
        raise InputError(
            f"checkpoint '{path}' holds weights but no state of a run of this trainer; "
            "start from them with --initial-checkpoint"
        )
    if content["opt"] != recipe.optim.opt:
        raise InputError(
            f"checkpoint '{path}' was trained with --opt {content['opt']}, not {recipe.optim.opt}; use the same, "
            "or start from its weights with --initial-checkpoint"
        )
    if task.has_ema() != ("state_dict_ema" in content):
        state = "has no" if task.has_ema() else "has a"
        raise InputError(f"checkpoint '{path}' {state} moving average of weights; use --model-ema as it was")
    try:
        load_optimizer(optimizer, content["optimizer"])
        if scaler is not None and scaler.state_dict_key in content:
            check(content[scaler.state_dict_key], scaler.state_dict(), scaler.state_dict_key)
            scaler.load_state_dict(content[scaler.state_dict_key])
    except InputError as error:
        raise InputError(
            f"checkpoint '{path}' does not fit this run: {error}; use the same settings, or start from its weights "
            "with --initial-checkpoint"
        ) from error
    if task.has_ema():
        load_content(task.get_trainable_module(ema=True).module, content, path, ema=True)  # type: ignore[union-attr,arg-type]
    return int(content["epoch"]) + 1
