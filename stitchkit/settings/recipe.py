"""The recipe: every training setting, in groups, under timm's names, with its default, help and flag.

Names, meaning and defaults are those of timm's training script unless the help says otherwise.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal, cast

from pydantic import Field, StrictFloat, StrictStr
from pydantic.dataclasses import dataclass

from stitchkit.settings.schema import DatasetName, LocalPath, Settings, fields_of

# Items of lists; the limits of other settings are in their fields.
Side = Annotated[int, Field(strict=True, ge=1)]
Epoch = Annotated[int, Field(strict=True, ge=0)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Area = Annotated[float, Field(strict=True, ge=1e-3, le=1)]
Aspect = Annotated[float, Field(strict=True, ge=1e-3)]
Deviation = Annotated[float, Field(strict=True, ge=1e-6)]
Position = Annotated[float, Field(strict=True, ge=0)]


def _flag(
    default: Any,
    help: str,
    *aliases: str,
    ge: float | None = None,
    le: float | None = None,
    length: int | None = None,
    strict: bool | None = True,
    command_only: bool = False,
    **options: Any,
) -> Any:
    """A field that is also a flag.

    Args:
        default: Its default; a bool makes a switch, a list a flag of several values.
        help: One line for `--help`.
        aliases: Further spellings, such as `-b`.
        ge: Least value.
        le: Greatest value.
        length: How many values a list has.
        strict: Take no text for a number; None where there are but a few choices, which pydantic wants.
        command_only: A file cannot switch it on, since it lets others decide what is fetched.
        options: Further arguments of argparse, such as `metavar`.
    """
    flag: Any = {"aliases": aliases, "command_only": command_only, "options": options}
    made: Any = {"default_factory": lambda: list(default)} if isinstance(default, list) else {"default": default}
    strict = None if isinstance(default, str) else strict  # text is never anything else
    return Field(
        **made, description=help, ge=ge, le=le, min_length=length, max_length=length, strict=strict,
        json_schema_extra={"flag": flag},
    )  # fmt: skip


@dataclass(frozen=True)
class ModelRecipe(Settings):
    """What is trained."""

    stitch_config: LocalPath | None = _flag(None, "stitch configuration (JSON): train or evaluate its SN-Net")
    model: str | None = _flag(None, "timm model name: train or evaluate this model alone")
    model_kwargs: dict[str, Any] | None = _flag(None, "arguments of the timm model, as key=value ...")
    pretrained: bool = _flag(True, "start from pretrained weights (timm's --model: off unless given)")
    pretrained_path: LocalPath | None = _flag(None, "file that replaces the pretrained weights of --model")
    initial_checkpoint: LocalPath | None = _flag(None, "start from the weights in this file")
    num_classes: int | None = _flag(
        None, "number of classes; by default that of the image folder, else the model's", ge=1
    )
    img_size: int | None = _flag(None, "side of the square input image; by default the model's", ge=1)
    in_chans: int | None = _flag(None, "channels of an input image; by default 3", ge=1)
    input_size: list[Side] | None = _flag(
        None, "channels, height and width of an input image, in place of --in-chans and --img-size", 
        nargs=3, length=3, metavar=("C", "H", "W"),
    )  # fmt: skip
    gp: str | None = _flag(None, "global pooling of every network, such as avg; by default the model's")
    drop: float | None = _flag(None, "dropout rate of the classifier", ge=0, le=1)
    drop_path: float | None = _flag(None, "stochastic depth rate", ge=0, le=0.99)
    drop_connect: float | None = _flag(None, "older name of --drop-path, which wins", ge=0, le=0.99)
    drop_block: float | None = _flag(None, "DropBlock rate, for convolutional networks", ge=0, le=0.99)
    head_init_scale: float | None = _flag(None, "factor on the classifiers' first weights")
    head_init_bias: float | None = _flag(None, "first bias of the classifiers")
    bn_momentum: float | None = _flag(None, "momentum of every batch norm", ge=0, le=1)
    bn_eps: float | None = _flag(None, "epsilon of every batch norm", ge=0)
    split_bn: bool = _flag(False, "a batch norm of its own for each split; with --resplit or --aug-splits")
    fast_norm: bool = _flag(False, "layer and group norms stay in low precision under --amp")
    grad_checkpointing: bool = _flag(False, "save memory: recompute activations in the backward pass")
    channels_last: bool = _flag(False, "channels-last memory layout")
    model_dtype: Literal["float32", "float16", "bfloat16"] | None = _flag(
        None, "precision of weights and images without --amp; by default float32", strict=None,
    )  # fmt: skip
    torchcompile: str | None = _flag(
        None, "compile the blocks of the anchors, or the whole --model, with this backend",
        nargs="?", const="inductor", metavar="BACKEND",
    )  # fmt: skip
    torchcompile_mode: str | None = _flag(None, "mode of the compiler, such as max-autotune")

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
class StitchRecipe(Settings):
    """How an SN-Net learns; these settings matter with a stitch configuration only."""

    sampling: Literal["per_rank", "shared"] = _flag(
        "per_rank", "who draws the stitch of a step: each rank its own (published), or one for all",
    )  # fmt: skip
    ls_init: bool = _flag(True, "fit the stitching layers by least squares before training")
    ls_method: Literal["truncated", "damped", "exact"] = _flag(
        "truncated", "kind of least squares: as published, regularised, or without truncation",
    )  # fmt: skip
    ls_damping: float = _flag(1e-4, "strength of damped least squares", ge=0)
    stitch_init_bs: int = _flag(100, "images that the fit uses, over all ranks", ge=1)
    fulltune: bool = _flag(True, "train the anchors too, not the stitching layers alone")
    distillation_type: Literal["none", "hard", "soft"] = _flag("none", "what the teacher gives")
    distillation_alpha: float = _flag(0.5, "share of the teacher's loss", ge=0, le=1)
    distillation_tau: float = _flag(1.0, "temperature of soft distillation", ge=1e-3)
    teacher_model: str | None = _flag(None, "timm name of the teacher")
    teacher_path: LocalPath | None = _flag(None, "local weights of the teacher; by default timm's")


@dataclass(frozen=True)
class DataRecipe(Settings):
    """Where images come from."""

    data_dir: LocalPath | None = _flag(None, "root folder of the dataset")
    dataset: DatasetName = _flag(
        "", "data set: empty for an image folder, or hfds/..., wds/..., tfds/..., torch/..., cifar10"
    )
    train_split: LocalPath = _flag("train", "name of the training split")
    val_split: LocalPath = _flag("validation", "name of the validation split")
    train_num_samples: int | None = _flag(None, "images of a streamed training split", ge=1)
    val_num_samples: int | None = _flag(None, "images of a streamed validation split", ge=1)
    dataset_download: bool = _flag(False, "allow the dataset to be downloaded", command_only=True)
    epoch_repeats: float = _flag(0.0, "times an epoch goes through the training split, of tfds/ and hfids/", ge=0)
    class_map: LocalPath = _flag("", "file that maps class names to numbers")
    input_img_mode: str | None = _flag(None, "PIL mode of the images; by default RGB for 3 channels, else L")
    input_key: str | None = _flag(None, "key of the images in a record")
    target_key: str | None = _flag(None, "key of the labels in a record")
    batch_size: int = _flag(128, "training batch of each rank", "-b", ge=1)
    validation_batch_size: int | None = _flag(
        None, "validation batch of each rank; by default the training one", "-vb", ge=1
    )
    max_unreadable: float = _flag(
        0.01, "share of a split's images that may be unreadable or without a class before the run stops", ge=0, le=1
    )
    workers: int = _flag(4, "loader processes of each rank", "-j", ge=0)
    worker_seeding: Literal["all", "part"] = _flag("all", "which random generators loader processes seed")
    pin_mem: bool = _flag(False, "pin memory for the transfer to the GPU")
    no_prefetcher: bool = _flag(False, "normalise images in the loader processes and mix them on the device")
    mean: list[StrictFloat] | None = _flag(None, "channel means, or one for all; by default the model's")
    std: list[Deviation] | None = _flag(None, "channel deviations, or one for all; by default the model's")
    interpolation: str = _flag("", "resizing for evaluation; by default the model's")
    crop_pct: float | None = _flag(
        None, "part of the image kept by the centre crop; by default the model's", ge=0.01, le=1
    )


@dataclass(frozen=True)
class AugmentRecipe(Settings):
    """How training images are varied."""

    no_aug: bool = _flag(False, "no augmentation at all")
    train_crop_mode: str | None = _flag(None, "how training images are cropped: rrc, rkrc, rkrr")
    scale: list[Area] = _flag([0.08, 1.0], "area of the crop", length=2)
    ratio: list[Aspect] = _flag([3 / 4, 4 / 3], "aspect of the crop", length=2)
    hflip: float = _flag(0.5, "probability of a horizontal flip", ge=0, le=1)
    vflip: float = _flag(0.0, "probability of a vertical flip", ge=0, le=1)
    color_jitter: float = _flag(0.4, "strength of colour jitter", ge=0)
    color_jitter_prob: float | None = _flag(None, "its probability; by default always", ge=0, le=1)
    grayscale_prob: float | None = _flag(None, "probability of a greyscale image", ge=0, le=1)
    gaussian_blur_prob: float | None = _flag(None, "probability of a blurred image", ge=0, le=1)
    aa: str | None = _flag(None, "AutoAugment policy, such as rand-m9-mstd0.5-inc1")
    aug_repeats: float = _flag(0.0, "repetitions of each image in an epoch", ge=0)
    train_interpolation: str = _flag("random", "resizing for training: random, bilinear or bicubic")
    reprob: float = _flag(0.0, "probability of random erasing", ge=0, le=1)
    remode: Literal["const", "rand", "pixel"] = _flag("pixel", "what erased areas are filled with")
    recount: int = _flag(1, "areas to erase", ge=1)
    resplit: bool = _flag(False, "erase nothing in the first split of a batch")
    aug_splits: int = _flag(
        0, "parts of a batch: the clean images and differently varied copies; 0 or at least 2", ge=0
    )
    mixup: float = _flag(0.0, "mixup alpha; 0 is off", ge=0)
    cutmix: float = _flag(0.0, "cutmix alpha; 0 is off", ge=0)
    cutmix_minmax: list[Share] | None = _flag(None, "area range of cutmix", length=2)
    mixup_prob: float = _flag(1.0, "probability of mixup or cutmix", ge=0, le=1)
    mixup_switch_prob: float = _flag(0.5, "probability of cutmix where both are on", ge=0, le=1)
    mixup_mode: Literal["batch", "pair", "elem"] = _flag("batch", "what is mixed as one")
    mixup_off_epoch: int = _flag(0, "epoch after which mixing stops; 0 is never", ge=0)
    smoothing: float = _flag(0.1, "label smoothing", ge=0, le=0.99)

    @property
    def mixes(self) -> bool:
        """Whether images and labels are mixed."""
        return self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None


@dataclass(frozen=True)
class LossRecipe(Settings):
    """What is minimised, besides the teacher's part; by default cross-entropy."""

    jsd_loss: bool = _flag(False, "cross-entropy and Jensen-Shannon divergence between the --aug-splits")
    bce_loss: bool = _flag(False, "binary cross-entropy of each class")
    bce_sum: bool = _flag(False, "sum it over classes")
    bce_target_thresh: float | None = _flag(None, "make its targets 0 or 1 by this threshold")
    bce_pos_weight: float | None = _flag(None, "weight of its positive targets", ge=0)


@dataclass(frozen=True)
class OptimRecipe(Settings):
    """How weights are updated."""

    opt: str = _flag("sgd", "timm optimizer")
    opt_kwargs: dict[str, Any] | None = _flag(None, "further arguments of the optimizer, as key=value ...")
    opt_eps: float | None = _flag(None, "optimizer epsilon", ge=0)
    opt_betas: list[Share] | None = _flag(None, "optimizer betas", length=2)
    momentum: float = _flag(0.9, "momentum of SGD", ge=0, le=1)
    weight_decay: float = _flag(2e-5, "weight decay; biases, norms and 1-d parameters have none", ge=0)
    layer_decay: float | None = _flag(
        None, "factor on the learning rate for each block further from the classifier", ge=0, le=1
    )
    layer_decay_min_scale: float = _flag(0.0, "least factor of --layer-decay", ge=0, le=1)
    layer_decay_no_opt_scale: float | None = _flag(
        None, "freeze what --layer-decay gives a smaller factor than this", ge=0, le=1
    )
    base_lr_scale: float = _flag(1.0, "factor on the learning rate of the anchors of an SN-Net", ge=0)
    stitch_lr_scale: float = _flag(1.0, "factor on the learning rate of its stitching layers", ge=0)
    clip_grad: float | None = _flag(None, "gradient clipping value", ge=1e-12)
    clip_mode: Literal["norm", "value", "agc"] = _flag("norm", "gradient clipping")
    grad_accum_steps: int = _flag(1, "batches whose gradients make one step", ge=1)
    amp: bool = _flag(False, "mixed precision")
    amp_dtype: Literal["float16", "bfloat16"] = _flag("float16", "its low precision; CPUs always use bfloat16")
    model_ema: bool = _flag(False, "keep a moving average of the weights")
    model_ema_decay: float = _flag(0.9998, "decay of the moving average", ge=0, le=1)
    model_ema_warmup: bool = _flag(False, "warm the decay up")
    model_ema_force_cpu: bool = _flag(False, "keep the moving average on the CPU")
    lr: float | None = _flag(None, "learning rate; by default lr_base scaled by the total batch", ge=0)
    lr_base: float = _flag(0.1, "learning rate for lr_base_size images", ge=0)
    lr_base_size: int = _flag(256, "total batch that lr_base is for", ge=1)
    lr_base_scale: Literal["", "linear", "sqrt"] = _flag(
        "", "how lr_base scales; by default sqrt for ada* and lamb, else linear"
    )


@dataclass(frozen=True)
class ScheduleRecipe(Settings):
    """How long, and how the learning rate runs."""

    epochs: int = _flag(300, "number of epochs", ge=1)
    start_epoch: int | None = _flag(None, "epoch to start at; by default 0, or that of --resume", ge=0)
    sched: str = _flag("cosine", "timm learning-rate schedule")
    sched_on_updates: bool = _flag(False, "advance the schedule at each step, not each epoch")
    warmup_lr: float = _flag(1e-5, "learning rate at the start of warm-up", ge=0)
    min_lr: float = _flag(0.0, "lowest learning rate", ge=0)
    warmup_epochs: float = _flag(5.0, "epochs of warm-up", ge=0)
    warmup_prefix: bool = _flag(False, "warm-up comes on top of the epochs")
    cooldown_epochs: int = _flag(0, "epochs at the lowest learning rate after the schedule", ge=0)
    decay_epochs: float = _flag(90.0, "epochs between steps of the step schedule", ge=1e-3)
    decay_milestones: list[Epoch] = _flag([90, 180, 270], "epochs of the multistep schedule")
    decay_rate: float = _flag(0.1, "factor of a step, and power of the poly schedule", "--dr", ge=0)
    lr_noise: list[Position] | None = _flag(
        None, "parts of the schedule at which noise on the learning rate begins and ends"
    )
    lr_noise_pct: float = _flag(0.67, "limit of the noise, as part of the learning rate", ge=1e-6)
    lr_noise_std: float = _flag(1.0, "standard deviation of the noise", ge=0)
    lr_cycle_mul: float = _flag(1.0, "length of a cycle by that of the one before", ge=1e-3)
    lr_cycle_decay: float = _flag(0.5, "learning rate of a cycle by that of the one before", ge=0)
    lr_cycle_limit: int = _flag(1, "number of cycles", ge=1)
    lr_k_decay: float = _flag(1.0, "k-decay of the cosine and poly schedules", ge=1e-3)


@dataclass(frozen=True)
class DistributedRecipe(Settings):
    """How ranks agree."""

    dist_bn: Literal["reduce", "broadcast", ""] = _flag(
        "reduce", "statistics of batch norms after an epoch: mean of all ranks, those of the first, or each its own",
    )  # fmt: skip
    sync_bn: bool = _flag(False, "batch norms see the batches of all ranks; on GPUs")
    no_ddp_bb: bool = _flag(False, "do not broadcast buffers such as batch-norm statistics at each step")
    synchronize_step: bool = _flag(False, "wait for the GPU at the end of each step")


@dataclass(frozen=True)
class RunRecipe(Settings):
    """The run itself."""

    eval: bool = _flag(False, "evaluate every stitch of --resume instead of training", "--evaluate")
    resume: LocalPath | None = _flag(
        None, "checkpoint to resume from or to evaluate; auto is the newest good one of the run"
    )
    eval_stitches: str | None = _flag(
        None, "with --eval: the stitches to evaluate by cfg_id, such as 3,5,10-20; by default all"
    )
    eval_memory: int | None = _flag(
        None, "with --eval: MiB for activations; by default half of a GPU's free memory, 1024 on a CPU", ge=1
    )
    latency: int = _flag(
        0, "with --eval: add to the ledger how long each stitch takes here, in batches of N images; 1 without a number",
        ge=0, nargs="?", const=1, metavar="N",
    )  # fmt: skip
    recalibrate_bn: int = _flag(
        0, "with --eval: training batches from which each stitch gets batch-norm statistics of its own", ge=0
    )
    no_resume_opt: bool = _flag(False, "resume the weights only")
    output: LocalPath = _flag("outputs", "folder of all runs")
    experiment: str | None = _flag(None, "folder of this run inside it; by default named by the configuration or model")
    seed: int = _flag(42, "random seed", ge=0)
    device: str | None = _flag(None, "cpu or cuda; by default cuda where there is one")
    log_interval: int = _flag(50, "steps between log lines", ge=1)
    val_interval: int = _flag(1, "epochs between validations of the anchors", ge=1)
    recovery_interval: int = _flag(
        0, "steps between checkpoints within an epoch; 0 saves at its end, and when a signal stops the run",
        "--checkpoint-interval", "--checkpoint_interval", ge=0,
    )  # fmt: skip
    checkpoint_hist: int = _flag(10, "number of epoch checkpoints to keep", ge=1)
    eval_metric: Literal["top1", "top5", "loss"] = _flag(
        "top1", "figure by which checkpoints are the best, the mean over anchors"
    )
    save_images: bool = _flag(False, "save a training batch as a picture at each log line")
    log_tensorboard: bool = _flag(False, "write the figures of each epoch for TensorBoard, into the run's folder")
    log_wandb: bool = _flag(False, "send the figures of each epoch to Weights & Biases")
    wandb_project: str | None = _flag(None, "its project")
    wandb_tags: list[StrictStr] = _flag([], "its tags")
    wandb_resume_id: str | None = _flag(None, "its run to resume; with --resume")


def flag_of(name: str) -> str:
    """The flag of a setting, as it is shown to people."""
    return "--" + name.replace("_", "-")


GROUPS: dict[str, type[Settings]] = {
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
class Recipe(Settings):
    """All settings of a run, in groups."""

    model: ModelRecipe = Field(default_factory=ModelRecipe)
    stitch: StitchRecipe = Field(default_factory=StitchRecipe)
    data: DataRecipe = Field(default_factory=DataRecipe)
    augment: AugmentRecipe = Field(default_factory=AugmentRecipe)
    loss: LossRecipe = Field(default_factory=LossRecipe)
    optim: OptimRecipe = Field(default_factory=OptimRecipe)
    schedule: ScheduleRecipe = Field(default_factory=ScheduleRecipe)
    distributed: DistributedRecipe = Field(default_factory=DistributedRecipe)
    run: RunRecipe = Field(default_factory=RunRecipe)

    def flat(self) -> dict[str, Any]:
        """All settings by flag name, without the groups."""
        return {name: value for group in asdict(self).values() for name, value in group.items()}

    def for_files(self) -> dict[str, Any]:
        """`flat` without what no file can set."""
        return {name: value for name, value in self.flat().items() if name not in _COMMAND_ONLY}


_COMMAND_ONLY = {
    name
    for kind in GROUPS.values()
    for name, field in fields_of(kind).items()
    if cast(dict[str, Any], field.json_schema_extra)["flag"]["command_only"]
}
