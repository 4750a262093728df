"""Settings of a recipe by name, without their groups, as in flags and files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic.json_schema import JsonSchemaValue

from stitchkit.errors import InputError, unknown
from stitchkit.paths import from_file
from stitchkit.settings.files import naming, read_settings_file
from stitchkit.settings.kinds import kind_of
from stitchkit.settings.names import hub_fault
from stitchkit.settings.recipe import COMMAND_ONLY, GROUPS, Recipe
from stitchkit.settings.schema import flag_of, json_schema, parse
from stitchkit.settings.timm_flags import REFUSALS, REMOVED_VALUES

SETTINGS = {name: group for group, kind in GROUPS.items() for name in kind.__pydantic_fields__}
"""The group of every setting, in the order of groups and fields."""
_OPTIONAL = {
    name for kind in GROUPS.values() for name, field in kind.__pydantic_fields__.items() if field.default is None
}

_USED_BY: Mapping[str, tuple[str, str]] = {
    "stitch configuration": ("a stitch configuration", "train --stitch-config FILE"),
    "job": ("a job", "job -c FILE"),
    "Swin's own": (
        "in the published Swin's own format", "train --stitch-config configs/swin_ti_s_b.json, and give its settings "
        "as flags",
    ),
}  # fmt: skip
"""Files of other kinds in words, and the commands for them; all others are sweeps."""


def _grouped(values: Mapping[str, object]) -> dict[str, dict[str, object]]:
    groups: dict[str, dict[str, object]] = defaultdict(dict)
    for name, value in values.items():
        groups[SETTINGS[name]][name] = value
    return groups


def checked(values: Mapping[str, object], name: Callable[[str], str] = str) -> dict[str, object]:
    """The settings, all of them known and with valid values; `name` gives the name of a setting in messages."""
    for key, value in values.items():
        if isinstance(value, str) and (removed := REMOVED_VALUES.get((key, value))):
            raise removed.error(f"{key} {value}")
        if key not in SETTINGS:
            error = unknown("setting", key, SETTINGS, otherwise="stitchkit schema recipe lists them")
            raise InputError(f"{name(key)}: {error}")
    made = {group: parse(GROUPS[group], own, name=name) for group, own in _grouped(values).items()}
    return {key: getattr(made[SETTINGS[key]], key) for key in values}


def checked_of_file(
    values: Mapping[str, object], name: Callable[[str], str] = str, *, trains: bool = True
) -> dict[str, object]:
    """`checked` for settings of a file, timm's or ours; unless it `trains`, removed ones of training are ignored."""
    settings = {}
    for key, value in values.items():
        if key in REFUSALS:
            if value != REFUSALS[key].default and (trains or not REFUSALS[key].of_training):
                raise InputError(f"{name(key)}: {REFUSALS[key].error(key)}")
            continue  # timm, or an earlier version, writes it into its own files
        if not trains and isinstance(value, str) and (key, value) in REMOVED_VALUES:
            continue
        if key in COMMAND_ONLY and value:
            raise InputError(f"{name(key)}: a file cannot set it; give {flag_of(key)} on the command line")
        if key in ("model", "teacher_model") and isinstance(value, str):
            wanted = values.get("pretrained") is True if key == "model" else not values.get("teacher_path")
            if fault := hub_fault(value, weights=wanted):
                raise InputError(f"{name(key)}: '{value}' {fault}")
        # timm writes an empty text if nothing was given.
        settings[key] = None if value == "" and key in _OPTIONAL else value
    return checked(settings, name)


def read_settings(path: str, *, trains: bool = True) -> dict[str, object]:
    """Settings by name from a YAML or JSON file, timm's or ours, as `checked_of_file` gives them."""
    content = read_settings_file(path)
    data = content.pop("data", None)
    if data and not content.get("data_dir"):
        content["data_dir"] = data
    if isinstance(output := content.get("output"), str):
        content["output"] = from_file(output, Path(path))
    with naming(path):
        key, kind = kind_of(content)
        if kind is not None:
            what, command = _USED_BY.get(kind, (f"a sweep ({kind})", "sweep -c FILE"))
            raise InputError(f"{key}: this file is {what}; use stitchkit {command}")
        return checked_of_file(content, trains=trains and not content.get("eval"))


def make_recipe(values: Mapping[str, object]) -> Recipe:
    """The recipe with these settings; all others keep their defaults."""
    return parse(Recipe, _grouped(values))


def recipe_schema() -> JsonSchemaValue:
    """The JSON Schema of a file of settings by name."""
    schema = json_schema(Recipe)
    properties = {
        name: schema["$defs"][GROUPS[group].__name__]["properties"][name]
        for name, group in SETTINGS.items()
        if name not in COMMAND_ONLY
    }
    return {
        "$schema": schema["$schema"], "title": "Recipe", "type": "object", "additionalProperties": False,
        "description": "Settings by flag name; docs/timm_flags.md lists them all.",
        "properties": {"$schema": schema["properties"]["$schema"], **properties},
    }  # fmt: skip
