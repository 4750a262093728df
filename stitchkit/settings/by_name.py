"""Settings of a recipe by name, without their groups, as in flags and files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue

from stitchkit.errors import InputError, unknown
from stitchkit.settings.files import naming, read_settings_file
from stitchkit.settings.flag_fields import flag_in
from stitchkit.settings.recipe import GROUPS, Recipe, flag_of
from stitchkit.settings.schema import join, json_schema, parse
from stitchkit.settings.timm_flags import REFUSED


class Setting(NamedTuple):
    """One setting of a recipe: its field, and what a flag and a file need of the field's type.

    Args:
        group: The group that it is in.
        field: The field of the group.
        kind: Type of its value, or of each value if there are several.
        many: Whether it has several values.
        choices: Its possible values, if they are few.
        optional: Whether it may be None.
    """

    group: str
    field: FieldInfo
    kind: type
    many: bool
    choices: tuple[str, ...]
    optional: bool


def _setting(group: str, field: FieldInfo) -> Setting:
    options = get_args(field.annotation)
    optional = type(None) in options
    kind: Any = options[0] if optional else field.annotation  # a type, or a form of typing
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    many = get_origin(kind) is list
    if many:
        [kind] = get_args(kind)
        kind = get_args(kind)[0]  # the type that is annotated with its limits
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    return Setting(group, field, str if choices else get_origin(kind) or kind, many, choices, optional)


SETTINGS = {
    name: _setting(group, field) for group, kind in GROUPS.items() for name, field in kind.__pydantic_fields__.items()
}
"""Every setting by its name, in the order of groups and fields."""


def _grouped(values: Mapping[str, object]) -> dict[str, dict[str, object]]:
    groups: dict[str, dict[str, object]] = defaultdict(dict)
    for name, value in values.items():
        groups[SETTINGS[name].group][name] = value
    return groups


def checked(values: Mapping[str, object], name: Callable[[str], str] = str) -> dict[str, object]:
    """The settings, all of them known and with valid values.

    Args:
        values: Settings by name.
        name: The name of a setting in messages.
    """
    if wrong := [key for key in values if key not in SETTINGS]:
        raise InputError(f"{name(str(wrong[0]))}: {unknown('setting', str(wrong[0]), SETTINGS)}")
    made = {group: parse(GROUPS[group], own, name=name) for group, own in _grouped(values).items()}
    return {key: getattr(made[SETTINGS[key].group], key) for key in values}


def checked_of_file(
    values: Mapping[str, object], place: str = "", names: Mapping[str, str] | None = None
) -> dict[str, object]:
    """`checked` for settings of a file, timm's or ours.

    Args:
        values: Settings by name.
        place: Where they are in the file; errors begin with it.
        names: Their names in the file, if these differ.
    """

    def name(key: str) -> str:
        return join(place, key if names is None else names[key])

    given = {}
    for key, value in values.items():
        if key in REFUSED:
            if value != REFUSED[key].default:
                raise InputError(f"{name(key)}: {REFUSED[key].error(key)}")
            continue  # timm writes it into its own files
        setting = SETTINGS.get(key)
        if setting is not None and flag_in(setting.field).command_only and value:
            raise InputError(f"{name(key)}: a file cannot set it; give {flag_of(key)} on the command line")
        # timm writes an empty text if nothing was given.
        given[key] = None if value == "" and setting is not None and setting.optional else value
    return checked(given, name)


def read_settings(path: str) -> dict[str, object]:
    """Settings by name from a YAML or JSON file, timm's or ours."""
    content = read_settings_file(path)
    data = content.pop("data", None)
    if data and not content.get("data_dir"):
        content["data_dir"] = data
    with naming(path):
        return checked_of_file(content)


def make_recipe(values: Mapping[str, object]) -> Recipe:
    """The recipe with these settings; all others keep their defaults."""
    return parse(Recipe, _grouped(values))


def recipe_schema() -> JsonSchemaValue:
    """The JSON Schema of a file of settings by name."""
    schema = json_schema(Recipe)
    properties = {
        name: schema["$defs"][GROUPS[setting.group].__name__]["properties"][name]
        for name, setting in SETTINGS.items()
        if not flag_in(setting.field).command_only
    }
    return {
        "$schema": schema["$schema"],
        "title": "Recipe",
        "description": "Settings by flag name; docs/timm_flags.md lists them all.",
        "type": "object",
        "properties": {"$schema": schema["properties"]["$schema"], **properties},
        "additionalProperties": False,
    }
