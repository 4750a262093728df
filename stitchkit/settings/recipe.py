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
    path: bool = False,
    command_only: bool = False,
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
        path: It names a place on this machine.
        command_only: A file cannot switch it on, since it lets others decide what is fetched.
        options: Further arguments of argparse, such as `choices`.
    """
    options["help"] = help
    limits = {"low": low, "high": high, "length": length}
    metadata = {"aliases": aliases, "kind": kind or type(default), "options": options, **limits}
    metadata |= {"path": path, "command_only": command_only}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ModelRecipe:
    """What is trained."""

    stitch_config: str | None = _flag(
        None, "stitch configuration (JSON): train or evaluate its SN-Net", kind=str, path=True
    )
    model: str | None = _flag(None, "timm model name: train or evaluate this model alone", kind=str)
    model_kwargs: dict[str, Any] | None = _flag(
        None, "arguments of the timm model, as key=value ...", kind=dict, nargs="*"
    )
    pretrained: bool = _flag(True, "start from pretrained weights (timm's --model: off unless given)")
    pretrained_path: str | None = _flag(
        None, "file that stands in for the pretrained weights of --model", kind=str, path=True
    )
    initial_checkpoint: str | None = _flag(None, "start from the weights in this file", kind=str, path=True)
    num_classes: int | None = _flag(
        None, "number of classes; by default that of the image folder, else the model's", kind=int, low=1
    )
    img_size: int | None = _flag(None, "side of the square input image; by default the model's", kind=int, low=1)
    in_chans: int | None = _flag(None, "channels of an input image; by default 3", kind=int, low=1)
    input_size: list[int] | None = _flag(
        None, "channels, height and width of an input image, in place of --in-chans and --img-size",
        kind=int, nargs=3, low=1, length=3, metavar=("C", "H", "W"),
    )  # fmt: skip
    gp: str | None = _flag(None, "global pooling of every network, such as avg; by default the model's", kind=str)
    drop: float | None = _flag(None, "dropout rate of the classifier", kind=float, low=0, high=1)
    drop_path: float | None = _flag(None, "stochastic depth rate", kind=float, low=0, high=0.99)
    drop_connect: float | None = _flag(None, "older name of --drop-path, which wins", kind=float, low=0, high=0.99)
    drop_block: float | None = _flag(None, "DropBlock rate, for convolutional networks", kind=float, low=0, high=0.99)
    head_init_scale: float | None = _flag(None, "factor on the classifiers' first weights", kind=float)
    head_init_bias: float | None = _flag(None, "first bias of the classifiers", kind=float)
    bn_momentum: float | None = _flag(None, "momentum of every batch norm", kind=float, low=0, high=1)
    bn_eps: float | None = _flag(None, "epsilon of every batch norm", kind=float, low=0)
    split_bn: bool = _flag(False, "a batch norm of its own for each split; with --resplit or --aug-splits")
    fast_norm: bool = _flag(False, "layer and group norms stay in low precision under --amp")
    grad_checkpointing: bool = _flag(False, "save memory: compute activations anew in the backward pass")
    channels_last: bool = _flag(False, "channels-last memory layout")
    model_dtype: str | None = _flag(
        None, "precision of weights and images without --amp; by default float32", kind=str,
        choices=["float32", "float16", "bfloat16"],
    )  # fmt: skip
    torchcompile: str | None = _flag(
        None, "compile the blocks of the anchors, or the whole --model, with this backend", kind=str,
        nargs="?", const="inductor", metavar="BACKEND",
    )  # fmt: skip
    torchcompile_mode: str | None = _flag(None, "mode of the compiler, such as max-autotune", kind=str)

    @property
    def channels(self) -> int:
        """Channels of an input image."""
        return self.input_size[0] if self.input_size else self.in_chans or 3

    @property
    def sides(self) -> int | tuple[int, int] | None:
        """Side of a square input image, or height and width; None is the model's."""
        return (self.input_size[1], self.input_size[2]) if self.input_size else self.img_size

    @property
    def drop_path_rate(self) -> float | None:
        """Stochastic depth rate, by either name."""
        return self.drop_connect if self.drop_path is None else self.drop_path


@dataclass(frozen=True)
class StitchRecipe:
    """How an SN-Net learns; these settings matter with a stitch configuration only."""

    sampling: str = _flag(
        "per_rank", "who draws the stitch of a step: each rank its own (published), or one for all",
        choices=["per_rank", "shared"],
    )  # fmt: skip
    ls_init: bool = _flag(True, "fit the stitching layers by least squares before training")
    ls_method: str = _flag(
        "truncated", "kind of least squares: as published, regularised, or without truncation",
        choices=["truncated", "damped", "exact"],
    )  # fmt: skip
    ls_damping: float = _flag(1e-4, "strength of damped least squares", low=0)
    stitch_init_bs: int = _flag(100, "images that the fit uses, over all ranks", low=1)
    fulltune: bool = _flag(True, "train the anchors too, not the stitching layers alone")
    distillation_type: str = _flag("none", "what the teacher gives", choices=["none", "hard", "soft"])
    distillation_alpha: float = _flag(0.5, "share of the teacher's loss", low=0, high=1)
    distillation_tau: float = _flag(1.0, "temperature of soft distillation", low=1e-3)
    teacher_model: str | None = _flag(None, "timm name of the teacher", kind=str)
    teacher_path: str | None = _flag(None, "local weights of the teacher; by default timm's", kind=str, path=True)


@dataclass(frozen=True)
class DataRecipe:
    """Where images come from."""

    data_dir: str | None = _flag(None, "root folder of the dataset", kind=str, path=True)
    dataset: str = _flag(
        "", "data set: empty for an image folder, or hfds/..., wds/..., tfds/..., torch/..., cifar10", path=True
    )
    train_split: str = _flag("train", "name of the training split", path=True)
    val_split: str = _flag("validation", "name of the validation split", path=True)
    train_num_samples: int | None = _flag(None, "images of a streamed training split", kind=int, low=1)
    val_num_samples: int | None = _flag(None, "images of a streamed validation split", kind=int, low=1)
    dataset_download: bool = _flag(False, "allow the dataset to be downloaded", command_only=True)
    epoch_repeats: float = _flag(0.0, "times an epoch goes through the training split, of tfds/ and hfids/", low=0)
    class_map: str = _flag("", "file that maps class names to numbers", path=True)
    input_img_mode: str | None = _flag(None, "PIL mode of the images; by default RGB for 3 channels, else L", kind=str)
    input_key: str | None = _flag(None, "key of the images in a record", kind=str)
    target_key: str | None = _flag(None, "key of the labels in a record", kind=str)
    batch_size: int = _flag(128, "training batch of each rank", "-b", low=1)
    validation_batch_size: int | None = _flag(
        None, "validation batch of each rank; by default the training one", "-vb", kind=int, low=1
    )
    max_unreadable: float = _flag(
        0.01, "share of a split's images that may be unreadable or without a class before the run stops", low=0, high=1
    )
    workers: int = _flag(4, "loader processes of each rank", "-j", low=0)
    worker_seeding: str = _flag("all", "which random generators loader processes seed", choices=["all", "part"])
    pin_mem: bool = _flag(False, "pin memory for the transfer to the GPU")
    no_prefetcher: bool = _flag(False, "normalise images in the loader processes and mix them on the device")
    mean: list[float] | None = _flag(
        None, "channel means, or one for all; by default the model's", kind=float, nargs="+"
    )
    std: list[float] | None = _flag(
        None, "channel deviations, or one for all; by default the model's", kind=float, nargs="+", low=1e-6
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
    color_jitter_prob: float | None = _flag(None, "its probability; by default always", kind=float, low=0, high=1)
    grayscale_prob: float | None = _flag(None, "probability of a greyscale image", kind=float, low=0, high=1)
    gaussian_blur_prob: float | None = _flag(None, "probability of a blurred image", kind=float, low=0, high=1)
    aa: str | None = _flag(None, "AutoAugment policy, such as rand-m9-mstd0.5-inc1", kind=str)
    aug_repeats: float = _flag(0.0, "repetitions of each image in an epoch", low=0)
    train_interpolation: str = _flag("random", "resizing for training: random, bilinear or bicubic")
    reprob: float = _flag(0.0, "probability of random erasing", low=0, high=1)
    remode: str = _flag("pixel", "what erased areas are filled with", choices=["const", "rand", "pixel"])
    recount: int = _flag(1, "areas to erase", low=1)
    resplit: bool = _flag(False, "erase nothing in the first split of a batch")
    aug_splits: int = _flag(
        0, "parts of a batch: the clean images and differently varied copies; 0 or at least 2", low=0
    )
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
class LossRecipe:
    """What is minimised, besides the teacher's part; by default cross-entropy."""

    jsd_loss: bool = _flag(False, "cross-entropy and Jensen-Shannon divergence between the --aug-splits")
    bce_loss: bool = _flag(False, "binary cross-entropy of each class")
    bce_sum: bool = _flag(False, "sum it over classes")
    bce_target_thresh: float | None = _flag(None, "make its targets 0 or 1 by this threshold", kind=float)
    bce_pos_weight: float | None = _flag(None, "weight of its positive targets", kind=float, low=0)


@dataclass(frozen=True)
class OptimRecipe:
    """How weights are updated."""

    opt: str = _flag("sgd", "timm optimizer")
    opt_kwargs: dict[str, Any] | None = _flag(
        None, "further arguments of the optimizer, as key=value ...", kind=dict, nargs="*"
    )
    opt_eps: float | None = _flag(None, "optimizer epsilon", kind=float, low=0)
    opt_betas: list[float] | None = _flag(None, "optimizer betas", kind=float, nargs="+", low=0, high=1, length=2)
    momentum: float = _flag(0.9, "momentum of SGD", low=0, high=1)
    weight_decay: float = _flag(2e-5, "weight decay; biases, norms and 1-d parameters have none", low=0)
    layer_decay: float | None = _flag(
        None, "factor on the learning rate for each block further from the classifier", kind=float, low=0, high=1
    )
    layer_decay_min_scale: float = _flag(0.0, "least factor of --layer-decay", low=0, high=1)
    layer_decay_no_opt_scale: float | None = _flag(
        None, "freeze what --layer-decay gives a smaller factor than this", kind=float, low=0, high=1
    )
    base_lr_scale: float = _flag(1.0, "factor on the learning rate of the anchors of an SN-Net", low=0)
    stitch_lr_scale: float = _flag(1.0, "factor on the learning rate of its stitching layers", low=0)
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
    start_epoch: int | None = _flag(None, "epoch to start at; by default 0, or that of --resume", kind=int, low=0)
    sched: str = _flag("cosine", "timm learning-rate schedule")
    sched_on_updates: bool = _flag(False, "move the schedule on at each step, not each epoch")
    warmup_lr: float = _flag(1e-5, "learning rate at the start of warm-up", low=0)
    min_lr: float = _flag(0.0, "lowest learning rate", low=0)
    warmup_epochs: float = _flag(5.0, "epochs of warm-up", low=0)
    warmup_prefix: bool = _flag(False, "warm-up comes on top of the epochs")
    cooldown_epochs: int = _flag(0, "epochs at the lowest learning rate after the schedule", low=0)
    decay_epochs: float = _flag(90.0, "epochs between steps of the step schedule", low=1e-3)
    decay_milestones: list[int] = _flag([90, 180, 270], "epochs of the multistep schedule", kind=int, nargs="+", low=0)
    decay_rate: float = _flag(0.1, "factor of a step, and power of the poly schedule", "--dr", low=0)
    lr_noise: list[float] | None = _flag(
        None, "parts of the schedule at which noise on the learning rate begins and ends", kind=float, nargs="+", low=0
    )
    lr_noise_pct: float = _flag(0.67, "limit of the noise, as part of the learning rate", low=1e-6)
    lr_noise_std: float = _flag(1.0, "standard deviation of the noise", low=0)
    lr_cycle_mul: float = _flag(1.0, "length of a cycle by that of the one before", low=1e-3)
    lr_cycle_decay: float = _flag(0.5, "learning rate of a cycle by that of the one before", low=0)
    lr_cycle_limit: int = _flag(1, "number of cycles", low=1)
    lr_k_decay: float = _flag(1.0, "k-decay of the cosine and poly schedules", low=1e-3)


@dataclass(frozen=True)
class DistributedRecipe:
    """How ranks agree."""

    dist_bn: str = _flag(
        "reduce", "statistics of batch norms after an epoch: mean of all ranks, those of the first, or each its own",
        choices=["reduce", "broadcast", ""],
    )  # fmt: skip
    sync_bn: bool = _flag(False, "batch norms see the batches of all ranks; on GPUs")
    no_ddp_bb: bool = _flag(False, "do not send buffers such as batch-norm statistics around at each step")
    synchronize_step: bool = _flag(False, "wait for the GPU at the end of each step")


@dataclass(frozen=True)
class RunRecipe:
    """The run itself."""

    eval: bool = _flag(False, "evaluate every stitch of --resume instead of training", "--evaluate")
    resume: str | None = _flag(
        None, "checkpoint to go on from or to evaluate; auto is the newest good one of the run", kind=str, path=True
    )
    eval_stitches: str | None = _flag(
        None, "with --eval: the stitches to evaluate by cfg_id, such as 3,5,10-20; by default all", kind=str
    )
    eval_memory: int | None = _flag(
        None, "with --eval: MiB for activations; by default half of a GPU's free memory, 1024 on a CPU", kind=int, low=1
    )
    latency: int = _flag(
        0, "with --eval: add to the ledger how long each stitch takes here, in batches of N images; 1 without a number",
        low=0, nargs="?", const=1, metavar="N",
    )  # fmt: skip
    recalibrate_bn: int = _flag(
        0, "with --eval: training batches from which each stitch gets batch-norm statistics of its own", low=0
    )
    no_resume_opt: bool = _flag(False, "resume the weights only")
    output: str = _flag("outputs", "folder of all runs", path=True)
    experiment: str | None = _flag(
        None, "folder of this run inside it; by default named by the configuration or model", kind=str
    )
    seed: int = _flag(42, "random seed", low=0)
    device: str | None = _flag(None, "cpu or cuda; by default cuda where there is one", kind=str)
    log_interval: int = _flag(50, "steps between log lines", low=1)
    val_interval: int = _flag(1, "epochs between validations of the anchors", low=1)
    recovery_interval: int = _flag(
        0, "steps between checkpoints within an epoch; 0 saves at its end, and when a signal stops the run",
        "--checkpoint-interval", "--checkpoint_interval", low=0,
    )  # fmt: skip
    checkpoint_hist: int = _flag(10, "number of epoch checkpoints to keep", low=1)
    eval_metric: str = _flag(
        "top1", "figure by which checkpoints are the best, the mean over anchors", choices=["top1", "top5", "loss"]
    )
    save_images: bool = _flag(False, "save a training batch as a picture at each log line")
    log_tensorboard: bool = _flag(False, "write the figures of each epoch for TensorBoard, into the run's folder")
    log_wandb: bool = _flag(False, "send the figures of each epoch to Weights & Biases")
    wandb_project: str | None = _flag(None, "its project", kind=str)
    wandb_tags: list[str] = _flag([], "its tags", kind=str, nargs="+")
    wandb_resume_id: str | None = _flag(None, "its run to go on with; with --resume", kind=str)


def flag_of(name: str) -> str:
    """The flag of a setting, as it is shown to people."""
    return "--" + name.replace("_", "-")


GROUPS: dict[str, type] = {
    "model": ModelRecipe,
    "stitch": StitchRecipe,
    "data": DataRecipe,
    "augment": AugmentRecipe,
    "loss": LossRecipe,
    "optim": OptimRecipe,
    "schedule": ScheduleRecipe,
    "distributed": DistributedRecipe,
    "run": RunRecipe,
}


@dataclass(frozen=True)
class Recipe:
    """All settings of a run, in groups."""

    model: ModelRecipe = ModelRecipe()
    stitch: StitchRecipe = StitchRecipe()
    data: DataRecipe = DataRecipe()
    augment: AugmentRecipe = field(default_factory=AugmentRecipe)
    loss: LossRecipe = LossRecipe()
    optim: OptimRecipe = OptimRecipe()
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    distributed: DistributedRecipe = DistributedRecipe()
    run: RunRecipe = field(default_factory=RunRecipe)

    def flat(self) -> dict[str, Any]:
        """All settings by flag name, without the groups."""
        return {name: value for group in asdict(self).values() for name, value in group.items()}

    def for_files(self) -> dict[str, Any]:
        """`flat` without what no file can set."""
        return {name: value for name, value in self.flat().items() if name not in _COMMAND_ONLY}


def recipe_fields() -> Iterator[tuple[str, Field[Any]]]:
    """Every setting with the name of its group, in order."""
    for group, kind in GROUPS.items():
        for setting in fields(kind):
            yield group, setting


_COMMAND_ONLY = {setting.name for _, setting in recipe_fields() if setting.metadata["command_only"]}
