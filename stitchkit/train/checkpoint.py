"""Checkpoints of a training run: their files, their content, and how a run resumes from one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stitchkit.classes import check_classes, trained_classes
from stitchkit.engine import training_state
from stitchkit.engine.checkpoint_files import CheckpointFiles, link, read_alike
from stitchkit.engine.epoch_state import Position
from stitchkit.engine.loop import Trainer
from stitchkit.errors import InputError
from stitchkit.networks.weights import load_content
from stitchkit.settings.recipe import Recipe
from stitchkit.train.checkpoint_header import FORMAT, check_configuration, check_header, trained_input_size
from stitchkit.train.session import Session

SUFFIX = ".pth.tar"
"""Suffix of the checkpoints of a training run."""
LAST = f"last{SUFFIX}"
"""The newest checkpoint of a run."""
PREVIOUS = f"previous{SUFFIX}"
"""The previous one."""
BEST = f"model_best{SUFFIX}"
"""The checkpoint of the best epoch."""
_OF_EVALUATIONS = ("stitches_res", "eval_args")
_START_ANEW = "start from its weights with --initial-checkpoint"
_WORST = float("-inf")


class Checkpoints(CheckpointFiles):
    """The checkpoint files of a training run, under timm's names.

    `model_best` is the best epoch, `checkpoint-<epoch>` are the best few. timm's own saver is not used because it
    unlinks before it renames and does not sync.
    """

    def __init__(self, folder: Path, *, keep: int):
        super().__init__(folder, newest=LAST, previous=PREVIOUS, kept="checkpoint-{}" + SUFFIX)
        self.keep = keep
        self.history: dict[int, float] = {}
        self._whole: tuple[Path, int] | None = None

    def clear(self) -> None:
        """Remove drafts of a killed run, and add the names that it had no time to give its last epoch."""
        for path in self.folder.glob("*.tmp"):
            if not path.name.startswith(_OF_EVALUATIONS):  # an evaluation may be running
                path.unlink()
        if self._whole is not None:
            self._link_epoch(*self._whole)

    def _link_epoch(self, path: Path, epoch: int) -> None:
        """Give a completed epoch the names that it lacks because the run was killed before it had them all."""
        newest = max(other.stat().st_mtime_ns for other in self.folder.glob(f"*{SUFFIX}"))
        if epoch not in self.history or path.stat().st_mtime_ns < newest:  # the names belong to later checkpoints
            return
        names = [self.last] if not self.last.exists() else []
        if epoch in self._ranked()[-self.keep :]:
            names.append(self._path(epoch))
        if self.history[epoch] > max((self.history[n] for n in self.history if n != epoch), default=_WORST):
            names.append(self.folder / BEST)
        for name in names:
            link(name, path)

    def resumed(self, path: str | Path, history: Mapping[int, float], *, epoch: int | None = None) -> None:
        """Note the checkpoint that a run resumes from.

        Args:
            path: The checkpoint, which was read and is therefore good.
            history: The metrics of all earlier epochs.
            epoch: The completed epoch; None within one.
        """
        self.history = dict(history)
        if epoch is not None and Path(path).resolve().parent == self.folder.resolve():
            self._whole = Path(path), epoch
        self.read(path)

    def save_within(self, state: Mapping[str, object], *, epoch: int) -> None:
        """Write the state within an epoch, with the metric of the previous epoch, since its own is not known yet."""
        self.write_newest(self._content(state, epoch - 1, self.history.get(epoch - 1, _WORST)))

    def save(self, state: Mapping[str, object], *, epoch: int, metric: float) -> None:
        """Write the state of a finished epoch; the higher the metric, the better it is."""
        is_best = metric > max(self.history.values(), default=_WORST)
        self.history[epoch] = metric
        self.write_epoch(epoch, self._content(state, epoch, metric), also=BEST if is_best else None)
        for outdated in self._ranked()[: -self.keep]:
            self._path(outdated).unlink(missing_ok=True)

    def _ranked(self) -> list[int]:
        """The epochs, the best last."""
        return sorted(self.history, key=lambda number: self.history[number])

    def _content(self, state: Mapping[str, object], epoch: int, metric: float) -> dict[str, object]:
        return {"format": FORMAT, **state, "epoch": epoch, "metric": metric, "history": dict(self.history)}


def header(session: Session) -> dict[str, object]:
    """The part of a checkpoint that describes its run."""
    return {
        "opt": session.recipe.optim.opt,
        "stitch_config": session.config.to_dict() if session.config else None,
        "classes": list(session.classes),
        "input_size": list(session.input_size),
    }


def load_weights(session: Session, *, ema: bool = False) -> tuple[dict[str, Any], str]:
    """Load the weights of `--resume`, or their moving average; return the file's content and SHA-256.

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
            f"checkpoint '{path}' was trained on images of {trained_size}, but here they are {size} (channels, "
            f"height, width); set --input-size {' '.join(map(str, trained_size))}, or the size to use it with"
        )
    check_classes(trained_classes(content), [session.classes], path, strict=True)
    load_content(session.model, content, path, ema=ema)
    return content, digest


def restore(content: Mapping[str, Any], recipe: Recipe, trainer: Trainer) -> tuple[int, Position | None]:
    """Restore a trainer whose weights are loaded; return the first epoch to be trained, and the position within it."""
    path = recipe.run.resume
    assert path is not None
    if content.get("format") != FORMAT:
        raise InputError(f"checkpoint '{path}' contains weights but no state of a run of this trainer; {_START_ANEW}")
    if content["opt"] != recipe.optim.opt:
        raise InputError(
            f"checkpoint '{path}' was trained with --opt {content['opt']}, not {recipe.optim.opt}; use the same, "
            f"or {_START_ANEW}"
        )
    start = int(content["epoch"]) + 1
    if recipe.schedule.start_epoch not in (None, start):  # another epoch begins at its start
        content = {key: value for key, value in content.items() if key != "within"}
    return start, training_state.restore(content, trainer, path, otherwise=_START_ANEW)
