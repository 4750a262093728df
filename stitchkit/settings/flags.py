"""From flags, YAML and stitch configuration to a recipe. Precedence: flag > YAML > stitch configuration > default."""

from __future__ import annotations

import argparse
import ast
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import Field
from pathlib import Path
from typing import Any

import yaml

from stitchkit.errors import InputError, unknown
from stitchkit.paths import check_dataset, check_local
from stitchkit.settings.combinations import check
from stitchkit.settings.recipe import GROUPS, Recipe, flag_of, recipe_fields
from stitchkit.settings.stitch_config import StitchConfig
from stitchkit.settings.timm_flags import REFUSED

_FIELDS = {setting.name: setting for _, setting in recipe_fields()}

# A setting of a stronger source takes the place of those that it excludes.
_REPLACES = {
    "stitch_config": ("model",),
    "model": ("stitch_config",),
    "input_size": ("img_size", "in_chans"),
    "img_size": ("input_size",),
    "in_chans": ("input_size",),
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Give a parser every setting of the recipe as a flag; only flags that are given appear in its result."""
    parser.add_argument("data", nargs="?", default=argparse.SUPPRESS, metavar="DATA", help="same as --data-dir")
    parser.add_argument(
        "-c", "--config", metavar="YAML", default=argparse.SUPPRESS, help="file of settings by flag name"
    )
    sections = {group: parser.add_argument_group(group, kind.__doc__) for group, kind in GROUPS.items()}
    for group, setting in recipe_fields():
        _add_flag(sections[group], setting)
    for name, refusal in REFUSED.items():
        spellings = dict.fromkeys([flag_of(name), "--" + name, *refusal.aliases])
        parser.add_argument(*spellings, nargs="*", action=_Refuse, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def _add_flag(section: argparse._ArgumentGroup, setting: Field[Any]) -> None:
    options = dict(setting.metadata["options"], default=argparse.SUPPRESS, dest=setting.name)
    kind = setting.metadata["kind"]
    # timm spells some flags with underscores only in files; flags of the published scripts may have either.
    names = dict.fromkeys([flag_of(setting.name), "--" + setting.name, *setting.metadata["aliases"]])
    if kind is bool and setting.name.startswith("no_"):
        section.add_argument(*names, action="store_true", **options)
    elif kind is bool:  # a flag must be able to take back what a file switches on
        section.add_argument(*names, action=argparse.BooleanOptionalAction, **options)
    elif kind is dict:
        section.add_argument(*names, action=_KeyValues, metavar="KEY=VALUE", **options)
    else:
        options.setdefault("metavar", None if "choices" in options else kind.__name__.upper())
        section.add_argument(*names, type=kind, **options)


class _Refuse(argparse.Action):
    """End with the reason why a flag of timm does not apply."""

    def __call__(self, *_: Any) -> None:
        name = self.option_strings[0].removeprefix("--").replace("-", "_")
        raise REFUSED[name].error(name)


class _KeyValues(argparse.Action):
    """`key=value ...` as a dictionary; values are Python literals where they can be read as such, else text."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, _: Any = None
    ) -> None:
        pairs = {}
        for text in values:
            key, equals, value = text.partition("=")
            if not equals or not key:
                parser.error(f"{self.option_strings[0]}: '{text}' is not of the form key=value")
            try:
                pairs[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                pairs[key] = value
        setattr(namespace, self.dest, pairs)


def resolve(flags: Mapping[str, Any]) -> tuple[Recipe, StitchConfig | None]:
    """The recipe that given flags mean, and the stitch configuration they name.

    Args:
        flags: What `add_flags` made of a command line: only what was given.

    Raises:
        InputError: If a file cannot be read or has an unknown key, a value is unusable, or settings exclude each other.
    """
    recipe, config = gather(flags)
    return check(recipe), config


def gather(flags: Mapping[str, Any]) -> tuple[Recipe, StitchConfig | None]:
    """`resolve` for what is no run: whether the settings make a run together is not checked.

    Args:
        flags: Settings by name: only what was given.

    Raises:
        InputError: If a file cannot be read or has an unknown key, or a value is unusable.
    """
    flags = dict(flags)
    if "data" in flags:
        flags.setdefault("data_dir", flags.pop("data"))
    layers: list[Mapping[str, Any]] = [flags]
    if "config" in flags:
        layers.append(read_settings(flags.pop("config")))
    given = _merged(layers)
    config = None
    if given.get("stitch_config"):
        config = StitchConfig.load(given["stitch_config"])
        given = _merged([*layers, _recipe_of(config)])
    elif "pretrained" not in given:
        given["pretrained"] = bool(given.get("pretrained_path"))  # timm's default for a single model is off
    for name, value in given.items():
        _check_limits(_FIELDS[name], value)
        _check_place(_FIELDS[name], value, flag_of(name))
    return make_recipe(given), config


_NOT_ITS_AUTHORS = ("output", "log_wandb", "wandb_project", "wandb_tags", "wandb_resume_id")
"""Where things are written, and whom they are sent to."""


def _recipe_of(config: StitchConfig) -> dict[str, Any]:
    """The settings that a stitch configuration has; where results go is not for its author to say."""
    for key in _NOT_ITS_AUTHORS:
        if key in config.recipe:
            raise InputError(
                f"recipe of {config.path}: a stitch configuration cannot set '{key}'; take it out and give "
                f"{flag_of(key)} on the command line"
            )
    return _checked(config.recipe, f"recipe of {config.path}")


def _merged(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Settings of several sources, the strongest first."""
    given: dict[str, Any] = {}
    for layer in reversed(layers):
        if "lr" not in layer and any(name.startswith("lr_base") for name in layer):
            given.pop("lr", None)  # a base rate means that the rate follows from it
        for name, others in _REPLACES.items():
            if layer.get(name) is not None:
                for other in others:
                    given.pop(other, None)
        given |= layer
    return given


def _check_limits(setting: Field[Any], value: Any) -> None:
    """Refuse a value out of range, wherever it was given."""
    low, high, length = (setting.metadata[key] for key in ("low", "high", "length"))
    values = value if isinstance(value, list) else [value]
    if value is None:
        return
    flag = flag_of(setting.name)
    if any(isinstance(item, float) and not math.isfinite(item) for item in values):
        raise InputError(f"{flag} is {value}; it must be finite")
    if length is not None and len(values) != length:
        raise InputError(f"{flag} is {value}; it takes {length} values")
    if (low is not None and min(values) < low) or (high is not None and max(values) > high):
        bounds = [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
        raise InputError(f"{flag} is {value}; it must be {' and '.join(bounds)}")


def _check_place(setting: Field[Any], value: Any, name: str) -> None:
    """Refuse URLs and commands for what names a place."""
    if setting.metadata["path"] and value:
        (check_dataset if setting.name == "dataset" else check_local)(value, name)


def make_recipe(values: Mapping[str, Any]) -> Recipe:
    """A recipe of settings by flag name; the others keep their defaults."""
    groups: dict[str, dict[str, Any]] = defaultdict(dict)
    for group, setting in recipe_fields():
        if setting.name in values:
            groups[group][setting.name] = values[setting.name]
    return Recipe(**{group: GROUPS[group](**settings) for group, settings in groups.items()})


def read_settings(path: str) -> dict[str, Any]:
    """Settings by flag name from a YAML file, timm's or ours.

    Raises:
        InputError: If it cannot be read, has an unknown key, or holds a value that cannot be used.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"configuration '{path}' cannot be read: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # of dates, numbers and depths that Python has not
        raise InputError(f"configuration '{path}' is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"configuration '{path}' must hold settings as 'name: value' lines")
    if content.get("data"):
        content.setdefault("data_dir", None)
        content["data_dir"] = content["data_dir"] or content["data"]
    return _checked({name: value for name, value in content.items() if name != "data"}, path)


def _checked(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings from a file, each with a known name and a value of the right type."""
    checked = {}
    for name, value in values.items():
        if name in REFUSED:
            if value != REFUSED[name].default:
                raise InputError(f"{where}: {REFUSED[name].error(name)}")
            continue  # as timm writes it into its own files
        if name not in _FIELDS:
            raise InputError(f"{where}: {unknown('setting', str(name), _FIELDS)}")
        checked[name] = _cast(_FIELDS[name], value, where)
        _check_place(_FIELDS[name], checked[name], f"{where}: '{name}'")
        if _FIELDS[name].metadata["command_only"] and checked[name]:
            raise InputError(f"{where}: a file cannot set '{name}'; give {flag_of(name)} on the command line")
    return checked


def _cast(setting: Field[Any], value: Any, where: str) -> Any:
    kind, options = setting.metadata["kind"], setting.metadata["options"]
    optional = setting.default is None
    many = kind is not dict and options.get("nargs", "?") != "?"
    allowed = options.get("choices")
    if optional and (value is None or value == ""):
        return None  # timm writes an empty text where nothing was given
    try:
        if kind in (bool, dict, str) and not many and not isinstance(value, kind):
            raise ValueError
        cast = [kind(item) for item in value] if many else kind(value)
        if kind is int and not many and (cast != float(value) or isinstance(value, bool)):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        expected = f"a list of {kind.__name__}" if many else f"of type {kind.__name__}"
        raise InputError(f"{where}: '{setting.name}' is {value!r}; it must be {expected}") from None
    if allowed and cast not in allowed:
        raise InputError(f"{where}: '{setting.name}' is {value!r}; allowed: {', '.join(map(repr, allowed))}")
    return cast
