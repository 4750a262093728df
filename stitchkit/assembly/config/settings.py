"""The settings of training: data, losses, optimizer, schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, StrictStr
from pydantic.dataclasses import dataclass

from stitchkit.errors import InputError
from stitchkit.settings.fields import (
    Amount,
    AtLeastMillionth,
    Batch,
    Classes,
    Count,
    Natural,
    NonNegative,
    Number,
    Seed,
    Share,
    Side,
    entry,
    is_colour,
)
from stitchkit.settings.schema import Arguments, DatasetName, LocalPath, Settings, as_written, parse
from stitchkit.settings.tasks import DENSE, TaskName


def rule(is_right: Callable[[Any], bool], fault: str) -> AfterValidator:
    """The rule of a value; `fault` is the message for others, which quotes them as `{}`."""

    def check(value: object) -> object:
        if not is_right(value):
            raise InputError(fault.format([*value] if isinstance(value, tuple) else repr(value)))
        return value

    return AfterValidator(check)


PerChannel = Annotated[
    tuple[Number, ...],
    BeforeValidator(
        lambda value: (value,) if isinstance(value, int | float) else value,
        json_schema_input_type=Number | tuple[Number, ...],
    ),
    rule(lambda values: len(values) in (1, 3), "it is {}; set one value, or one for each channel"),
]
Shares = Annotated[
    tuple[Number, Number],
    rule(lambda shares: 0 < shares[0] <= shares[1], "it is {}; set the smallest and the largest share"),
]
ToRGB = Annotated[StrictBool, rule(bool, "it is false, but networks take images of three channels; remove it")]
Colour = Annotated[
    StrictStr, rule(is_colour, "it is {}, not an opaque colour; give a name such as white, or '#rrggbb'")
]
Augmentation = Literal["default"] | StrictBool | tuple[object, ...] | None


@dataclass(frozen=True)
class Preprocessing(Settings):
    """Preparation of images for the network.

    What is not set is as in the training of the checkpoint that the network starts from, if that says it.

    Args:
        image_size: Side of an input image, or its height and width; 224 by default.
        to_rgb: Convert images to three channels, which is the only way.
        mean: Mean of each channel, or of all, for normalising images; by default that of `cifar10` or `cifar100` for
            these, otherwise ImageNet's.
        std: Standard deviation of each channel, or of all, likewise.
        resize_mode: The side that becomes `image_size` if images are not square: `shortest`, the default, with the rest
            cropped; `longest`, with the rest padded; or both (`squash`).
        crop_pct: Share of the side that tests keep: 0.875 scales it to `image_size` / 0.875 and cuts out the centre.
            The default is 1.
        interpolation: torchvision's name of the interpolation; `bicubic` by default.
        input_img_mode: PIL mode of the images, of three channels; RGB by default.
        background: Colour behind transparent images; white by default.
        exif: Turn images as their EXIF orientation says; true by default.
        random_resize_scale: Smallest and largest share of an image in a training crop; `[1, 1]` crops as in tests.
        data_augmentation: `default` or true is a flip and AutoAugment, by the policies of CIFAR and SVHN for these; a
            list names torchvision v2 transforms.
    """

    image_size: Side | tuple[Side, Side] | None = None
    to_rgb: ToRGB = True
    mean: PerChannel | None = None
    std: PerChannel | None = None
    resize_mode: Literal["shortest", "longest", "squash"] | None = None
    crop_pct: Annotated[Number, Field(ge=0.01, le=1)] | None = None
    interpolation: Literal["nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos"] | None = None
    input_img_mode: Literal["RGB", "YCbCr", "LAB", "HSV"] | None = None
    background: Colour | None = None
    exif: StrictBool | None = None
    random_resize_scale: Shares = (0.9, 1.0)
    data_augmentation: Augmentation = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an input image."""
        side = self.image_size or 224
        return side if isinstance(side, tuple) else (side, side)


@dataclass(frozen=True)
class AuxLoss(Settings):
    """An auxiliary loss, of the output of a submodule."""

    output: StrictStr = entry(..., "Path of the submodule in the network.")
    loss_fn: StrictStr = entry("cross_entropy", "Function of `torch.nn.functional`.")
    loss_fn_args: Arguments = Field(default_factory=dict, description="Its further arguments.")
    weight: NonNegative = entry(1.0, "Its weight; the main loss has 1.")


@dataclass(frozen=True)
class TopK(Settings):
    """Arguments of `topk_accuracy`."""

    topk: Count | tuple[Count, ...] = entry(1, "The k highest logits that count, or several values of k.")


@dataclass(frozen=True)
class Metric(Settings):
    """A figure of merit."""

    metric_fn: StrictStr = entry(
        "accuracy", "`accuracy`, `topk_accuracy`, or a function of `torch.nn.functional` such as `cross_entropy`."
    )
    metric_fn_args: Arguments = Field(
        default_factory=dict,
        description="Arguments of the function; for `topk_accuracy`, `topk` is a number or a list of them.",
    )
    output: StrictStr | None = entry(None, "Path of the submodule whose output is evaluated; by default the network.")

    def __post_init__(self) -> None:
        if self.metric_fn == "accuracy" and self.metric_fn_args:
            raise InputError("metric_fn_args: accuracy takes none; remove them, or use topk_accuracy")
        if self.metric_fn == "topk_accuracy":
            parse(TopK, self.metric_fn_args, "metric_fn_args")

    @property
    def ranks(self) -> tuple[int, ...]:
        """The values of k: an image counts as correct if its class is among the k highest logits."""
        topk = parse(TopK, self.metric_fn_args).topk if self.metric_fn == "topk_accuracy" else 1
        return topk if isinstance(topk, tuple) else (topk,)


@dataclass(frozen=True, kw_only=True)
class SharedByTasks(Settings):
    """Settings of a task, by default those of `train_config`."""

    task: TaskName = entry(
        "classification",
        "What the network predicts: the class of an image, or at each pixel a class (`segmentation`) or a `depth`.",
    )
    val_split: LocalPath | None = entry(
        None, "The split for tests; by default `validation` or its other names (docs/datasets.md)."
    )
    num_classes: Annotated[Classes, Field(ge=1)] | None = entry(
        None, "Number of classes of a data set that does not name them, such as a streamed one."
    )
    train_num_samples: Amount | None = entry(
        None, "Number of training images of a streamed data set that does not state it."
    )
    val_num_samples: Amount | None = entry(None, "Likewise, number of test images.")
    batch_size: Batch = entry(32, "Images per step and rank.")
    loss_fn: StrictStr = entry("cross_entropy", "Function of `torch.nn.functional`.")
    loss_fn_args: Arguments = Field(default_factory=dict, description="Its further arguments.")
    aux_losses: tuple[AuxLoss, ...] = entry((), "Further losses; the loss of the task is the weighted mean.")
    max_depth: AtLeastMillionth = entry(10.0, "With `task: depth`, the largest depth in metres that counts.")
    max_batches: Count | None = entry(None, "Number of random batches of the data used for training and for tests.")
    sampler: Literal["shuffle"] = entry(
        "shuffle", "Training draws each image once an epoch, which is the only way; saved settings have it."
    )
    data_augmentation: Augmentation = entry(None, "As in `Preprocessing`, if that has none.")


_OF_CLASSES: dict[str, object] = {"loss_fn": "cross_entropy", "loss_fn_args": {}}
"""Settings of losses of classes, with their defaults; dense tasks have losses of their own."""

_USED_BY = {
    **{
        name: (*own, *(task for task, facts in DENSE.items() if name in facts.settings))
        for name, own in (("num_classes", ("classification",)), ("max_depth", ()))
    },
    "train_num_samples": ("classification",), "val_num_samples": ("classification",),
    "resize_mode": ("classification",), "interpolation": ("classification",),
    "crop_pct": ("classification",), "random_resize_scale": ("classification",),
}  # fmt: skip
"""Settings that some kinds of tasks have no use for, and the others."""


def is_used(key: str, task: str) -> bool:
    """Whether a kind of task has a use for a setting."""
    return task in _USED_BY.get(key, (task,))


@dataclass(frozen=True, kw_only=True)
class TaskConfig(SharedByTasks):
    """A data set and its loss. Settings that are not given are those of `train_config`."""

    dataset: DatasetName = entry(..., "Name or folder of the data set.")
    data_preprocessing: Preprocessing = Field(default_factory=Preprocessing, description="Preparation of images.")
    metrics: tuple[Metric, ...] | None = entry(
        None, "Figures of merit; by default those of the job, of a dense task all of its kind."
    )

    @property
    def augmentation(self) -> Augmentation:
        """The augmentation of its training images."""
        how = self.data_preprocessing
        return self.data_augmentation if how.data_augmentation is None else how.data_augmentation

    @property
    def is_dense(self) -> bool:
        """Whether each pixel has a prediction of its own."""
        return self.task != "classification"

    @property
    def trained_figures(self) -> tuple[str, ...]:
        """The figures on its training images, beside losses."""
        return () if self.is_dense else ("Accuracy",)

    @property
    def name(self) -> str:
        """Its name in results: that of the data set, which may serve several dense tasks."""
        name = Path(self.dataset).name
        return f"{name}-{self.task}" if self.is_dense else name

    def unused(self) -> list[str]:
        """The settings, also of its preprocessing, that it has no use for; they are not the defaults."""
        pieces = {"": (self, SharedByTasks()), "data_preprocessing.": (self.data_preprocessing, Preprocessing())}
        return [
            f"{within}{key}"
            for within, (piece, usual) in pieces.items()
            for key, users in _USED_BY.items()
            if self.task not in users and getattr(piece, key, None) != getattr(usual, key, None)
        ]

    def check(self, place: str) -> None:
        """Refuse settings of classification in a dense task; errors begin with its `place` in the file."""
        if not self.is_dense:
            return
        auxiliary = ((f"{place}.aux_losses[{number}]", aux) for number, aux in enumerate(self.aux_losses))
        for where, piece in ((place, self), *auxiliary):
            for key, default in _OF_CLASSES.items():
                if getattr(piece, key, default) != default:
                    raise InputError(
                        f"{where}.{key} is for classification; {self.task} has its own loss; set it in other tasks only"
                    )
        if isinstance(self.augmentation, tuple):
            raise InputError(
                f"{place}.data_augmentation is a list, whose transforms would not change {self.task} with the image; "
                "write default, or false"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(SharedByTasks):
    """Settings of the training."""

    epochs: Natural = entry(..., "Number of epochs.")
    dataset: DatasetName | None = entry(None, "Name or folder of the data set.")
    # Plain data, checked: what a task does not set is that of the training, not the default.
    tasks: tuple[Annotated[dict[str, object], as_written(TaskConfig)], ...] = entry(
        (), "Several data sets instead; the network has an output for each, or one for all."
    )
    seed: Seed = entry(1, "Seed of weights, order and augmentation.")
    max_steps: Count | None = entry(None, "Number of steps at the most.")
    optimizer: StrictStr = entry("Adam", "Class of `torch.optim`.")
    optimizer_args: Arguments = Field(default_factory=dict, description="Its arguments.")
    lr_scheduler: StrictStr | None = entry(
        None, "Class of `torch.optim.lr_scheduler`; by default the rate is constant."
    )
    lr_scheduler_args: Arguments = Field(
        default_factory=dict, description="Its arguments; `cadence` is epochs or steps, `schedulers` its parts."
    )
    max_grad_norm: NonNegative = entry(0.0, "Limit of the norm of gradients; 0 for no limit.")
    grad_accum_steps: Count = entry(1, "Batches per step, whose gradients add up.")
    amp: StrictBool = entry(False, "Mix precisions.")
    amp_dtype: Literal["float16", "bfloat16"] = entry("float16", "The low precision; CPUs always use bfloat16.")
    model_ema: StrictBool = entry(False, "Keep a moving average of the weights, which is tested too.")
    model_ema_decay: Share = entry(0.9998, "Its decay.")
    # Likewise: a task's own value replaces all of it.
    data_preprocessing: Annotated[dict[str, object], as_written(Preprocessing)] = Field(
        default_factory=dict, description="Preparation of images."
    )

    def __post_init__(self) -> None:
        if (self.dataset is None) == (not self.tasks):
            fault = "both dataset and tasks are set" if self.tasks else "no data set is named"
            raise InputError(f"{fault}; set dataset, or tasks with a dataset in each")

    @property
    def places(self) -> list[str]:
        """The place of each task in the file."""
        return [f"train_config.tasks[{number}]" for number in range(len(self.tasks))] or ["train_config"]

    @property
    def resolved_tasks(self) -> tuple[TaskConfig, ...]:
        """The tasks with all their settings; a single one if the file has `dataset`."""
        shared = {item.name: getattr(self, item.name) for item in fields(SharedByTasks)}
        shared["data_preprocessing"] = self.data_preprocessing
        tasks = self.tasks if self.dataset is None else ({"dataset": self.dataset},)
        return tuple(parse(TaskConfig, shared | task) for task in tasks)

    def check_tasks(self) -> None:
        """Refuse settings without effect: of a task that has no use for them, or of all if no task has."""
        tasks = self.resolved_tasks
        for number, (task, place) in enumerate(zip(tasks, self.places, strict=True)):
            task.check(place)
            for key in task.unused():
                users = _USED_BY[key.rpartition(".")[2]]
                is_own = not self.tasks or key.partition(".")[0] in self.tasks[number]
                if is_own or not any(other.task in users for other in tasks):
                    where = place if is_own else "train_config"
                    raise InputError(
                        f"{where}.{key} is for {' and '.join(users)}, and has no effect on {task.task}; remove it"
                    )
