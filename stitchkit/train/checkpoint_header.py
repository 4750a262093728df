"""What a checkpoint says of the run that wrote it, compared with the run that reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.utils import NativeScaler

from stitchkit.engine.checkpoint_schema import (
    anything,
    each,
    either,
    fields,
    nothing,
    number,
    plain,
    table,
    text,
    whole,
)
from stitchkit.errors import InputError
from stitchkit.settings.stitch_config import StitchConfig

FORMAT = "stitchkit 1"
"""Stands in every checkpoint of ours."""


_MOST_EPOCHS = 10**6


def ordered(found: Any, place: str) -> None:
    """A rule: a figure that epochs are ranked by, which may be infinite but not NaN."""
    number(finite=False)(found, place)
    if found != found:
        raise InputError(f"{place} is not a number")


def check_header(content: Mapping[str, Any], path: str | Path) -> None:
    """Compare what is plain in a checkpoint of ours with its schema; its weights and states are looked at where used.

    Args:
        content: What `read_checkpoint` gave; released checkpoints pass.
        path: The file, for the message.

    Raises:
        InputError: If a key is missing, unknown, or has a value that none of ours has.
    """
    if content.get("format") != FORMAT:
        return
    needed = {
        "format": text,
        "state_dict": table(text, anything),
        "optimizer": table(text, anything),
        "opt": text,
        "stitch_config": either(table(text, plain), nothing),
        "epoch": whole(-1, _MOST_EPOCHS),
        "metric": ordered,
        "history": table(whole(0, _MOST_EPOCHS), ordered),
    }
    optional = {
        "classes": each(text),
        "input_size": [whole(1)] * 3,
        "state_dict_ema": table(text, anything),
        "within": table(text, anything),
        NativeScaler.state_dict_key: table(text, anything),
    }
    try:
        fields(needed, optional)(content, "")
    except InputError as error:
        raise InputError(f"checkpoint '{path}' is damaged: {error}") from error


def trained_input_size(content: Mapping[str, Any]) -> list[int] | None:
    """Size of an input image `[C, H, W]` that a checkpoint was trained on, where it is known."""
    size = content.get("input_size")
    is_size = isinstance(size, list) and len(size) == 3 and all(type(length) is int for length in size)
    return size if is_size else None


def check_configuration(content: Mapping[str, Any], config: StitchConfig, path: str | Path) -> None:
    """See that a checkpoint of ours was trained with the rule and anchors of a configuration; shapes tell less.

    Released checkpoints do not name their configuration and pass.

    Args:
        content: What `read_checkpoint` gave.
        config: The configuration it is to be used with.
        path: The file, for the message.

    Raises:
        InputError: If it was trained with another one.
    """
    trained = content.get("stitch_config")
    if not isinstance(trained, Mapping):
        return
    ours = config.to_dict()
    try:
        plain(trained, "stitch_config")
        trained = StitchConfig.parse(trained).to_dict()
    except InputError as error:
        raise InputError(f"checkpoint '{path}' belongs to another configuration: {error}") from error
    keys = ["stitch_kernel_size", "stitch_stride", "nearest_stitching", "stitched_final_norm"]
    keys += ["stages"] if "stages" in trained and "stages" in ours else []
    wrong = [f"{key} was {trained.get(key)!r} and is {ours[key]!r}" for key in keys if trained.get(key) != ours[key]]
    for before, now in zip(trained["anchors"], ours["anchors"], strict=False):
        wrong += _anchor_differences(before, now)
    if wrong:
        more = f", and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise InputError(f"checkpoint '{path}' belongs to another configuration: {', '.join(wrong[:_SHOWN])}{more}")


_SHOWN = 3
"""Differences of two configurations that a message names."""
_FREE_KWARGS = ("img_size", "num_classes", "in_chans", "weight_init")
"""What of an anchor flags and another data set change, or what trained weights replace; `drop*` besides."""


def _anchor_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of an anchor's architecture changed, in words; label, weights' tag and checkpoint may."""
    names = [re.sub(r"_\d{3}$", "", anchor["name"].partition(".")[0]) for anchor in (before, now)]
    is_place = any(":" in name for name in names)  # a folder or repository may have moved
    wrong = [] if is_place or names[0] == names[1] else [f"name was {before['name']!r} and is {now['name']!r}"]
    was, is_ = (json.loads(json.dumps(anchor["kwargs"])) for anchor in (before, now))  # tuples as lists
    keys = [key for key in sorted(was.keys() | is_.keys()) if key not in _FREE_KWARGS and not key.startswith("drop")]
    wrong += [f"{key} was {was.get(key)!r} and is {is_.get(key)!r}" for key in keys if was.get(key) != is_.get(key)]
    return [f"{part} in anchor '{now['label']}'" for part in wrong]
