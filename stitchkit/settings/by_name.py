"""Settings of a recipe by name, without the groups, as flags and files have them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import AfterValidator
from pydantic.fields import FieldInfo

from stitchkit.errors import InputError, unknown
from stitchkit.settings.files import naming, read_settings_file
from stitchkit.settings.recipe import GROUPS, Recipe, flag_of
from stitchkit.settings.schema import fields_of, join, json_schema, parse
from stitchkit.settings.timm_flags import REFUSED


class Setting(NamedTuple):
    """One setting of a recipe, as its flag needs it.

    Args:
        group: The group that it is in.
        name: Its name.
        kind: Type of its value, or of each of several.
        many: Whether it has several values.
        choices: What it may be, if few.
        optional: Whether it may be nothing.
        is_place: Whether it names a place on this machine.
        help: One line for `--help`.
        aliases: Further spellings of the flag.
        command_only: Whether only a flag can switch it on.
        options: Further arguments of argparse.
    """

    group: str
    name: str
    kind: type
    many: bool
    choices: tuple[str, ...]
    optional: bool
    is_place: bool
    help: str
    aliases: tuple[str, ...]
    command_only: bool
    options: dict[str, Any]


def _setting(group: str, name: str, field: FieldInfo) -> Setting:
    options = get_args(field.annotation)
    optional = type(None) in options
    kind: Any = options[0] if optional else field.annotation
    marks = [*field.metadata, *getattr(kind, "__metadata__", ())]
    kind = getattr(kind, "__origin__", kind) if get_origin(kind) is Annotated else kind
    many = get_origin(kind) is list
    if many:
        [kind] = get_args(kind)
        kind = get_args(kind)[0]  # of what is annotated with its limits
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    kind = str if choices else get_origin(kind) or kind
    is_place = any(isinstance(mark, AfterValidator) for mark in marks)
    extra: Any = field.json_schema_extra
    return Setting(group, name, kind, many, choices, optional, is_place, field.description or "", **extra["flag"])


SETTINGS: dict[str, Setting] = {
    name: _setting(group, name, field) for group, kind in GROUPS.items() for name, field in fields_of(kind).items()
}
"""Every setting by its name, in the order of groups and fields."""


def checked(values: Mapping[str, Any], name: Callable[[str], str] = str) -> dict[str, Any]:
    """Settings that are known and have values that they can have.

    Args:
        values: Settings by name.
        name: How a person knows a setting, for messages.

    Raises:
        InputError: If there is an unknown one, or a value that it cannot have.
    """
    groups: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, value in values.items():
        if key not in SETTINGS:
            raise InputError(f"{name(str(key))}: {unknown('setting', str(key), SETTINGS)}")
        groups[SETTINGS[key].group][key] = value
    made = {group: parse(GROUPS[group], own, name=name) for group, own in groups.items()}
    return {key: getattr(made[SETTINGS[key].group], key) for key in values}


def checked_of_file(
    values: Mapping[str, Any], place: str = "", names: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """`checked` for settings of a file, timm's or ours.

    Args:
        values: Settings by name.
        place: Where they are in the file; errors begin with it.
        names: What the file calls them, where it has other names.

    Raises:
        InputError: Also if there is a setting of timm's that does not apply, or that a file cannot switch on.
    """

    def name(key: str) -> str:
        return join(place, key if names is None else names[key])

    given = {}
    for key, value in values.items():
        if key in REFUSED:
            if value != REFUSED[key].default:
                raise InputError(f"{name(key)}: {REFUSED[key].error(key)}")
            continue  # as timm writes it into its own files
        setting = SETTINGS.get(key)
        if setting is not None and setting.command_only and value:
            raise InputError(f"{name(key)}: a file cannot set it; give {flag_of(key)} on the command line")
        # timm writes an empty text where nothing was given.
        given[key] = None if value == "" and setting is not None and setting.optional else value
    return checked(given, name)


def read_settings(path: str) -> dict[str, Any]:
    """Settings by name from a YAML or JSON file, timm's or ours.

    Raises:
        InputError: If it cannot be read, has an unknown key, or holds a value that cannot be used.
    """
    content = read_settings_file(path)
    data = content.pop("data", None)
    if data and not content.get("data_dir"):
        content["data_dir"] = data
    with naming(path):
        return checked_of_file(content)


def make_recipe(values: Mapping[str, Any]) -> Recipe:
    """A recipe of settings by name; the others keep their defaults."""
    groups: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, value in values.items():
        groups[SETTINGS[name].group][name] = value
    return parse(Recipe, groups)


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema of a file of settings by name."""
    schema = json_schema(Recipe)
    properties = {
        name: schema["$defs"][GROUPS[setting.group].__name__]["properties"][name]
        for name, setting in SETTINGS.items()
        if not setting.command_only
    }
    return {
        "$schema": schema["$schema"],
        "title": "Recipe",
        "description": "Settings by flag name; docs/timm_flags.md has them all.",
        "type": "object",
        "properties": {"$schema": schema["properties"]["$schema"], **properties},
        "additionalProperties": False,
    }
