"""The recipe: every training setting, in groups, under timm's names, with its default, help and flag.

Names, meaning and defaults are those of timm's training script unless the help says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any


def _flag(
    default: Any,
    help: str,
    *aliases: str,
    kind: type | None = None,
    low: float | None = None,
    high: float | None = None,
    length: int | None = None,
    **options: Any,
) -> Any:
    """A field that is also a flag.

    Args:
        default: Its default; a bool makes a switch, a list a flag of several values.
        help: One line for `--help`.
        aliases: Further spellings, such as `-b`.
        kind: Type of the value, where the default does not tell it.
        low: Least value, or least of several values.
        high: Greatest value.
        length: How many values.
        options: Further arguments of argparse, such as `choices`.
    """
    options["help"] = help
    limits = {"low": low, "high": high, "length": length}
    metadata = {"aliases": aliases, "kind": kind or type(default), "options": options, **limits}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ModelRecipe:
    """What is trained."""

    stitch_config: str | None = _flag(None, "stitch configuration (JSON): train or evaluate its SN-Net", kind=str)
    model: str | None = _flag(None, "timm model name: train or evaluate this model alone", kind=str)
    model_kwargs: dict[str, Any] | None = _flag(
        None, "arguments of the timm model, as key=value ...", kind=dict, nargs="*"
    )
    pretrained: bool = _flag(True, "start from pretrained weights (timm's --model: off unless given)")
    initial_checkpoint: str | None = _flag(None, "start from the weights in this file", kind=str)
    num_classes: int | None = _flag(
        None, "number of classes; by default that of the image folder, else the model's", kind=int, low=1
    )
    img_size: int | None = _flag(None, "side of the square input image; by default the model's", kind=int, low=1)
    drop: float | None = _flag(None, "dropout rate of the classifier", kind=float, low=0, high=1)
    drop_path: float | None = _flag(None, "stochastic depth rate", kind=float, low=0, high=0.99)
    grad_checkpointing: bool = _flag(False, "save memory: compute activations anew in the backward pass")
    channels_last: bool = _flag(False, "channels-last memory layout")


@dataclass(frozen=True)
class StitchRecipe:
    """How an SN-Net learns; these settings matter with a stitch configuration only."""

    sampling: str = _flag(
        "per_rank", "who draws the stitch of a step: each rank its own (published), or one for all",
        choices=["per_rank", "shared"],
    )  # fmt: skip
    ls_init: bool = _flag(True, "fit the stitching layers by least squares before training")
    stitch_init_bs: int = _flag(100, "images that the fit uses, over all ranks", low=1)
    fulltune: bool = _flag(True, "train the anchors too, not the stitching layers alone")
    distillation_type: str = _flag("none", "what the teacher gives", choices=["none", "hard", "soft"])
    distillation_alpha: float = _flag(0.5, "share of the teacher's loss", low=0, high=1)
    distillation_tau: float = _flag(1.0, "temperature of soft distillation", low=1e-3)
    teacher_model: str | None = _flag(None, "timm name of the teacher", kind=str)
    teacher_path: str | None = _flag(None, "local weights of the teacher; by default timm's", kind=str)


@dataclass(frozen=True)
class DataRecipe:
    """Where images come from."""

    data_dir: str | None = _flag(None, "root folder of the dataset", kind=str)
    dataset: str = _flag("", "timm dataset: empty for an image folder, or hfds/..., wds/..., tfds/..., torch/...")
    train_split: str = _flag("train", "name of the training split")
    val_split: str = _flag("validation", "name of the validation split")
    train_num_samples: int | None = _flag(None, "images of a streamed training split", kind=int, low=1)
    val_num_samples: int | None = _flag(None, "images of a streamed validation split", kind=int, low=1)
    dataset_download: bool = _flag(False, "allow the dataset to be downloaded")
    class_map: str = _flag("", "file that maps class names to numbers")
    input_key: str | None = _flag(None, "key of the images in a record", kind=str)
    target_key: str | None = _flag(None, "key of the labels in a record", kind=str)
    batch_size: int = _flag(128, "training batch of each rank", "-b", low=1)
    validation_batch_size: int | None = _flag(
        None, "validation batch of each rank; by default the training one", "-vb", kind=int, low=1
    )
    workers: int = _flag(4, "loader processes of each rank", "-j", low=0)
    pin_mem: bool = _flag(False, "pin memory for the transfer to the GPU")
    mean: list[float] | None = _flag(None, "channel means; by default the model's", kind=float, nargs="+", length=3)
    std: list[float] | None = _flag(
        None, "channel deviations; by default the model's", kind=float, nargs="+", low=1e-6, length=3
    )
    interpolation: str = _flag("", "resizing for evaluation; by default the model's")
    crop_pct: float | None = _flag(
        None, "part of the image kept by the centre crop; by default the model's", kind=float, low=0.01, high=1
    )


@dataclass(frozen=True)
class AugmentRecipe:
    """How training images are varied."""

    no_aug: bool = _flag(False, "no augmentation at all")
    train_crop_mode: str | None = _flag(None, "how training images are cropped: rrc, rkrc, rkrr", kind=str)
    scale: list[float] = _flag([0.08, 1.0], "area of the crop", kind=float, nargs="+", low=1e-3, high=1, length=2)
    ratio: list[float] = _flag([3 / 4, 4 / 3], "aspect of the crop", kind=float, nargs="+", low=1e-3, length=2)
    hflip: float = _flag(0.5, "probability of a horizontal flip", low=0, high=1)
    vflip: float = _flag(0.0, "probability of a vertical flip", low=0, high=1)
    color_jitter: float = _flag(0.4, "strength of colour jitter", low=0)
    aa: str | None = _flag(None, "AutoAugment policy, such as rand-m9-mstd0.5-inc1", kind=str)
    aug_repeats: float = _flag(0.0, "repetitions of each image in an epoch", low=0)
    train_interpolation: str = _flag("random", "resizing for training: random, bilinear or bicubic")
    reprob: float = _flag(0.0, "probability of random erasing", low=0, high=1)
    remode: str = _flag("pixel", "what erased areas are filled with", choices=["const", "rand", "pixel"])
    recount: int = _flag(1, "areas to erase", low=1)
    mixup: float = _flag(0.0, "mixup alpha; 0 is off", low=0)
    cutmix: float = _flag(0.0, "cutmix alpha; 0 is off", low=0)
    cutmix_minmax: list[float] | None = _flag(
        None, "area range of cutmix", kind=float, nargs="+", low=0, high=1, length=2
    )
    mixup_prob: float = _flag(1.0, "probability of mixup or cutmix", low=0, high=1)
    mixup_switch_prob: float = _flag(0.5, "probability of cutmix where both are on", low=0, high=1)
    mixup_mode: str = _flag("batch", "what is mixed as one", choices=["batch", "pair", "elem"])
    mixup_off_epoch: int = _flag(0, "epoch after which mixing stops; 0 is never", low=0)
    smoothing: float = _flag(0.1, "label smoothing", low=0, high=0.99)

    @property
    def mixes(self) -> bool:
        """Whether images and labels are mixed."""
        return self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None


@dataclass(frozen=True)
class OptimRecipe:
    """How weights are updated."""

    opt: str = _flag("sgd", "timm optimizer")
    opt_eps: float | None = _flag(None, "optimizer epsilon", kind=float, low=0)
    opt_betas: list[float] | None = _flag(None, "optimizer betas", kind=float, nargs="+", low=0, high=1, length=2)
    momentum: float = _flag(0.9, "momentum of SGD", low=0, high=1)
    weight_decay: float = _flag(2e-5, "weight decay; biases, norms and 1-d parameters have none", low=0)
    clip_grad: float | None = _flag(None, "gradient clipping value", kind=float, low=1e-12)
    clip_mode: str = _flag("norm", "gradient clipping", choices=["norm", "value", "agc"])
    grad_accum_steps: int = _flag(1, "batches whose gradients make one step", low=1)
    amp: bool = _flag(False, "mixed precision")
    amp_dtype: str = _flag("float16", "its low precision; CPUs always use bfloat16", choices=["float16", "bfloat16"])
    model_ema: bool = _flag(False, "keep a moving average of the weights")
    model_ema_decay: float = _flag(0.9998, "decay of the moving average", low=0, high=1)
    model_ema_warmup: bool = _flag(False, "warm the decay up")
    model_ema_force_cpu: bool = _flag(False, "keep the moving average on the CPU")
    lr: float | None = _flag(None, "learning rate; by default lr_base scaled by the total batch", kind=float, low=0)
    lr_base: float = _flag(0.1, "learning rate for lr_base_size images", low=0)
    lr_base_size: int = _flag(256, "total batch that lr_base is for", low=1)
    lr_base_scale: str = _flag(
        "", "how lr_base scales; by default sqrt for ada* and lamb, else linear", choices=["", "linear", "sqrt"]
    )


@dataclass(frozen=True)
class ScheduleRecipe:
    """How long, and how the learning rate runs."""

    epochs: int = _flag(300, "number of epochs", low=1)
    sched: str = _flag("cosine", "timm learning-rate schedule")
    sched_on_updates: bool = _flag(False, "move the schedule on at each step, not each epoch")
    warmup_lr: float = _flag(1e-5, "learning rate at the start of warm-up", low=0)
    min_lr: float = _flag(0.0, "lowest learning rate", low=0)
    warmup_epochs: float = _flag(5.0, "epochs of warm-up", low=0)
    warmup_prefix: bool = _flag(False, "warm-up comes on top of the epochs")
    cooldown_epochs: int = _flag(0, "epochs at the lowest learning rate after the schedule", low=0)
    decay_epochs: float = _flag(90.0, "epochs between steps of the step schedule", low=1e-3)
    decay_milestones: list[int] = _flag([90, 180, 270], "epochs of the multistep schedule", kind=int, nargs="+", low=0)
    decay_rate: float = _flag(0.1, "factor of a step", low=0)


@dataclass(frozen=True)
class RunRecipe:
    """The run itself."""

    eval: bool = _flag(False, "evaluate every stitch of --resume instead of training", "--evaluate")
    resume: str | None = _flag(None, "checkpoint to go on from, or to evaluate", kind=str)
    no_resume_opt: bool = _flag(False, "resume the weights only")
    output: str = _flag("outputs", "folder of all runs")
    experiment: str | None = _flag(
        None, "folder of this run inside it; by default named by the configuration or model", kind=str
    )
    seed: int = _flag(42, "random seed", low=0)
    device: str | None = _flag(None, "cpu or cuda; by default cuda where there is one", kind=str)
    log_interval: int = _flag(50, "steps between log lines", low=1)
    val_interval: int = _flag(1, "epochs between validations of the anchors", low=1)
    checkpoint_hist: int = _flag(10, "number of epoch checkpoints to keep", low=1)


GROUPS: dict[str, type] = {
    "model": ModelRecipe,
    "stitch": StitchRecipe,
    "data": DataRecipe,
    "augment": AugmentRecipe,
    "optim": OptimRecipe,
    "schedule": ScheduleRecipe,
    "run": RunRecipe,
}


@dataclass(frozen=True)
class Recipe:
    """All settings of a run, in groups."""

    model: ModelRecipe = ModelRecipe()
    stitch: StitchRecipe = StitchRecipe()
    data: DataRecipe = DataRecipe()
    augment: AugmentRecipe = field(default_factory=AugmentRecipe)
    optim: OptimRecipe = OptimRecipe()
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    run: RunRecipe = RunRecipe()

    def flat(self) -> dict[str, Any]:
        """All settings by flag name, without the groups."""
        return {name: value for group in asdict(self).values() for name, value in group.items()}


def recipe_fields() -> Iterator[tuple[str, Field[Any]]]:
    """Every setting with the name of its group, in order."""
    for group, kind in GROUPS.items():
        for setting in fields(kind):
            yield group, setting
