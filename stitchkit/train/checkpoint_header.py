"""The header of a checkpoint, which describes the run that wrote it, compared with the run that reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stitchkit.engine import checkpoint_schema as rules
from stitchkit.errors import InputError
from stitchkit.settings.stitch_config import StitchConfig

FORMAT = "stitchkit 1"
"""Format in every checkpoint of ours."""


def _ordered(found: object, place: str) -> None:
    """A rule: a metric that ranks epochs; it may be infinite, but not NaN, which has no order."""
    rules.number(finite=False)(found, place)
    if found != found:
        raise InputError(f"{place} is not a number")


def check_header(content: Mapping[str, object], path: str | Path) -> None:
    """Compare the plain part of a checkpoint of ours with its schema; released checkpoints pass."""
    if content.get("format") != FORMAT:
        return
    needed = {
        "stitch_config": rules.or_none(rules.table(rules.text, rules.plain)),
        "metric": _ordered,
        "history": rules.table(rules.whole(0, rules.MOST_EPOCHS), _ordered),
    }
    rules.check_saved(content, path, needed, {"classes": rules.each(rules.text), "input_size": [rules.whole(1)] * 3})


def trained_input_size(content: Mapping[str, object]) -> list[int] | None:
    """Size of an input image `[C, H, W]` that a checkpoint was trained on, if known."""
    size = content.get("input_size")
    # Other programs may store anything under this name.
    is_size = isinstance(size, list) and len(size) == 3 and all(type(length) is int for length in size)
    return size if is_size and isinstance(size, list) else None


def check_configuration(content: Mapping[str, object], config: StitchConfig, path: str | Path) -> None:
    """Check that our checkpoint was trained with the rule and anchors of a configuration, which shapes cannot show.

    Released checkpoints do not name their configuration and pass.
    """
    found = content.get("stitch_config")
    if not isinstance(found, Mapping):
        return
    ours = config.to_dict()
    try:
        rules.plain(found, "stitch_config")  # a file without our format has not been checked at all
        trained = StitchConfig.parse(found).to_dict()
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
"""Arguments of an anchor that flags or other data may change, or that trained weights replace; so is every `drop*`."""


def _anchor_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Changes of an anchor's architecture, in words; its label, weights' tag and checkpoint are free."""
    names = [re.sub(r"_\d{3}$", "", anchor["name"].partition(".")[0]) for anchor in (before, now)]
    is_place = any(":" in name for name in names)  # a folder or repository may have moved
    wrong = [] if is_place or names[0] == names[1] else [f"name was {before['name']!r} and is {now['name']!r}"]
    was, is_ = (json.loads(json.dumps(anchor["kwargs"])) for anchor in (before, now))  # tuples as lists
    keys = [key for key in sorted(was.keys() | is_.keys()) if key not in _FREE_KWARGS and not key.startswith("drop")]
    wrong += [f"{key} was {was.get(key)!r} and is {is_.get(key)!r}" for key in keys if was.get(key) != is_.get(key)]
    return [f"{part} in anchor '{now['label']}'" for part in wrong]
