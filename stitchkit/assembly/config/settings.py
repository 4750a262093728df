"""The settings of training: data, losses, optimizer, schedule."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stitchkit.assembly.config.schema import parse


@dataclass(frozen=True)
class Preprocessing:
    """How images become inputs.

    Args:
        image_size: Side of an input image.
        mean: Mean of the channels that images are normalised with; by default ImageNet's.
        std: Their standard deviation.
        resize_mode: What becomes `image_size` where images are not square: the shorter side, the rest cut off; the
            longer side, the rest filled up; or both.
        interpolation: As torchvision names it.
        random_resize_scale: Least and greatest share of an image that training sees; `[1, 1]` sees what tests see.
        data_augmentation: `default` or true is a flip and AutoAugment; a list names torchvision v2 transforms.
    """

    image_size: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    interpolation: str = "bicubic"
    random_resize_scale: tuple[float, ...] = (0.9, 1.0)
    data_augmentation: Literal["default"] | bool | tuple[Any, ...] | None = None


@dataclass(frozen=True)
class AuxLoss:
    """A second loss, of the output of a submodule.

    Args:
        output: Path of the submodule in the network.
        loss_fn: Function of `torch.nn.functional`.
        loss_fn_args: Its further arguments.
        weight: Beside the main loss, which has 1.
    """

    output: str
    loss_fn: str = "cross_entropy"
    loss_fn_args: dict[str, Any] = field(default_factory=dict)
    weight: float = 1.0


@dataclass(frozen=True)
class Metric:
    """A figure of merit.

    Args:
        metric_fn: `accuracy` or `topk_accuracy`.
        metric_fn_args: For the latter `topk`: 1, 5 or both.
        output: Path of the submodule that is judged; by default the network.
    """

    metric_fn: Literal["accuracy", "topk_accuracy"] = "accuracy"
    metric_fn_args: dict[str, Any] = field(default_factory=dict)
    output: str | None = None

    @property
    def ranks(self) -> tuple[int, ...]:
        """How many of the highest classes count as right."""
        topk = self.metric_fn_args.get("topk", 1) if self.metric_fn == "topk_accuracy" else 1
        return tuple(topk) if isinstance(topk, list | tuple) else (topk,)


@dataclass(frozen=True)
class TaskConfig:
    """What is learnt: a data set and its loss. What is not given is as in `train_config`.

    Args:
        dataset: Name or folder of the data set.
        val_split: The split that is tested; by default `validation`, or what stands for it (docs/datasets.md).
        num_classes: Number of classes of a data set that does not name them, such as a streamed one.
        train_num_samples: Training images of a streamed data set that does not say how many it has.
        val_num_samples: Likewise, images to test.
        batch_size: Images of a step on each rank.
        loss_fn: Function of `torch.nn.functional`.
        loss_fn_args: Its further arguments.
        data_augmentation: As in `Preprocessing`, where that has none.
        data_preprocessing: How images become inputs.
    """

    dataset: str
    val_split: str | None = None
    num_classes: int | None = None
    train_num_samples: int | None = None
    val_num_samples: int | None = None
    batch_size: int = 32
    loss_fn: str = "cross_entropy"
    loss_fn_args: dict[str, Any] = field(default_factory=dict)
    data_augmentation: Literal["default"] | bool | tuple[Any, ...] | None = None
    data_preprocessing: Preprocessing = field(default_factory=Preprocessing)

    @property
    def name(self) -> str:
        """The data set's name in results."""
        return Path(self.dataset).name


@dataclass(frozen=True)
class TrainConfig:
    """How the network is trained.

    Args:
        epochs: Number of epochs.
        dataset: Name or folder of the data set.
        val_split: The split that is tested; by default `validation`, or what stands for it (docs/datasets.md).
        num_classes: Number of classes of a data set that does not name them, such as a streamed one.
        train_num_samples: Training images of a streamed data set that does not say how many it has.
        val_num_samples: Likewise, images to test.
        tasks: Several data sets in its place; the network has an output for each, or one for all.
        seed: Of weights, order and augmentation.
        batch_size: Images of a step on each rank.
        max_steps: Training ends after so many steps.
        max_batches: Use a random part of so many batches of the data to train and to test with.
        loss_fn: Function of `torch.nn.functional`.
        loss_fn_args: Its further arguments.
        aux_losses: Further losses; the total is the weighted mean.
        optimizer: Class of `torch.optim`.
        optimizer_args: Its arguments.
        lr_scheduler: Class of `torch.optim.lr_scheduler`; none keeps the rate.
        lr_scheduler_args: Its arguments; `cadence` epochs or steps, `schedulers` those that it is made of.
        max_grad_norm: Gradients are cut to this norm; 0 leaves them.
        data_augmentation: As in `Preprocessing`, where that has none.
        data_preprocessing: How images become inputs.
    """

    epochs: int
    dataset: str | None = None
    val_split: str | None = None
    num_classes: int | None = None
    train_num_samples: int | None = None
    val_num_samples: int | None = None
    tasks: tuple[dict[str, Any], ...] = ()
    seed: int = 1
    batch_size: int = 32
    max_steps: int | None = None
    max_batches: int | None = None
    loss_fn: str = "cross_entropy"
    loss_fn_args: dict[str, Any] = field(default_factory=dict)
    aux_losses: tuple[AuxLoss, ...] = ()
    optimizer: str = "Adam"
    optimizer_args: dict[str, Any] = field(default_factory=dict)
    lr_scheduler: str | None = None
    lr_scheduler_args: dict[str, Any] = field(default_factory=dict)
    max_grad_norm: float = 0.0
    data_augmentation: Literal["default"] | bool | tuple[Any, ...] | None = None
    data_preprocessing: dict[str, Any] = field(default_factory=dict)

    @property
    def resolved_tasks(self) -> tuple[TaskConfig, ...]:
        """The tasks with all their settings; one where the file gives a data set."""
        shared = {
            key: getattr(self, key)
            for key in (
                *("val_split", "num_classes", "train_num_samples", "val_num_samples"),
                *("batch_size", "loss_fn", "loss_fn_args", "data_augmentation", "data_preprocessing"),
            )
        }
        if self.dataset is not None:
            return (parse(TaskConfig, shared | {"dataset": self.dataset}, "train_config"),)
        places = (f"train_config.tasks[{number}]" for number in range(len(self.tasks)))
        return tuple(parse(TaskConfig, shared | task, place) for task, place in zip(self.tasks, places, strict=True))
