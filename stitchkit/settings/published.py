"""Keys of the released files of SN-Net and SN-Netv2, in the words of our recipes and configurations.

Source: the released code of Stitched ViTs are Flexible Vision Backbones, classification/config and main.py.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from pydantic.json_schema import JsonSchemaValue

from stitchkit.errors import InputError
from stitchkit.settings.by_name import checked_of_file

_logger = logging.getLogger(__name__)

# The flat keys of both systems.
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


_ANCHORS = {
    f"deit_{size}_patch16_LS": f"deit3_{size}_patch16_224.fb_in22k_ft_in1k" for size in ("small", "base", "large")
}
"""timm's names of the anchors."""
_DEFAULTS = {
    "amp": True, "aug_repeats": 3.0, "flops_gap": 1.0, "min_lr": 1e-5, "opt_eps": 1e-8, "train_interpolation": "bicubic"
}  # fmt: skip
"""What the released files leave to the released code, where it differs from our defaults."""
_SWITCHES: dict[str, tuple[dict[str, object], str]] = {
    "ThreeAugment": ({"aa": "3a"}, "sets aa to 3a: each image is made grey, solarised or blurred"),
    "src": ({"train_crop_mode": "src"}, "sets train_crop_mode to src"),
    "low_rank": ({"stitch_lr_scale": 0.0}, "sets stitch_lr_scale to 0, so that stitching layers stay as fitted"),
    "unscale_lr": ({}, "the learning rate is lr, whatever the batch"),
    "no_repeated_aug": ({}, "has no effect, as in the released code"),
}
"""Keys that are true or false: what true sets in the recipe, and what it means."""
_NOTES = {
    "low_rank": "low_rank trains neither the stitching layers nor their updates of rank lora_r, as in the released "
    "code; remove it to train them",
    "no_repeated_aug": "no_repeated_aug has no effect, as in the released code, which repeats each image 3 times; set "
    "aug_repeats in 'recipe'",
    "pretrained_deit": "pretrained_deit has no effect: timm has the weights of these files; give an anchor a "
    "'checkpoint' for your own",
}
"""What the log says of keys that do not do what their names say."""

SCHEMA: dict[str, JsonSchemaValue] = {
    "snnet_name": {
        "const": "snnet_v2",
        "description": "Published key: rule two_way, lora_r 64, and what the released code sets by default.",
    },
    "pretrained_deit": {"type": "string", "description": "Published key without effect: timm has these weights."},
    **{key: {"type": "boolean", "description": f"Published key; {text}."} for key, (_, text) in _SWITCHES.items()},
}
"""The keys, as an editor checks and explains them."""


def read_v2(content: Mapping[str, object]) -> tuple[dict[str, object], dict[str, object]]:
    """The content of a configuration without these keys, and the settings of a recipe that they stand for."""
    content, recipe = dict(content), dict[str, object]()
    if (network := content.pop("snnet_name", None)) is not None:
        if network == "snnet_v1":
            raise InputError(
                "snnet_name is 'snnet_v1', whose cheapest route enters the costlier anchor after its last block, which "
                'no rule does here; for its other routes and both anchors, set "rule": "two_way", "max_switches": 1, '
                '"directions": "up" instead'
            )
        if network != "snnet_v2":
            raise InputError(f"snnet_name is {network!r}; it must be 'snnet_v2'")
        anchors, recipe = content.get("anchors"), dict(_DEFAULTS)
        if isinstance(anchors, list):
            names = [_ANCHORS.get(name, name) if isinstance(name, str) else name for name in anchors]
            content = {"rule": "two_way", "lora_r": 64, **content, "anchors": names}
        if content.get("data_set") == "IMNET":  # in files of SN-Net it stands for that system's defaults too
            del content["data_set"]
            recipe["dataset"] = ""
    if content.get("opt") == "fusedlamb":
        content["opt"] = "lamb"  # the same updates, without NVIDIA apex
    for key, note in _NOTES.items():
        if content.get(key):
            _logger.warning("%s", note)
    content.pop("pretrained_deit", None)
    for key, (settings, _) in _SWITCHES.items():
        if not isinstance(value := content.pop(key, False), bool):
            raise InputError(f"{key} is {value!r}; it must be true or false")
        recipe |= settings if value else {}
        if value and key == "unscale_lr" and "lr" in content:
            recipe["lr"] = content.pop("lr")
    return content, recipe
