"""Settings that are individually valid but incompatible, found before anything is computed."""

from __future__ import annotations

import logging
from collections.abc import Collection, Container, Mapping
from importlib.util import find_spec

from PIL import Image

from stitchkit.display import counted
from stitchkit.errors import InputError, unknown
from stitchkit.optional import check_installed
from stitchkit.settings.fields import COLOUR_MODES, is_colour
from stitchkit.settings.recipe import OptimRecipe, Recipe
from stitchkit.settings.schema import flag_of
from stitchkit.settings.tasks import DENSE
from stitchkit.settings.timm_flags import PLATEAU

_logger = logging.getLogger(__name__)

SCHEDULES = ("cosine", "tanh", "step", "multistep", "poly", "none")
"""timm's schedules whose learning rates follow from the epoch; with `none` the rate is constant."""

# Settings, by the one without which they have no effect. timm ignores most of these silently, so that days later a run
# turns out not to be what its command says.
_NEEDED = {
    "bce_loss": ("bce_sum", "bce_target_thresh", "bce_pos_weight"),
    "layer_decay": ("layer_decay_no_opt_scale",),
    "torchcompile": ("torchcompile_mode",),
    "resume": ("wandb_resume_id",),
    "eval": ("eval_stitches", "eval_memory", "latency", "recalibrate_bn", "bank_images"),
}

ALTERNATIVES = (
    *(("stitch_config", "model"), ("stitch_config", "anchors"), ("anchors", "model")),
    *(("img_size", "input_size"), ("in_chans", "input_size")),
    *(("drop_path", "anchor_drop_path"), ("drop_connect", "anchor_drop_path")),
)
"""Settings that say one thing in two ways; the one from the stronger source replaces the other."""

# Settings that exclude each other.
_EXCLUDES = (
    *ALTERNATIVES,
    *(("split_bn", "sync_bn"), ("jsd_loss", "bce_loss"), ("aug_splits", "no_prefetcher")),
)

# Settings that have no effect without labels, each with the flag that undoes it if a file has it.
_OF_LABELS = {
    "mixup": "--mixup 0", "cutmix": "--cutmix 0", "cutmix_minmax": "", "jsd_loss": "--no-jsd-loss",
    "bce_loss": "--no-bce-loss", "distillation_type": "--distillation-type none",
}  # fmt: skip


# Settings of images with one label, which images with a target for each pixel do not have.
_OF_IMAGES = (
    *("loss", "distillation_type", "jsd_loss", "bce_loss", "class_map"),
    *("mixup", "cutmix", "cutmix_minmax", "aa", "reprob", "vflip", "aug_splits", "aug_repeats", "train_crop_mode"),
    *("grayscale_prob", "gaussian_blur_prob", "bank_images"),
    *("train_num_samples", "val_num_samples", "epoch_repeats", "max_unreadable", "smoothing", "scale", "ratio"),
    *("crop_pct", "interpolation", "train_interpolation", "color_jitter_prob", "gp", "eval_metric", "eval_memory"),
)
# Settings of SN-Nets alone, with the values that change nothing for a model.
_OF_SNNETS: Mapping[str, Collection[object]] = {
    "latency": (0,), "base_lr_scale": (1,), "stitch_lr_scale": (1,), "preserve": (None, "none"),
    "anchor_drop_path": (None, []),
}  # fmt: skip
_MOST_DRAWS = 1000
"""How often timm may draw the noise of a learning rate again, on average."""


def check(recipe: Recipe, flags: Container[str] = ()) -> Recipe:
    """Check that the settings of a recipe are compatible; `flags` are those of the command itself, not of files."""
    model = recipe.model
    if [model.is_stitched, bool(model.model)].count(True) != 1:
        raise InputError("give one of --stitch-config FILE, --anchors A,B, or --model NAME (a single network)")
    if not recipe.data.data_dir and not recipe.data.dataset:
        raise InputError("no data; give an image folder as DATA, or a timm data set as --dataset")
    if recipe.run.eval:
        _check_evaluation(recipe)
    else:
        _check_training(recipe, flags)
    _check_network(recipe)
    _check_dense(recipe)
    _check_schedule(recipe)
    _check_batches(recipe)
    settings = recipe.flat()
    for other, names in _NEEDED.items():
        for name in names:
            if settings[name] not in (None, False, 0) and not settings[other]:
                raise InputError(f"{flag_of(name)} has no effect on its own; add {flag_of(other)}")
    for name, other in _EXCLUDES:
        if settings[name] and settings[other]:
            raise InputError(f"{flag_of(name)} and {flag_of(other)} cannot be combined; omit one of the two")
    for package in ("tensorboard", "wandb"):  # otherwise the first log line would fail, after a whole epoch
        if settings[f"log_{package}"]:
            check_installed([package], "log", f"--log-{package}")
    opt = recipe.optim.opt
    if opt.lower().split("_")[-1].startswith("fused") and find_spec("apex") is None:
        raise InputError(f"--opt {opt} needs NVIDIA apex, which is not installed; install it, or omit 'fused'")
    _ = recipe.folder  # refuses one outside --output
    return recipe


def _check_network(recipe: Recipe) -> None:
    model = recipe.model
    if model.is_stitched and model.pretrained_path:
        raise InputError("--pretrained-path is for --model; give each anchor its 'checkpoint', or --anchors NAME=FILE")
    for name, value in recipe.flat().items() if model.model else ():
        if name in _OF_SNNETS and value not in _OF_SNNETS[name]:
            raise InputError(f"{flag_of(name)} requires an SN-Net; omit it for a --model")
    if model.model and recipe.stitch.uses_features:
        raise InputError(f"--loss {recipe.stitch.loss} requires an SN-Net, whose anchors teach; omit it for a --model")
    if model.split_bn and not (recipe.augment.resplit or recipe.augment.aug_splits):
        raise InputError("--split-bn needs batches in splits; add --resplit or --aug-splits")
    if model.is_stitched and recipe.distributed.sync_bn and recipe.stitch.sampling == "per_rank":
        raise InputError("--sync-bn waits for other ranks, which run different stitches; add --sampling shared")
    way = recipe.stitch.way_to_preserve
    if way != "none" and not recipe.stitch.fulltune:
        raise InputError(f"--no-fulltune and --preserve {way} both decide what trains; omit one of the two")
    if not recipe.optim.amp and recipe.optim.amp_dtype != OptimRecipe().amp_dtype:
        # No error: the settings of a run in low precision also serve to evaluate it with --no-amp.
        _logger.warning("--amp-dtype %s has no effect without --amp", recipe.optim.amp_dtype)
    if recipe.optim.amp and model.model_dtype not in (None, "float32"):
        raise InputError(f"--amp chooses the precision itself; omit it or --model-dtype {model.model_dtype}")
    if recipe.stitch.distillation_type != "none" and not recipe.stitch.teacher_model:
        raise InputError("distillation needs a teacher; give --teacher-model or --distillation-type none")


def _check_evaluation(recipe: Recipe) -> None:
    """Refuse an evaluation of weights that nobody trained."""
    if recipe.run.resume:
        return
    if recipe.model.is_stitched:
        raise InputError("--eval needs the trained weights; add --resume CHECKPOINT")
    if not (recipe.model.initial_checkpoint or recipe.model.pretrained):
        raise InputError("--eval needs weights; add --resume CHECKPOINT, --initial-checkpoint FILE or --pretrained")


def _check_training(recipe: Recipe, flags: Container[str]) -> None:
    """Refuse settings that have no effect on a training; an evaluation reads them in the settings of its training."""
    stitch, schedule, settings = recipe.stitch, recipe.schedule, recipe.flat()
    if "zoom" in flags and recipe.augment.no_aug:
        # In a file, it is part of a recipe, and --no-aug removes all augmentation of a recipe.
        raise InputError("--no-aug leaves no random scales, so --zoom has no effect; omit one of the two")
    if stitch.freezes_anchors and recipe.optim.stitch_lr_scale == 0:
        way = stitch.way_to_preserve
        raise InputError(f"--preserve {way} with --stitch-lr-scale 0 would train nothing; omit one of the two")
    idle = [name for name in _OF_LABELS if settings[name] not in (None, False, 0, "none")]
    if idle and not stitch.uses_labels:
        undone = " ".join(filter(None, map(_OF_LABELS.__getitem__, idle)))
        raise InputError(
            f"--loss features uses no labels, so {', '.join(map(flag_of, idle))} would have no effect; omit it"
            f"{f' ({undone})' if undone else ''}, or give --loss features+task"
        )
    if schedule.epochs <= schedule.warmup_epochs and not schedule.warmup_prefix and schedule.sched != "none":
        why = "--epochs %d ends within the warm-up (--warmup-epochs %g); lower --warmup-epochs"
        _logger.warning(why, schedule.epochs, schedule.warmup_epochs)


def _check_dense(recipe: Recipe) -> None:
    """Refuse settings that have no meaning for the pixels of an image, or that only they have a meaning for."""
    dense, settings, usual = recipe.dense, recipe.flat(), Recipe().flat()
    users = {name: [*DENSE] for name in ("head", "levels", "window_stride")}
    for task, facts in DENSE.items():
        for name in facts.settings:
            users.setdefault(name, []).append(task)
    if not dense.is_dense:
        for name, tasks in users.items():
            if name != "num_classes" and settings[name] != usual[name]:  # classification has it too
                advice = " or ".join(f"--task {task}" for task in tasks)
                raise InputError(f"{flag_of(name)} is for dense prediction; add {advice}")
        return
    if recipe.model.model:
        raise InputError(f"--task {dense.task} requires an SN-Net, not a --model; give --anchors A,B")
    if recipe.model.channels != 3:
        raise InputError(f"--task {dense.task} reads colour images, and --in-chans is {recipe.model.channels}; use 3")
    for name in _OF_IMAGES:
        if settings[name] != usual[name] and settings[name]:
            raise InputError(f"{flag_of(name)} {settings[name]} does not apply to --task {dense.task}; omit it")
    for name, tasks in users.items():
        if dense.task not in tasks and settings[name] != usual[name]:
            raise InputError(f"{flag_of(name)} {settings[name]} has no effect on --task {dense.task}; omit it")
    for name in ("input_key", "target_key"):
        if settings[name] and not recipe.data.dataset.lower().startswith("hfds/"):
            raise InputError(
                f"{flag_of(name)} {settings[name]} is a column of a data set of Hugging Face, and '"
                f"{recipe.data.dataset or recipe.data.data_dir}' is a folder; omit it, or give --dataset hfds/NAME"
            )
    if dense.zoom[0] > dense.zoom[1]:
        raise InputError(f"--zoom is {dense.zoom}; give the smallest scale first")


def _check_schedule(recipe: Recipe) -> None:
    """Refuse unknown schedules."""
    schedule = recipe.schedule
    if schedule.sched == "plateau":
        raise PLATEAU.error("sched plateau")
    if schedule.sched not in SCHEDULES:
        raise InputError(f"--sched: {unknown('value', schedule.sched, SCHEDULES)}")


def _check_batches(recipe: Recipe) -> None:
    data, augment = recipe.data, recipe.augment
    if augment.mixes and augment.aug_splits:
        raise InputError("--aug-splits keeps one part of a batch clean; omit it, or --mixup and --cutmix")
    if augment.mixes and data.batch_size % 2:
        raise InputError(f"--batch-size is {data.batch_size}; with mixup or cutmix it must be even")
    if (mode := data.input_img_mode) and mode not in COLOUR_MODES:
        raise InputError(f"--input-img-mode: {unknown('value', mode, COLOUR_MODES)}")
    if recipe.model.channels > 4:
        raise InputError(f"the network takes images of {recipe.model.channels} channels; images have 1 to 4")
    if data.background is not None and not is_colour(data.background):
        raise InputError(f"--background is {data.background!r}, which is no opaque colour; give a name or #rrggbb")
    if mode and (bands := Image.getmodebands(mode)) != (channels := recipe.model.channels):
        why = f"--input-img-mode {mode} gives images {counted(bands, 'channel')}, and the network takes {channels}"
        raise InputError(f"{why}; add --in-chans {bands}, or omit the mode")
    if data.epoch_repeats and not data.dataset.startswith(("tfds/", "hfids/")):
        raise InputError("--epoch-repeats is for --dataset tfds/... and hfids/..., as in timm; use more --epochs")
    if augment.aug_splits == 1:
        raise InputError("--aug-splits is 1; it must be 0 (none) or at least 2")
    if recipe.loss.jsd_loss and not augment.aug_splits:
        raise InputError("--jsd-loss has no effect on its own; add --aug-splits with 2 or more")
    if recipe.model.split_bn and not augment.aug_splits and data.batch_size % 2:
        raise InputError(f"--batch-size is {data.batch_size}; with --split-bn it must be even")
    if recipe.schedule.lr_noise is not None and len(recipe.schedule.lr_noise) > 2:
        raise InputError(f"--lr-noise is {recipe.schedule.lr_noise}; give its start, or its start and end")
    if recipe.schedule.lr_noise_std > _MOST_DRAWS * recipe.schedule.lr_noise_pct:  # timm draws until it is within
        raise InputError(
            f"--lr-noise-std is {recipe.schedule.lr_noise_std}, and noise beyond --lr-noise-pct "
            f"{recipe.schedule.lr_noise_pct} is drawn again; it must be at most {_MOST_DRAWS} times as high"
        )
