"""The group of a recipe that only SN-Nets have: which stitches are trained, how they begin, and who teaches them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic.dataclasses import dataclass

from stitchkit.settings.fields import AtLeastBillionth, AtLeastThousandth, Batch, Share, flag
from stitchkit.settings.schema import LocalPath, Settings

RECIPE: Mapping[str, object] = {
    "opt": "adamw", "weight_decay": 0.05, "lr_base": 5e-5, "lr_base_size": 512, "lr_base_scale": "linear",
    "warmup_lr": 1e-7, "min_lr": 1e-6, "epochs": 50,
}  # fmt: skip
"""The published optimisation of plain ViTs; timm's defaults are for training from scratch."""


@dataclass(frozen=True)
class StitchRecipe(Settings):
    """Training of an SN-Net; these settings apply only with a stitch configuration."""

    sampler: str = flag(
        "cost_bins",
        "how to pick the stitch of a step: uniform, as in the first SN-Net, or cost_bins, uniform over cost",
    )
    sampling: Literal["per_rank", "shared"] = flag(
        "per_rank", "draw of stitches: each rank its own (published), or one"
    )
    flops_gap: AtLeastBillionth | None = flag(
        None, "GFLOPs of a cost bin; by default a 16th of the difference between neighbouring anchors"
    )
    flops_sampling_k: AtLeastBillionth | None = flag(
        None, "temperature: small values favour costly bins; by default uniform"
    )
    ls_init: bool = flag(True, "fit the stitching layers by least squares before training")
    stitch_init_bs: Batch = flag(100, "number of images for the fit, over all ranks")
    fulltune: bool = flag(True, "train the anchors too, not only the stitching layers and class tokens")
    loss: Literal["task", "features", "features+task"] = flag(
        "task", "what stitches learn from: task is the labels, features the final features of their end anchor"
    )
    feature_distance: Literal["mse", "cosine"] = flag(
        "mse", "with --loss features: squared error relative to the anchor's feature, or 1 - cosine of the channels"
    )
    preserve: Literal["none", "frozen", "lora"] | None = flag(
        None,
        "keep the anchors' accuracy: train only stitching layers; or these, and updates of low rank that only stitched "
        "routes have; by default none, and frozen with --loss features",
        strict=None,
    )
    distillation_type: Literal["none", "hard", "soft"] = flag("none", "teaching: hard labels or soft probabilities")
    distillation_alpha: Share = flag(0.5, "share of the teacher's loss")
    distillation_tau: AtLeastThousandth = flag(1.0, "temperature of soft distillation")
    teacher_model: str | None = flag(None, "timm name of the teacher")
    teacher_path: LocalPath | None = flag(None, "local weights of the teacher; by default timm's")

    @property
    def uses_labels(self) -> bool:
        """Whether anything learns from labels."""
        return self.loss != "features"

    @property
    def uses_features(self) -> bool:
        """Whether stitches learn from the features of anchors."""
        return self.loss != "task"

    @property
    def way_to_preserve(self) -> Literal["none", "frozen", "lora"]:
        """How anchors are kept, whether it was chosen or not."""
        return self.preserve or ("frozen" if self.uses_features else "none")

    @property
    def freezes_anchors(self) -> bool:
        """Whether uncut anchors stay as they are, to the last bit."""
        return self.way_to_preserve in ("frozen", "lora")
