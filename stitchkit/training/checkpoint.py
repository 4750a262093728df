"""Checkpoints of a training run: their files, their header, and how a run resumes from one."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stitchkit.classes import check_classes
from stitchkit.display import command
from stitchkit.engine import checkpoint_schema as rules, training_state
from stitchkit.engine.checkpoint_files import CheckpointFiles, link, read_alike
from stitchkit.engine.epoch_state import Position
from stitchkit.engine.loop import Trainer
from stitchkit.errors import InputError
from stitchkit.networks.data_config import given_data_config, saved_data_config
from stitchkit.networks.timm_model import as_timm
from stitchkit.networks.trained_with import TrainedWith, compared, note, noted
from stitchkit.networks.weights import load_content
from stitchkit.settings.fields import MOST_CLASSES
from stitchkit.settings.recipe import Recipe
from stitchkit.settings.schema import flag_of
from stitchkit.settings.stitch_config import StitchConfig
from stitchkit.training.run_network import run_network
from stitchkit.training.samplers import removal_of
from stitchkit.training.session import Session

_logger = logging.getLogger(__name__)

_SUFFIX = ".pth.tar"
LAST = f"last{_SUFFIX}"
PREVIOUS = f"previous{_SUFFIX}"
BEST = f"model_best{_SUFFIX}"
FORMAT = "stitchkit 1"
"""Format in every checkpoint of ours."""
_OF_EVALUATIONS = ("stitches_res", "eval_args")
_ONCE = {"sampler": "uniform", "loss": "task", "feature_distance": "mse", "preserve": "none"}
"""What runs did before there was a choice."""
_START_ANEW = "start from its weights with --initial-checkpoint"
_WORST = float("-inf")
_SHOWN = 3
"""Differences of two configurations that a message names."""
_FREE_KWARGS = ("img_size", "num_classes", "in_chans", "weight_init")
"""Arguments of an anchor that flags or other data may change, or that trained weights replace; so is every `drop*`."""


_IMAGE_RULES = {
    "mean": rules.each(rules.number()), "std": rules.each(rules.number()), "interpolation": rules.text,
    "crop_pct": rules.number(0), "crop_mode": rules.text, "input_img_mode": rules.text, "background": rules.text,
    "exif": rules.anything,
}  # fmt: skip


class Checkpoints(CheckpointFiles):
    """The checkpoint files of a training run, under timm's names.

    `model_best` is the best epoch, `checkpoint-<epoch>` are the best few. timm's own saver is not used because it
    unlinks before it renames and does not sync.
    """

    def __init__(self, folder: Path, *, keep: int):
        super().__init__(folder, newest=LAST, previous=PREVIOUS, kept="checkpoint-{}" + _SUFFIX)
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
        newest = max(other.stat().st_mtime_ns for other in self.folder.glob(f"*{_SUFFIX}"))
        if epoch not in self.history or path.stat().st_mtime_ns < newest:  # the names belong to later checkpoints
            return
        names = [self.last] if not self.last.exists() else []
        if epoch in self._ranked()[-self.keep :]:
            names.append(self._path(epoch))
        if self.history[epoch] > max((self.history[n] for n in self.history if n != epoch), default=_WORST):
            names.append(self.folder / BEST)
        for name in names:
            link(name, path)

    def resumed(self, path: str | Path, content: Mapping[str, Any]) -> None:
        """Note the checkpoint that a run resumes from, and the metrics of all its earlier epochs."""
        self.history = dict(content["history"])
        if not content.get("within") and Path(path).resolve().parent == self.folder.resolve():
            self._whole = Path(path), content["epoch"]
        self.read(path)

    def save_within(self, state: Mapping[str, object], *, epoch: int) -> Path:
        """Write the state within an epoch, with the metric of the previous epoch, since its own is not known yet."""
        return self.write_newest(self._content(state, epoch - 1, self.history.get(epoch - 1, _WORST)))

    def save(self, state: Mapping[str, object], *, epoch: int, metric: float) -> None:
        """Write the state of a finished epoch; the higher the metric, the better it is."""
        is_best = metric > max(self.history.values(), default=_WORST)
        self.history[epoch] = metric
        self.write_epoch(epoch, self._content(state, epoch, metric), also=BEST if is_best else None)
        for outdated in self._ranked()[: -self.keep]:
            self._path(outdated).unlink(missing_ok=True)

    def _ranked(self) -> list[int]:
        return sorted(self.history, key=lambda number: self.history[number])

    def _content(self, state: Mapping[str, object], epoch: int, metric: float) -> dict[str, object]:
        return {"format": FORMAT, **state, "epoch": epoch, "metric": metric, "history": dict(self.history)}


def header(session: Session) -> dict[str, object]:
    """The part of a checkpoint that describes its run."""
    settings, stitch, config = session.recipe.model, session.recipe.stitch, session.config
    num_classes = {"num_classes": as_timm(session.model).num_classes}
    # The arguments that rebuild a model of timm, apart from the size of its images.
    arguments = ({"global_pool": settings.gp} if settings.gp else {}) | num_classes | (settings.model_kwargs or {})
    return {
        "arch": settings.model, "model_kwargs": arguments if settings.model else {}, "opt": session.recipe.optim.opt,
        **(_of_stitching(session.recipe) if config else {}),
        "frozen_anchors": stitch.freezes_anchors or not stitch.fulltune,
        "stitch_config": config.to_dict() if config else None, **(num_classes if config else {}),
        "classes": list(session.classes or _classes_of_anchors(session)), "input_size": list(session.input_size),
        "image": saved_data_config(session.model),
    }  # fmt: skip


def _classes_of_anchors(session: Session) -> Sequence[str]:
    """The classes of an SN-Net that learned without labels: those of its checkpoint, or of all its anchors' files."""
    model = session.model
    if session.recipe.stitch.uses_labels:
        return ()
    sources = [noted(model)] if noted(model) else [*map(noted, run_network(model).networks)]
    known = {tuple(map(tuple, (trained and trained.classes) or ())) for trained in sources}
    tasks = known.pop() if len(known) == 1 else ()
    return tasks[0] if len(tasks) == 1 else ()


def _of_stitching(recipe: Recipe) -> dict[str, object]:
    """The settings of stitching that a resumed run must share, by name."""
    return {key: getattr(recipe.stitch, key) for key in _ONCE} | {"preserve": recipe.stitch.way_to_preserve}


def check_header(content: Mapping[str, object], config: StitchConfig | None, path: str | Path) -> list[int] | None:
    """Compare the plain part of a checkpoint with its schema, and its configuration with that of this run.

    Released checkpoints, which have no header, pass. Returns the size `[C, H, W]` of the training images, if known.
    """
    if content.get("format") == FORMAT:
        needed = {
            "stitch_config": rules.or_none(rules.table(rules.text, rules.plain)),
            "metric": _ordered,
            "history": rules.table(rules.whole(0, training_state.MOST_EPOCHS), _ordered),
        }
        optional = {
            "arch": rules.or_none(rules.text), "classes": rules.each(rules.text),
            "num_classes": rules.whole(0, MOST_CLASSES), "input_size": rules.image_size, "image": _IMAGE_RULES,
            "model_kwargs": rules.table(rules.text, rules.plain),
            "sampler": rules.text, "loss": rules.text, "feature_distance": rules.text, "preserve": rules.text,
            "focus": rules.whole(0), "focus_images": rules.whole(0),  # of earlier versions
            "frozen_anchors": rules.rule("true or false", lambda value: type(value) is bool),
            "alone": rules.table(rules.text, rules.number()), "copies": rules.table(rules.text, rules.anything),
        }  # fmt: skip
        training_state.check_saved(content, path, needed, optional)
    if config is not None and isinstance(theirs := content.get("stitch_config"), Mapping):
        _check_configuration(theirs, config, path)
    size = TrainedWith.read(content, path).input_size
    return None if size is None else [*size]


def _ordered(metric: object, name: str) -> None:
    """A rule: a metric that ranks epochs; it may be infinite, but not NaN, which has no order."""
    rules.number(finite=False)(metric, name)
    if metric != metric:
        raise InputError(f"{name} is not a number")


def _check_configuration(theirs: Mapping[str, object], config: StitchConfig, path: str | Path) -> None:
    """Check that a checkpoint was trained with the rule and anchors of a configuration, which shapes cannot show."""
    ours = config.to_dict()
    try:
        rules.plain(theirs, "stitch_config")  # files that are not ours have had no check so far
        trained = StitchConfig.parse({**theirs, "recipe": {"pretrained": False}}).to_dict()
    except InputError as error:
        raise InputError(f"checkpoint '{path}' was trained with another configuration: {error}") from error
    keys = ["rule", "directions", "max_switches", "stitch_kernel_size", "stitch_stride", "nearest_stitching"]
    keys += ["stitched_final_norm", "layer", "lora_r", "anchor_lora_r"]
    keys += ["stages"] if "stages" in trained and "stages" in ours else []
    wrong = _changes(trained, ours, keys)
    if (was := trained.get("dense")) != (is_ := ours.get("dense")):
        wrong.append(f"{_in_flags(is_)} is set here, but {_in_flags(was)} in the checkpoint")
    for before, now in zip(trained["anchors"], ours["anchors"], strict=False):
        wrong += _anchor_changes(before, now)
    if wrong:
        shown = ", ".join(wrong[:_SHOWN]) + (f", and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else "")
        advice = "use the settings of its run (-c RUN/args.yaml), or another checkpoint"
        raise InputError(f"checkpoint '{path}' was trained with another configuration: {shown}; {advice}")


def _in_flags(dense: Mapping[str, Any] | None) -> str:
    """A task of dense prediction as flags."""
    if dense is None:
        return "no task"
    levels = "" if dense["levels"] is None else f" --levels {' '.join(map(str, dense['levels']))}"
    return f"--task {dense['task']} --head {dense['head']}{levels}"


def _anchor_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Changes of an anchor's architecture, in words; its label, weights' tag and checkpoint are free."""
    names = [re.sub(r"_\d{3}$", "", anchor["name"].partition(".")[0]) for anchor in (before, now)]
    is_place = any(":" in name for name in names)  # a folder or repository may have moved
    label = f"anchor '{now['label']}'"
    wrong = [] if is_place or names[0] == names[1] else _changes({label: before["name"]}, {label: now["name"]}, [label])
    was, is_ = (json.loads(json.dumps(anchor["kwargs"])) for anchor in (before, now))  # tuples as lists
    keys = [key for key in sorted(was.keys() | is_.keys()) if key not in _FREE_KWARGS and not key.startswith("drop")]
    return wrong + _changes(was, is_, keys, f" of {label}")


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], keys: list[str], of: str = "") -> list[str]:
    pairs = [(key, before.get(key), now.get(key)) for key in keys]
    return [f"{key}{of} is {is_!r} here, but {was!r} in the checkpoint" for key, was, is_ in pairs if was != is_]


def load_weights(session: Session, *, ema: bool = False) -> tuple[dict[str, Any], str]:
    """Load the weights of `--resume`, or their moving average; return the file's content and SHA-256."""
    path = session.recipe.run.resume
    assert path is not None
    content, digest = read_alike(path)
    trained_size, size = check_header(content, session.config, path), list(session.input_size)
    model = session.recipe.model
    if trained_size and trained_size != size and not (model.img_size or model.input_size):
        raise InputError(
            f"checkpoint '{path}' was trained on images of {trained_size}, but here they are {size} (channels, "
            f"height, width); set --input-size {' '.join(map(str, trained_size))}, or the size to use it with"
        )
    trained, train_by = TrainedWith.read(content, path), ""  # flags that start a training on the classes of the data
    if model.model:
        train_by = command("--model", model.model, "--pretrained-path", path)
    elif trained.classes and len(trained.classes[0]) == len(session.classes):
        train_by = command("--initial-checkpoint", path)
    check_classes(trained.classes or (), [session.classes], path, strict=True, train_by=train_by)
    load_content(session.model, content, path, ema=ema)
    note(session.model, trained)
    ours, set_by_flags = as_timm(session.model).pretrained_cfg, given_data_config(session.recipe.flat())
    changes = {key: value for key, value in trained.unlike(ours).items() if key != "input_size"}  # compared before
    if changes.keys() - set_by_flags.keys():
        flags = " ".join(_as_flag(key, value) for key, value in changes.items())
        was = f"checkpoint '{path}' was trained on images prepared with {compared(changes, ours)}"
        raise InputError(f"{was}; set {flags}, or others")
    trained.say_unlike(ours)
    return content, digest


def _as_flag(key: str, value: object) -> str:
    if isinstance(value, bool):
        return flag_of(key) if value else f"--no-{key}"
    return f"{flag_of(key)} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"


def load_run(session: Session) -> dict[str, Any]:
    """Load the weights of `--resume` for a training, and return the file's content."""
    (content, _), recipe, path = load_weights(session), session.recipe, session.recipe.run.resume
    if recipe.run.no_resume_opt:
        return content
    if content.get("format") != FORMAT:
        raise InputError(f"checkpoint '{path}' contains weights but no state of a run of this trainer; {_START_ANEW}")
    removed = {
        "sampler": removal_of(content.get("sampler")),
        "focus": content.get("focus") and "studies/evidence has it",
    }
    removed["preserve"] = "studies/samplers has it" if content.get("preserve") == "replay" else None
    for name, where in removed.items():
        if where:
            which = f"{flag_of(name)} {content[name]}"
            raise InputError(
                f"checkpoint '{path}' was trained with {which}, which was removed ({where}); {_START_ANEW}"
            )
    for name, ours in {"opt": recipe.optim.opt, **(_of_stitching(recipe) if session.config else {})}.items():
        if (trained := content.get(name, _ONCE.get(name))) != ours:
            was = f"checkpoint '{path}' was trained with {flag_of(name)} {trained}"
            raise InputError(f"{was}, not {ours}; use the same, or {_START_ANEW}")
    return content


def restore(content: Mapping[str, Any], recipe: Recipe, trainer: Trainer) -> tuple[int, Position | None]:
    """Restore a trainer whose weights are loaded; return the first epoch to be trained, and the position within it."""
    path = recipe.run.resume
    assert path is not None
    start = int(content["epoch"]) + 1
    if recipe.schedule.start_epoch not in (None, start):  # another epoch begins at its start
        content = {key: value for key, value in content.items() if key != "within"}
    return start, training_state.restore(content, trainer, path, otherwise=_START_ANEW)
