"""A recipe from flags, YAML and stitch configuration. Precedence: flag > YAML > stitch configuration > default."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Mapping, Sequence

from stitchkit.settings.by_name import SETTINGS, Setting, checked, make_recipe, read_settings
from stitchkit.settings.combinations import check
from stitchkit.settings.flag_fields import flag_in
from stitchkit.settings.recipe import GROUPS, Recipe, flag_of
from stitchkit.settings.stitch_config import StitchConfig
from stitchkit.settings.timm_flags import REFUSED

# A setting from a stronger source replaces those that it excludes.
_REPLACES = {
    "stitch_config": ("model",),
    "model": ("stitch_config",),
    "input_size": ("img_size", "in_chans"),
    "img_size": ("input_size",),
    "in_chans": ("input_size",),
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag to the parser for every setting of the recipe; its result contains only flags that were given."""
    parser.add_argument("data", nargs="?", default=argparse.SUPPRESS, metavar="DATA", help="same as --data-dir")
    parser.add_argument(
        "-c", "--config", metavar="YAML", default=argparse.SUPPRESS, help="file of settings by flag name"
    )
    sections = {group: parser.add_argument_group(group, kind.__doc__) for group, kind in GROUPS.items()}
    for name, setting in SETTINGS.items():
        _add_flag(sections[setting.group], name, setting)
    for name, refusal in REFUSED.items():
        spellings = dict.fromkeys([flag_of(name), "--" + name, *refusal.aliases])
        parser.add_argument(*spellings, nargs="*", action=_Refuse, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def _add_flag(section: argparse._ArgumentGroup, name: str, setting: Setting) -> None:
    flag, kind = flag_in(setting.field), setting.kind
    options = dict(flag.options, default=argparse.SUPPRESS, dest=name, help=setting.field.description)
    # timm spells some flags with underscores only in files; flags of the published scripts may use either spelling.
    names = dict.fromkeys([flag_of(name), "--" + name, *flag.aliases])
    if kind is bool and name.startswith("no_"):
        section.add_argument(*names, action="store_true", **options)
    elif kind is bool:  # a flag must be able to undo a switch that a file turned on
        section.add_argument(*names, action=argparse.BooleanOptionalAction, **options)
    elif kind is dict:
        section.add_argument(*names, action=_KeyValues, nargs="*", metavar="KEY=VALUE", **options)
    else:
        if setting.choices:
            options["choices"] = setting.choices
        elif setting.many:
            options.setdefault("nargs", "+")
        options.setdefault("metavar", None if setting.choices else kind.__name__.upper())
        section.add_argument(*names, type=kind, **options)


class _Refuse(argparse.Action):
    """Stop with the reason why a flag of timm does not apply."""

    def __call__(self, *_: object) -> None:
        name = self.option_strings[0].removeprefix("--").replace("-", "_")
        raise REFUSED[name].error(name)


class _KeyValues(argparse.Action):
    """`key=value ...` as a dictionary; values that are Python literals are read as such, all others as text."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[object] | None,
        _: str | None = None,
    ) -> None:
        pairs: dict[str, object] = {}
        for text in map(str, values or ()):
            key, equals, value = text.partition("=")
            if not equals or not key:
                parser.error(f"{self.option_strings[0]}: '{text}' is not of the form key=value")
            try:
                pairs[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                pairs[key] = value
        setattr(namespace, self.dest, pairs)


def resolve(flags: Mapping[str, object]) -> tuple[Recipe, StitchConfig | None]:
    """The recipe that the given flags describe, and the stitch configuration that they name.

    Args:
        flags: The result of a parser with `add_flags`: only flags that were given.
    """
    recipe, config = gather(flags)
    return check(recipe), config


def gather(flags: Mapping[str, object]) -> tuple[Recipe, StitchConfig | None]:
    """`resolve` for commands that start no run, without the check that the settings are compatible.

    Args:
        flags: As `resolve` takes them.
    """
    flags = dict(flags)
    if "data" in flags:
        flags.setdefault("data_dir", flags.pop("data"))
    file = flags.pop("config", None)
    # Each layer is checked separately: only then can an error name the flag or the line of a file.
    layers = [checked(flags, flag_of)]
    if file is not None:
        layers.append(read_settings(str(file)))
    given = _merged(layers)
    config = None
    if given.get("stitch_config"):
        config = StitchConfig.load(str(given["stitch_config"]))
        given = _merged([*layers, config.recipe])
    elif "pretrained" not in given:
        given["pretrained"] = bool(given.get("pretrained_path"))  # timm's default for a single model is off
    return make_recipe(given), config


def _merged(layers: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Settings of several sources, the strongest first."""
    given: dict[str, object] = {}
    for layer in reversed(layers):
        if "lr" not in layer and any(name.startswith("lr_base") for name in layer):
            given.pop("lr", None)  # a base rate determines the rate
        for name, others in _REPLACES.items():
            if layer.get(name) is not None:
                for other in others:
                    given.pop(other, None)
        given |= layer
    return given
