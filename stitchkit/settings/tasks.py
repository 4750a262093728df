"""The tasks of networks, and what settings, files, shapes and messages say of each.

What needs torch, such as losses and scores, is the task's own class in `stitchkit.tasks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

TaskName = Literal["classification", "segmentation", "depth"]
DenseName = Literal["segmentation", "depth"]
"""The tasks of dense prediction, which predict at each pixel."""
HeadName = Literal["linear", "setr", "dpt"]
"""The heads of dense prediction, as `stitchkit.model.heads` has them."""

NOT_KNOWN = 255
"""The class number of a pixel that neither trains nor counts."""
MIN_DEPTH = 1e-3
"""Metres: the smallest depth that networks predict, and the truth above which a pixel counts."""


@dataclass(frozen=True)
class DenseFacts:
    """A task of dense prediction.

    Attributes:
        head: The head unless another one is chosen, as published.
        noun: The truth of an image, in words.
        folder: The folder of the truth beside `images/`.
        suffixes: Those of the files in it.
        columns: The usual names of their column in a data set of Hugging Face.
        published: The layouts of published data sets, in words.
        outputs: Outputs at a pixel; None for one of each class.
        least: The smallest output; None for any.
        settings: The settings of a recipe or a job that other tasks of dense prediction have no use for.
        keeps_scale: Whether the truth depends on the scale of an image, which is then never resized.
        figures: The figures in ledgers, and their names in the results of jobs.
        needs: What a job's network needs for a data set, in words with `{name}` and `{classes}`.
    """

    head: HeadName
    noun: str
    folder: str
    suffixes: frozenset[str]
    columns: tuple[str, ...]
    published: str
    figures: Mapping[str, str]
    needs: str
    settings: tuple[str, ...]
    outputs: int | None = None
    least: float | None = None
    keeps_scale: bool = False

    @property
    def has_classes(self) -> bool:
        """Whether the outputs at a pixel are one of each class."""
        return self.outputs is None


DENSE: dict[str, DenseFacts] = {
    "segmentation": DenseFacts(
        head="setr", noun="mask", folder="masks", suffixes=frozenset({".png"}),
        columns=("mask", "annotation", "label", "segmentation"), published="the folders of ADE20K or of COCO-Stuff",
        figures={"miou": "mIoU", "pixel_acc": "Pixel Accuracy"}, settings=("num_classes", "zoom"),
        needs="data set '{name}' has {classes} classes; end it with a SegmentationHead",
    ),
    "depth": DenseFacts(
        head="dpt", noun="depth map", folder="depths", suffixes=frozenset({".png", ".npy"}),
        columns=("depth_map", "depth"), published="nyu_train.txt and nyu_test.txt",
        figures={"abs_rel": "AbsRel", "rmse": "RMSE", "delta1": "delta1"}, settings=("max_depth",),
        needs="'{name}' needs one depth at each position; end it with a DepthHead",
        outputs=1, least=MIN_DEPTH, keeps_scale=True,
    ),
}  # fmt: skip
"""The tasks of dense prediction by name."""
