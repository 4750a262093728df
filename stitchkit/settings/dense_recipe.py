"""The group of a recipe for dense prediction, and the part of it that defines a network."""

from __future__ import annotations

from dataclasses import asdict

from pydantic.dataclasses import dataclass

from stitchkit.settings.fields import AtLeastMillionth, Factor, Natural, Side, flag
from stitchkit.settings.schema import Settings
from stitchkit.settings.tasks import DENSE, DenseFacts, DenseName, HeadName, TaskName


@dataclass(frozen=True)
class DenseSpec(Settings):
    """What an SN-Net for dense prediction has beside its anchors and stitching layers.

    Args:
        task: What it predicts at each pixel: a class, or a depth.
        head: The head that all routes share; by default that of the task, as published.
        levels: The blocks of the last anchor whose outputs the head takes, counted over all stages; by default the
            last block of each stage, or of each quarter of one stage.
    """

    task: DenseName
    head: HeadName | None = None
    levels: tuple[Natural, ...] | None = None

    def __post_init__(self) -> None:
        if self.head is None:
            object.__setattr__(self, "head", DENSE[self.task].head)

    @property
    def facts(self) -> DenseFacts:
        """What shapes and messages depend on."""
        return DENSE[self.task]

    @property
    def settings(self) -> dict[str, object]:
        """The settings of a recipe that say the same."""
        return {**asdict(self), "levels": None if self.levels is None else [*self.levels]}


@dataclass(frozen=True)
class DenseRecipe(Settings):
    """Dense prediction: a class or a depth for each pixel of an image."""

    task: TaskName = flag(
        "classification", "what networks predict: the class of an image or, for an SN-Net, of each pixel, or its depth"
    )
    head: HeadName | None = flag(
        None, "with --task: the head of all stitches; by default setr for segmentation, dpt for depth", strict=None
    )
    levels: list[Natural] | None = flag(
        None, "with --task: blocks of the last anchor for the head; by default the last of each stage, or each quarter"
    )
    zoom: list[Factor] = flag([0.5, 2.0], "with --task segmentation: range of training scales", length=2)
    window_stride: Side | None = flag(
        None, "with --task: pixels between windows of larger images; by default two thirds of an input image"
    )
    max_depth: AtLeastMillionth = flag(10.0, "with --task depth: largest depth in metres that counts")

    @property
    def is_dense(self) -> bool:
        """Whether each pixel has a prediction of its own."""
        return self.task != "classification"

    @property
    def spec(self) -> DenseSpec | None:
        """The part that defines the network; None for classification."""
        if self.task == "classification":
            return None
        return DenseSpec(self.task, self.head, None if self.levels is None else (*self.levels,))
