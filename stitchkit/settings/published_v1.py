"""The flat keys of the released files of SN-Net, which those of SN-Netv2 share, in the words of our recipes."""

from __future__ import annotations

from collections.abc import Mapping

from stitchkit.errors import InputError
from stitchkit.settings.by_name import checked_of_file

_SAME = (
    *("anchor_drop_path", "batch_size", "color_jitter", "cutmix", "distillation_type", "drop", "epochs", "flops_gap"),
    *("flops_sampling_k", "fulltune", "ls_init", "min_lr", "mixup", "opt", "reprob", "sched", "seed", "smoothing"),
    *("stitch_init_bs", "teacher_model", "warmup_epochs", "warmup_lr", "weight_decay"),
)
RECIPE_KEYS = {name: name for name in _SAME} | {
    "data_path": "data_dir", "data_set": "dataset", "eval_crop_ratio": "crop_pct", "exp_name": "experiment",
    "input_size": "img_size", "lr": "lr_base", "num_workers": "workers",
}  # fmt: skip
"""The settings that the keys stand for. A published `lr` is for 512 images."""


def recipe_of(published: Mapping[str, object]) -> dict[str, object]:
    """The settings for the flat keys of a published file."""
    settings = {RECIPE_KEYS[key]: value for key, value in published.items()}
    if "data_set" in published:
        if published["data_set"] != "IMNET":
            raise InputError(
                f"data_set is {published['data_set']!r}; the only known published name is IMNET, an image folder; "
                "put a timm dataset into 'recipe' as 'dataset'"
            )
        settings["dataset"] = ""
    names = {name: key for key, name in RECIPE_KEYS.items()}
    recipe = checked_of_file(settings, names.__getitem__)
    if "data_set" in published:  # only published files have it; there, routes share statistics and are drawn evenly
        recipe |= {"recalibrate_bn": 0, "sampler": "uniform"}
    return recipe | ({"lr_base_size": 512, "lr_base_scale": "linear"} if "lr" in published else {})
