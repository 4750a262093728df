"""The recipe: every training setting, in groups, under timm's names, with its default, help and flag.

Names, meaning and defaults are those of timm's training script unless the help says otherwise.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field, StrictStr
from pydantic.dataclasses import dataclass

from stitchkit.errors import InputError
from stitchkit.settings import fields
from stitchkit.settings.dense_recipe import DenseRecipe
from stitchkit.settings.fields import flag
from stitchkit.settings.schema import Arguments, DatasetName, LocalPath, ModelArguments, Settings
from stitchkit.settings.stitch_recipe import StitchRecipe

COMMAND_ONLY = ("dataset_download", "dry_run", "anchors")
"""Settings that no file can switch on: its author would decide what is downloaded, or that nothing is trained.

Anchors in a file make it a stitch configuration.
"""

Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
"""How timm can resize images."""


@dataclass(frozen=True)
class ModelRecipe(Settings):
    """The network."""

    stitch_config: LocalPath | None = flag(None, "configuration of an SN-Net: a file, or a name such as deit_ti_s_b")
    anchors: list[str] | None = flag(
        None, "in place of --stitch-config: timm names A,B,... or checkpoints, FILE or NAME=FILE, joined by structure"
    )
    model: str | None = flag(None, "timm model name: train or evaluate this model alone")
    model_kwargs: ModelArguments | None = flag(None, "arguments of the timm model, as key=value ...")
    pretrained: bool = flag(True, "start from pretrained weights; by default not with --model")
    pretrained_path: LocalPath | None = flag(None, "file that replaces the pretrained weights of --model")
    initial_checkpoint: LocalPath | None = flag(None, "start from the weights in this file")
    num_classes: fields.Classes | None = flag(None, "number of classes; by default the data's; with 0, features")
    img_size: fields.Side | None = flag(None, "side of the square input image; by default the model's")
    in_chans: fields.Channels | None = flag(None, "channels of an input image; by default 3")
    input_size: list[fields.Side] | None = flag(None, "channels, height, width; for --in-chans, --img-size", length=3)
    gp: str | None = flag(None, "global pooling of every network, such as avg; by default the model's")
    drop: fields.Share | None = flag(None, "dropout rate of the classifier")
    drop_path: fields.AtMost99Percent | None = flag(None, "stochastic depth rate")
    drop_connect: fields.AtMost99Percent | None = flag(None, "older name of --drop-path, which wins")
    anchor_drop_path: list[fields.AtMost99Percent] | None = flag(None, "stochastic depth rate of each anchor")
    drop_block: fields.AtMost99Percent | None = flag(None, "DropBlock rate, for convolutional networks")
    head_init_scale: fields.Number | None = flag(None, "factor on the classifiers' initial weights")
    head_init_bias: fields.Number | None = flag(None, "initial bias of the classifiers")
    bn_momentum: fields.Share | None = flag(None, "momentum of every batch norm")
    bn_eps: fields.NonNegative | None = flag(None, "epsilon of every batch norm")
    split_bn: bool = flag(False, "separate batch norms for each split; with --resplit or --aug-splits")
    fast_norm: bool = flag(False, "keep layer and group norms in low precision under --amp")
    grad_checkpointing: bool = flag(False, "save memory: recompute activations in the backward pass")
    channels_last: bool = flag(False, "channels-last memory layout")
    model_dtype: Literal["float32", "float16", "bfloat16"] | None = flag(
        None, "precision of weights and images without --amp; by default float32", strict=None
    )
    torchcompile: str | None = flag(None, "compile the blocks of the anchors, or the whole --model, with this backend")
    torchcompile_mode: str | None = flag(None, "mode of the compiler, such as max-autotune")

    @property
    def is_stitched(self) -> bool:
        """Whether it is an SN-Net, not a single model."""
        return bool(self.stitch_config or self.anchors)

    @property
    def channels(self) -> int:
        """Channels of an input image."""
        return self.input_size[0] if self.input_size else self.in_chans or 3

    @property
    def sides(self) -> int | tuple[int, int] | None:
        """Side of a square input image, or height and width; None for the model's own."""
        return (self.input_size[1], self.input_size[2]) if self.input_size else self.img_size

    @property
    def drop_path_rate(self) -> float | None:
        """Stochastic depth rate, by either name."""
        return self.drop_connect if self.drop_path is None else self.drop_path


@dataclass(frozen=True)
class DataRecipe(Settings):
    """The source of the images."""

    data_dir: LocalPath | None = flag(None, "root of the dataset; without labels, also a folder or .txt list of images")
    dataset: DatasetName = flag("", "empty for an image folder, or hfds/..., wds/..., tfds/..., torch/..., cifar10")
    train_split: LocalPath = flag("train", "name of the training split")
    val_split: LocalPath = flag("validation", "name of the validation split")
    train_num_samples: fields.Amount | None = flag(None, "images of a streamed training split")
    val_num_samples: fields.Amount | None = flag(None, "images of a streamed validation split")
    dataset_download: bool = flag(False, "allow the dataset to be downloaded")
    epoch_repeats: fields.Repeats = flag(0.0, "passes through the training split per epoch, for tfds/ and hfids/")
    class_map: LocalPath = flag("", "file that maps class names to numbers")
    input_img_mode: str | None = flag(None, "PIL mode of the images; by default L, LA, RGB or RGBA by channels")
    background: str | None = flag(None, "background colour of transparent images; by default white")
    exif: bool | None = flag(None, "turn images by their EXIF orientation, the default; timm does not turn them")
    input_key: str | None = flag(None, "key of the images in a record")
    target_key: str | None = flag(None, "key of the labels in a record")
    batch_size: fields.Batch = flag(128, "training batch of each rank")
    validation_batch_size: fields.Batch | None = flag(None, "validation batch of each rank; by default as in training")
    max_unreadable: fields.Share = flag(0.01, "share of images that may be unreadable or unlabelled; 5 may, unless 0")
    workers: fields.Workers = flag(4, "loader processes of each rank")
    worker_seeding: Literal["all", "part"] = flag("all", "which random generators loader processes seed")
    pin_mem: bool = flag(False, "pin memory for the transfer to the GPU")
    no_prefetcher: bool = flag(False, "normalise images in the loader processes and mix them on the device")
    mean: list[fields.Number] | None = flag(None, "channel means, or one for all; by default the model's")
    std: list[fields.AtLeastMillionth] | None = flag(None, "channel deviations, or one for all; by default the model's")
    interpolation: Literal["", Interpolation] = flag("", "resizing for evaluation; by default the model's")
    crop_pct: Annotated[float, Field(ge=0.01, le=1)] | None = flag(
        None, "share of the image kept by the centre crop; by default the model's"
    )


@dataclass(frozen=True)
class AugmentRecipe(Settings):
    """Augmentation of training images."""

    no_aug: bool = flag(False, "no augmentation at all")
    train_crop_mode: Literal["rrc", "rkrc", "rkrr", "src"] | None = flag(
        None, "cropping for training: rrc (default), rkrc, rkrr, or DeiT-3's src, which keeps the scale", strict=None
    )
    scale: list[fields.Area] = flag([0.08, 1.0], "area of the crop", length=2)
    ratio: list[fields.AtLeastThousandth] = flag([3 / 4, 4 / 3], "aspect of the crop", length=2)
    hflip: fields.Share = flag(0.5, "probability of a horizontal flip")
    vflip: fields.Share = flag(0.0, "probability of a vertical flip")
    color_jitter: fields.NonNegative = flag(0.4, "strength of colour jitter; with --task, 0 switches it off")
    color_jitter_prob: fields.Share | None = flag(None, "probability of colour jitter; by default always")
    grayscale_prob: fields.Share | None = flag(None, "probability of a greyscale image")
    gaussian_blur_prob: fields.Share | None = flag(None, "probability of a blurred image")
    aa: str | None = flag(None, "AutoAugment policy, such as rand-m9-mstd0.5-inc1")
    aug_repeats: fields.Repeats = flag(0.0, "repetitions of each image in an epoch")
    train_interpolation: Literal["random", Interpolation] = flag("random", "resizing for training; bilinear or bicubic")
    reprob: fields.Share = flag(0.0, "probability of random erasing")
    remode: Literal["const", "rand", "pixel"] = flag("pixel", "filling of erased areas")
    recount: fields.Times = flag(1, "areas to erase")
    resplit: bool = flag(False, "erase nothing in the first split of a batch")
    aug_splits: fields.Copies = flag(0, "parts of a batch, clean images and augmented copies; 0 or at least 2")
    mixup: fields.NonNegative = flag(0.0, "mixup alpha; 0 is off")
    cutmix: fields.NonNegative = flag(0.0, "cutmix alpha; 0 is off")
    cutmix_minmax: list[fields.Share] | None = flag(None, "area range of cutmix", length=2)
    mixup_prob: fields.Share = flag(1.0, "probability of mixup or cutmix")
    mixup_switch_prob: fields.Share = flag(0.5, "probability of cutmix if both are on")
    mixup_mode: Literal["batch", "pair", "elem"] = flag("batch", "unit of mixing")
    mixup_off_epoch: fields.Natural = flag(0, "first epoch without mixing; 0 is never")
    smoothing: fields.AtMost99Percent = flag(0.1, "label smoothing")

    @property
    def mixes(self) -> bool:
        """Whether images and labels are mixed."""
        return self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None


@dataclass(frozen=True)
class LossRecipe(Settings):
    """The loss, apart from the teacher's; cross-entropy by default."""

    jsd_loss: bool = flag(False, "cross-entropy and Jensen-Shannon divergence between the --aug-splits")
    bce_loss: bool = flag(False, "binary cross-entropy of each class")
    bce_sum: bool = flag(False, "sum binary cross-entropy over classes")
    bce_target_thresh: fields.Number | None = flag(None, "round targets of --bce-loss to 0 or 1 at this threshold")
    bce_pos_weight: fields.NonNegative | None = flag(None, "weight of positive targets of --bce-loss")


@dataclass(frozen=True)
class OptimRecipe(Settings):
    """The optimizer: how weights are updated."""

    opt: str = flag("sgd", "timm optimizer")
    opt_kwargs: Arguments | None = flag(None, "further arguments of the optimizer, as key=value ...")
    opt_eps: fields.NonNegative | None = flag(None, "optimizer epsilon")
    opt_betas: list[fields.Share] | None = flag(None, "optimizer betas", length=2)
    momentum: fields.Share = flag(0.9, "momentum of SGD")
    weight_decay: fields.NonNegative = flag(2e-5, "weight decay; biases, norms and 1-d parameters have none")
    layer_decay: fields.Share | None = flag(None, "factor on the learning rate for each block below the classifier")
    layer_decay_min_scale: fields.Share = flag(0.0, "smallest factor of --layer-decay")
    layer_decay_no_opt_scale: fields.Share | None = flag(None, "freeze parameters that --layer-decay scales below this")
    base_lr_scale: fields.NonNegative = flag(1.0, "factor on the learning rate of the anchors of an SN-Net")
    stitch_lr_scale: fields.NonNegative = flag(1.0, "factor on the learning rate of the stitching layers of an SN-Net")
    clip_grad: Annotated[float, Field(ge=1e-12, le=1e9)] | None = flag(None, "gradient clipping value")
    clip_mode: Literal["norm", "value", "agc"] = flag("norm", "gradient clipping")
    grad_accum_steps: fields.Count = flag(1, "number of batches whose gradients make one step")
    amp: bool = flag(False, "mixed precision")
    amp_dtype: Literal["float16", "bfloat16"] = flag("float16", "low precision of --amp; CPUs always use bfloat16")
    model_ema: bool = flag(False, "keep a moving average of the weights")
    model_ema_decay: fields.Share = flag(0.9998, "decay of the moving average")
    model_ema_warmup: bool = flag(False, "warm up the decay of the moving average")
    model_ema_force_cpu: bool = flag(False, "keep the moving average on the CPU")
    lr: fields.Rate | None = flag(None, "learning rate; by default lr_base scaled by the total batch")
    lr_base: fields.Rate = flag(0.1, "learning rate for lr_base_size images")
    lr_base_size: fields.Count = flag(256, "total batch that lr_base is for")
    lr_base_scale: Literal["", "linear", "sqrt"] = flag(
        "", "how lr_base scales; by default sqrt for ada* and lamb, else linear"
    )


@dataclass(frozen=True)
class ScheduleRecipe(Settings):
    """Length of the training and course of the learning rate."""

    epochs: fields.Count = flag(300, "number of epochs; by default the recipe's (50 with --anchors), otherwise 300")
    start_epoch: fields.Natural | None = flag(None, "epoch to start at; by default 0, or that of --resume")
    sched: str = flag("cosine", "timm learning-rate schedule")
    sched_on_updates: bool = flag(False, "advance the schedule at each step, not each epoch")
    warmup_lr: fields.NonNegative = flag(1e-5, "learning rate at the start of warm-up")
    min_lr: fields.NonNegative = flag(0.0, "lowest learning rate")
    warmup_epochs: fields.NonNegative = flag(5.0, "epochs of warm-up")
    warmup_prefix: bool = flag(False, "run the warm-up in addition to the epochs")
    cooldown_epochs: fields.Natural = flag(0, "epochs at the lowest learning rate after the schedule")
    decay_epochs: fields.AtLeastThousandth = flag(90.0, "epochs between steps of the step schedule")
    decay_milestones: list[fields.Natural] = flag([90, 180, 270], "epochs of the multistep schedule")
    decay_rate: fields.NonNegative = flag(0.1, "factor at each step of the schedule; power of the poly schedule")
    lr_noise: list[fields.NonNegative] | None = flag(None, "where learning-rate noise begins and ends, as shares")
    lr_noise_pct: fields.AtLeastMillionth = flag(0.67, "limit of the noise, as a share of the learning rate")
    lr_noise_std: fields.NonNegative = flag(1.0, "standard deviation of the noise")
    lr_cycle_mul: fields.Factor = flag(1.0, "length of a cycle relative to the previous one")
    lr_cycle_decay: fields.NonNegative = flag(0.5, "learning rate of a cycle relative to the previous one")
    lr_cycle_limit: fields.Times = flag(1, "number of cycles")
    lr_k_decay: fields.Factor = flag(1.0, "k-decay of the cosine and poly schedules")


@dataclass(frozen=True)
class DistributedRecipe(Settings):
    """How ranks agree."""

    dist_bn: Literal["reduce", "broadcast", ""] = flag(
        "reduce", "statistics of batch norms after an epoch: mean of all ranks, those of the first, or each its own"
    )
    sync_bn: bool = flag(False, "batch norms see the batches of all ranks; on GPUs")
    no_ddp_bb: bool = flag(False, "do not broadcast buffers such as batch-norm statistics at each step")
    synchronize_step: bool = flag(False, "wait for the GPU at the end of each step")


@dataclass(frozen=True)
class RunRecipe(Settings):
    """The run itself."""

    eval: bool = flag(False, "evaluate every stitch of --resume instead of training")
    dry_run: bool = flag(False, "open the data and build the network, print what would be done, and write nothing")
    resume: LocalPath | None = flag(None, "checkpoint to resume or evaluate; auto is the newest good one of the run")
    eval_stitches: str | None = flag(None, "with --eval: cfg_id of the stitches, such as 3,5,10-20; by default all")
    eval_memory: fields.Count | None = flag(
        None, "with --eval: MiB for activations; by default half of a GPU's free memory, 1024 on a CPU"
    )
    latency: Annotated[int, Field(ge=0, le=2**20)] = flag(
        0, "with --eval: also measure latencies, in batches of N images, or of 1 without N; by default none"
    )
    recalibrate_bn: fields.Natural | None = flag(
        None,
        "with --eval: recompute batch-norm statistics of stitches from N batches of 32 training images (8 for dense "
        "prediction); 0 keeps those of training; by default given, blended and renewed ones compete on other images",
    )
    bank_images: fields.Count | None = flag(
        None, "with --eval without classes: training images for k-NN and linear probe; by default at most 50,000"
    )
    no_resume_opt: bool = flag(False, "resume the weights only")
    output: LocalPath = flag("outputs", "folder of all runs")
    experiment: str | None = flag(None, "folder of this run inside --output; by default named after its network")
    seed: fields.Seed = flag(42, "random seed")
    device: str | None = flag(None, "cpu, cuda or cuda:N; by default cuda if available")
    log_interval: fields.Count = flag(50, "steps between log lines")
    val_interval: fields.Count = flag(1, "epochs between validations of the anchors")
    recovery_interval: fields.Natural = flag(0, "steps between checkpoints within an epoch; 0: only at its end")
    checkpoint_hist: fields.Count = flag(10, "number of epoch checkpoints to keep")
    eval_metric: Literal["top1", "top5", "loss"] = flag(
        "top1", "figure that ranks checkpoints, the mean over the anchors; with --loss features, always their loss"
    )
    save_images: bool = flag(False, "save a training batch as a picture at each log line")
    log_tensorboard: bool = flag(False, "write the figures of each epoch for TensorBoard, into the run's folder")
    log_wandb: bool = flag(False, "send the figures of each epoch to Weights & Biases")
    wandb_project: str | None = flag(None, "project in Weights & Biases")
    wandb_tags: list[StrictStr] = flag([], "tags in Weights & Biases")
    wandb_resume_id: str | None = flag(None, "run to resume in Weights & Biases; with --resume")


@dataclass(frozen=True)
class Recipe(Settings):
    """All settings of a run, in groups."""

    model: ModelRecipe = Field(default_factory=ModelRecipe)
    stitch: StitchRecipe = Field(default_factory=StitchRecipe)
    dense: DenseRecipe = Field(default_factory=DenseRecipe)
    data: DataRecipe = Field(default_factory=DataRecipe)
    augment: AugmentRecipe = Field(default_factory=AugmentRecipe)
    loss: LossRecipe = Field(default_factory=LossRecipe)
    optim: OptimRecipe = Field(default_factory=OptimRecipe)
    schedule: ScheduleRecipe = Field(default_factory=ScheduleRecipe)
    distributed: DistributedRecipe = Field(default_factory=DistributedRecipe)
    run: RunRecipe = Field(default_factory=RunRecipe)

    @cached_property
    def folder(self) -> Path:
        """The folder of a run: `--output/--experiment`, named after the configuration or model if none is given."""
        name = Path(self.run.experiment or Path(self.model.stitch_config or self.model.model or "").stem)
        if name.is_absolute() or ".." in name.parts or not name.parts or "\0" in str(name):
            raise InputError(
                f"experiment {str(name)!r} is not a folder inside --output '{self.run.output}'; give --experiment a "
                "relative path without '..', and choose the folder of all runs by --output"
            )
        return Path(self.run.output) / name

    def flat(self) -> dict[str, Any]:
        """All settings by flag name, without the groups."""
        return {name: value for group in dataclasses.asdict(self).values() for name, value in group.items()}

    def for_files(self) -> dict[str, object]:
        """`flat` without the settings that no file can set."""
        return {name: value for name, value in self.flat().items() if name not in COMMAND_ONLY}


_HINTS = get_type_hints(Recipe)
GROUPS: dict[str, type[Settings]] = {item.name: _HINTS[item.name] for item in dataclasses.fields(Recipe)}
"""The groups of a recipe by name."""
