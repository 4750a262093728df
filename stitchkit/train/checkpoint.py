"""Checkpoints of a run: what is in them, how they reach the disk, how a run goes on from one."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.utils import NativeScaler, unwrap_model

from stitchkit.classes import check_classes, trained_classes
from stitchkit.config import StitchConfig
from stitchkit.distributed import gather_objects
from stitchkit.errors import InputError
from stitchkit.files import replacing, sync
from stitchkit.model.weights import load_content, read_hashed
from stitchkit.train.optim import load_optimizer
from stitchkit.train.recipe import Recipe
from stitchkit.train.schema import anything, check, each, either, fields, nothing, number, plain, table, text, whole
from stitchkit.train.session import Session
from stitchkit.train.task import StitchTask

_FORMAT = "stitchkit 1"
_SUFFIX = ".pth.tar"
LAST = f"last{_SUFFIX}"
"""The newest checkpoint of a run."""
PREVIOUS = f"previous{_SUFFIX}"
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
        newest = max(other.stat().st_mtime_ns for other in self.folder.glob(f"*{_SUFFIX}"))
        if epoch not in self.history or path.stat().st_mtime_ns < newest:  # names of later ones are not taken
            return
        names = [self.last] if not self.last.exists() else []
        if epoch in self._ranked()[-self.keep :]:
            names.append(self._path(epoch))
        if self.history[epoch] > max((self.history[n] for n in self.history if n != epoch), default=float("-inf")):
            names.append(self.folder / f"model_best{_SUFFIX}")
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
            link(self.folder / f"model_best{_SUFFIX}", self._path(epoch))
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
        return {"format": _FORMAT, **state, "epoch": epoch, "metric": metric, "history": dict(self.history)}

    def _path(self, epoch: int) -> Path:
        return self.folder / f"checkpoint-{epoch}{_SUFFIX}"


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


def read_alike(path: str) -> tuple[dict[str, Any], str]:
    """The content of a checkpoint and its SHA-256; every rank reads the same, although a run may replace the file.

    Args:
        path: The file; every rank calls this, or one process without a group.

    Raises:
        InputError: On all ranks, if one cannot read it, or they have read different ones.
    """
    content: dict[str, Any] = {}
    digest = refusal = ""
    try:
        content, digest = read_hashed(path)
    except InputError as error:
        refusal = str(error)
        if Path(path).name.endswith(_SUFFIX) and Path(path).is_file():
            refusal += "; --resume auto takes the newest good one of the run's own folder"
    found = gather_objects((digest, refusal))
    if refusals := [said for _, said in found if said]:
        raise InputError(refusal or refusals[0])
    if len(set(found)) > 1:
        raise InputError(
            f"checkpoint '{path}' was replaced while the ranks read it; give one that stays, such as "
            "checkpoint-<epoch>.pth.tar or a copy"
        )
    return content, digest


_MOST_EPOCHS = 10**6


def check_header(content: Mapping[str, Any], path: str | Path) -> None:
    """Compare what is plain in a checkpoint of ours with its schema; its weights and states are looked at where used.

    Args:
        content: What `read_checkpoint` gave; released checkpoints pass.
        path: The file, for the message.

    Raises:
        InputError: If a key is missing, unknown, or has a value that none of ours has.
    """
    if content.get("format") != _FORMAT:
        return
    needed = {
        "format": text,
        "state_dict": table(text, anything),
        "optimizer": table(text, anything),
        "opt": text,
        "stitch_config": either(plain, nothing),
        "epoch": whole(-1, _MOST_EPOCHS),
        "metric": number(finite=False),
        "history": table(whole(0, _MOST_EPOCHS), number(finite=False)),
    }
    optional = {
        "classes": each(text),
        "input_size": [whole(1)] * 3,
        "state_dict_ema": table(text, anything),
        "within": table(text, anything),
        NativeScaler.state_dict_key: table(text, anything),
    }
    try:
        fields(needed, optional)(content, "")
    except InputError as error:
        raise InputError(f"checkpoint '{path}' is damaged: {error}") from error


def trained_input_size(content: Mapping[str, Any]) -> list[int] | None:
    """Size of an input image `[C, H, W]` that a checkpoint was trained on, where it is known."""
    size = content.get("input_size")
    is_size = isinstance(size, list) and len(size) == 3 and all(type(length) is int for length in size)
    return size if is_size else None


def check_configuration(content: Mapping[str, Any], config: StitchConfig, path: str | Path) -> None:
    """See that a checkpoint of ours was trained with the rule and anchors of a configuration; shapes tell less.

    Released checkpoints do not name their configuration and pass.

    Args:
        content: What `read_checkpoint` gave.
        config: The configuration it is to be used with.
        path: The file, for the message.

    Raises:
        InputError: If it was trained with another one.
    """
    trained = content.get("stitch_config")
    if not isinstance(trained, Mapping):
        return
    ours = config.to_dict()
    try:
        trained = StitchConfig.parse(trained).to_dict()
    except InputError as error:
        raise InputError(f"checkpoint '{path}' belongs to another configuration: {error}") from error
    keys = ["stitch_kernel_size", "stitch_stride", "nearest_stitching", "stitched_final_norm"]
    keys += ["stages"] if "stages" in trained and "stages" in ours else []
    wrong = [f"{key} was {trained.get(key)!r} and is {ours[key]!r}" for key in keys if trained.get(key) != ours[key]]
    for before, now in zip(trained["anchors"], ours["anchors"], strict=False):
        wrong += _anchor_differences(before, now)
    if wrong:
        more = f", and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise InputError(f"checkpoint '{path}' belongs to another configuration: {', '.join(wrong[:_SHOWN])}{more}")


_SHOWN = 3
"""Differences of two configurations that a message names."""
_FREE_KWARGS = ("img_size", "num_classes", "in_chans", "weight_init")
"""What of an anchor flags and another data set change, or what trained weights replace; `drop*` besides."""


def _anchor_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of an anchor's architecture changed, in words; label, weights' tag and checkpoint may."""
    names = [re.sub(r"_\d{3}$", "", anchor["name"].partition(".")[0]) for anchor in (before, now)]
    is_place = any(":" in name for name in names)  # a folder or repository may have moved
    wrong = [] if is_place or names[0] == names[1] else [f"name was {before['name']!r} and is {now['name']!r}"]
    was, is_ = (json.loads(json.dumps(anchor["kwargs"])) for anchor in (before, now))  # tuples as lists
    keys = [key for key in sorted(was.keys() | is_.keys()) if key not in _FREE_KWARGS and not key.startswith("drop")]
    wrong += [f"{key} was {was.get(key)!r} and is {is_.get(key)!r}" for key in keys if was.get(key) != is_.get(key)]
    return [f"{part} in anchor '{now['label']}'" for part in wrong]


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
    if content.get("format") != _FORMAT:
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
