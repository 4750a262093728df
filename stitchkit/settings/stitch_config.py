"""The stitch configuration: which anchors, under which rule, and how their paper trained them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stitchkit.errors import InputError, unknown
from stitchkit.paths import check_local
from stitchkit.routes import SlidingWindow

_ANCHOR_KEYS = ("name", "label", "kwargs", "checkpoint")

_RULE_KEYS = ("stitch_kernel_size", "stitch_stride", "nearest_stitching", "stages")

# The flat keys of the published files and the recipe fields they stand for. A published `lr` counts for 512 images.
_PUBLISHED_RECIPE_KEYS = {
    "batch_size": "batch_size",
    "data_path": "data_dir",
    "data_set": "dataset",
    "distillation_type": "distillation_type",
    "epochs": "epochs",
    "exp_name": "experiment",
    "fulltune": "fulltune",
    "input_size": "img_size",
    "ls_init": "ls_init",
    "lr": "lr_base",
    "min_lr": "min_lr",
    "num_workers": "workers",
    "stitch_init_bs": "stitch_init_bs",
    "teacher_model": "teacher_model",
    "warmup_lr": "warmup_lr",
}
_PUBLISHED_LR_BATCH = 512
_KEYS = ("source", "model", "anchors", *_RULE_KEYS, "stitched_final_norm", "recipe", *_PUBLISHED_RECIPE_KEYS)


_RESERVED = (
    *("name", "model_name", "pretrained", "checkpoint", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"),
    "cache_dir",
)
"""Arguments that say which model it is, or where its weights are from."""


def check_kwargs(kwargs: Mapping[str, Any], whose: str) -> None:
    """Refuse arguments of a model that choose its weights, which has a setting of its own.

    Args:
        kwargs: Arguments of `timm.create_model`.
        whose: The model, in a message.

    Raises:
        InputError: If there is one.
    """
    if reserved := [key for key in _RESERVED if key in kwargs]:
        raise InputError(f"{whose} has {reserved[0]} among its arguments; local weights are given as its checkpoint")


@dataclass(frozen=True)
class AnchorSpec:
    """One anchor of a configuration.

    Args:
        name: A timm model name, best with its weights' tag, such as `deit_tiny_patch16_224.fb_in1k`.
        label: What stitches call it; without one, the name up to its tag.
        kwargs: Further arguments of `timm.create_model`.
        checkpoint: A local file with its weights; without one, timm's pretrained weights.
    """

    name: str
    label: str = ""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.name.removeprefix("hf-hub:").replace("/", "_").split(".")[0])

    @classmethod
    def parse(cls, value: object) -> AnchorSpec:
        """A spec from JSON: a timm name, or an object with `name`, `label`, `kwargs` and `checkpoint`.

        Raises:
            InputError: If it is neither, or has an unknown key or no name.
        """
        if isinstance(value, str):
            return cls(value)
        if not isinstance(value, dict):
            raise InputError(f"anchor {value!r} must be a timm model name or an object with {', '.join(_ANCHOR_KEYS)}")
        for key in value:
            if key not in _ANCHOR_KEYS:
                raise unknown("anchor key", key, _ANCHOR_KEYS)
        if not isinstance(value.get("name"), str):
            raise InputError(f"anchor {value!r} has no 'name'; give it a timm model name")
        for key, kind in (("label", str), ("kwargs", dict), ("checkpoint", str | None)):
            if key in value and not isinstance(value[key], kind):
                raise InputError(f"anchor '{value['name']}' has {key} {value[key]!r}; it must be of type {kind}")
        check_kwargs(value.get("kwargs", {}), f"anchor '{value['name']}'")
        if value.get("checkpoint"):
            check_local(value["checkpoint"], f"'checkpoint' of anchor '{value['name']}'")
        return cls(**value)


@dataclass(frozen=True)
class StitchConfig:
    """What is stitched and how; everything needed to build an SN-Net again.

    Args:
        anchors: From cheap to costly.
        rule: Where they may be joined.
        stitched_final_norm: Whether stitched routes apply the end anchor's final normalisation. The published DeiT
            code leaves it out (PUBLISHED quirk), so its configuration says false.
        recipe: Training settings by flag name (`batch_size`, `lr_base`, ...); YAML files and flags override them.
        source: Where the configuration comes from.
        path: The file it was read from.
    """

    anchors: tuple[AnchorSpec, ...]
    rule: SlidingWindow = field(default_factory=SlidingWindow)
    stitched_final_norm: bool = True
    recipe: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    path: str = ""

    @classmethod
    def load(cls, path: str | Path) -> StitchConfig:
        """Read a configuration from a JSON file, ours or one of the published ones.

        Raises:
            InputError: If the file is missing, is not JSON, or holds an unknown key or an unusable value.
        """
        try:
            content = json.loads(Path(path).read_text())
        except OSError as error:
            raise InputError(f"stitch configuration '{path}' cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"stitch configuration '{path}' is not JSON: {error}") from error
        try:
            return cls.parse(content, path=str(path))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    @classmethod
    def parse(cls, content: object, *, path: str = "") -> StitchConfig:
        """A configuration from the content of its JSON file.

        Raises:
            InputError: If a key is unknown or a value unusable.
        """
        if not isinstance(content, dict):
            raise InputError(f"a stitch configuration is a JSON object with 'anchors', not {type(content).__name__}")
        for key in content:
            if key not in _KEYS:
                raise unknown("key", key, _KEYS)
        anchors = content.get("anchors")
        if not isinstance(anchors, list) or len(anchors) < 2:
            raise InputError(f"'anchors' is {anchors!r}; give a list of at least two anchors")
        return cls(
            anchors=tuple(AnchorSpec.parse(anchor) for anchor in anchors),
            rule=_rule(content),
            stitched_final_norm=_typed(content, "stitched_final_norm", bool, True),
            recipe=_recipe(content),
            source=_typed(content, "source", str, ""),
            path=path,
        )

    def to_dict(self) -> dict[str, Any]:
        """What defines the network, as plain data: `parse` makes the same network of it."""
        return {
            "source": self.source,
            "anchors": [
                {"name": a.name, "label": a.label, "kwargs": dict(a.kwargs), "checkpoint": a.checkpoint}
                for a in self.anchors
            ],
            "stitch_kernel_size": self.rule.kernel_size,
            "stitch_stride": self.rule.stride,
            "nearest_stitching": self.rule.nearest,
            **({} if self.rule.stages is None else {"stages": list(self.rule.stages)}),
            "stitched_final_norm": self.stitched_final_norm,
        }


def _rule(content: Mapping[str, Any]) -> SlidingWindow:
    default = SlidingWindow()
    return SlidingWindow(
        kernel_size=_typed(content, "stitch_kernel_size", int, default.kernel_size),
        stride=_typed(content, "stitch_stride", int, default.stride),
        nearest=_typed(content, "nearest_stitching", bool, default.nearest),
        stages=_stages(content),
    )


def _stages(content: Mapping[str, Any]) -> tuple[int, ...] | None:
    stages = content.get("stages")
    if stages is None:
        return None
    if not isinstance(stages, list) or not all(type(stage) is int for stage in stages):
        raise InputError(f"'stages' is {stages!r}; list the stages to stitch, such as [0, 1, 2]")
    return tuple(stages)


def _recipe(content: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of a file: published flat keys first, our `recipe` object over them."""
    recipe = {name: content[key] for key, name in _PUBLISHED_RECIPE_KEYS.items() if key in content}
    if "lr" in content:
        recipe |= {"lr_base_size": _PUBLISHED_LR_BATCH, "lr_base_scale": "linear"}
    if "data_set" in content:
        if content["data_set"] != "IMNET":
            raise InputError(
                f"'data_set' is {content['data_set']!r}; of the published names only IMNET, an image folder, is known; "
                "put a timm dataset as 'dataset' into 'recipe'"
            )
        recipe["dataset"] = ""
    own: dict[str, Any] = _typed(content, "recipe", dict, {})
    return recipe | own


def _typed(content: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = content.get(key, default)
    # bool is a subclass of int, but `"stitch_stride": true` is a mistake.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"'{key}' is {value!r}; it must be of type {kind.__name__}")
    return value
