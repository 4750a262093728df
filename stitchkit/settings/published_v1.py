"""The flat keys of the released files of SN-Net, which those of SN-Netv2 share, in the words of our recipes."""

from __future__ import annotations

from collections.abc import Mapping

from stitchkit.errors import InputError
from stitchkit.settings.by_name import checked_of_file

RECIPE_KEYS = {
    "anchor_drop_path": "anchor_drop_path",
    "batch_size": "batch_size",
    "color_jitter": "color_jitter",
    "cutmix": "cutmix",
    "data_path": "data_dir",
    "data_set": "dataset",
    "distillation_type": "distillation_type",
    "drop": "drop",
    "epochs": "epochs",
    "eval_crop_ratio": "crop_pct",
    "exp_name": "experiment",
    "flops_gap": "flops_gap",
    "flops_sampling_k": "flops_sampling_k",
    "fulltune": "fulltune",
    "input_size": "img_size",
    "ls_init": "ls_init",
    "lr": "lr_base",
    "min_lr": "min_lr",
    "mixup": "mixup",
    "num_workers": "workers",
    "opt": "opt",
    "reprob": "reprob",
    "sched": "sched",
    "seed": "seed",
    "smoothing": "smoothing",
    "stitch_init_bs": "stitch_init_bs",
    "teacher_model": "teacher_model",
    "warmup_epochs": "warmup_epochs",
    "warmup_lr": "warmup_lr",
    "weight_decay": "weight_decay",
}
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
    made = checked_of_file(settings, names.__getitem__)
    # As published, where all routes share the statistics of batch norms. Only published files have this key.
    made |= {"recalibrate_bn": 0} if "data_set" in published else {}
    # The first SN-Net draws all routes alike.
    made |= {"sampler": "uniform"} if "data_set" in published else {}
    return made | ({"lr_base_size": 512, "lr_base_scale": "linear"} if "lr" in published else {})
