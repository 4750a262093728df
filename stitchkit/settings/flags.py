"""A recipe from flags, YAML and stitch configuration. Precedence: flag > YAML > stitch configuration > default."""

from __future__ import annotations

import argparse
import ast
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from stitchkit.errors import InputError
from stitchkit.parser import ANCHORS_FLAG, DATA_FLAGS, with_default
from stitchkit.settings.by_name import checked, make_recipe, read_settings
from stitchkit.settings.combinations import ALTERNATIVES, check
from stitchkit.settings.names import config_file, hub_fault, read_anchor
from stitchkit.settings.recipe import GROUPS, Recipe
from stitchkit.settings.schema import Settings, flag_of
from stitchkit.settings.stitch_config import StitchConfig
from stitchkit.settings.stitch_recipe import RECIPE
from stitchkit.settings.tasks import DENSE
from stitchkit.settings.timm_flags import REFUSALS

_logger = logging.getLogger(__name__)

# What argparse cannot learn from the fields of the recipe: further spellings of flags, and how many values they take.
_SPELLINGS = {
    "dataset_download": ["--download"], "batch_size": ["-b"], "validation_batch_size": ["-vb"], "workers": ["-j"],
    "decay_rate": ["--dr"], "eval": ["--evaluate"], "lr": ["--learning-rate"], "opt": ["--optimizer"],
    "sched": ["--scheduler"], "weight_decay": ["--wd"],
    "recovery_interval": ["--checkpoint-interval", "--checkpoint_interval"],
}  # fmt: skip
_VALUES: dict[str, dict[str, Any]] = {
    "input_size": {"nargs": 3, "metavar": ("C", "H", "W")},
    "torchcompile": {"nargs": "?", "const": "inductor", "metavar": "BACKEND"},
    "latency": {"nargs": "?", "const": 1, "metavar": "N"},
    "anchors": ANCHORS_FLAG,
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag to the parser for every setting of the recipe; its result contains only flags that were given."""
    parser.argument_default = argparse.SUPPRESS
    parser.add_argument("data", nargs="?", metavar="DATA", help="same as --data")
    parser.add_argument("-c", "--config", metavar="YAML", help="file of settings by flag name")
    for group, kind in GROUPS.items():
        add_settings(parser.add_argument_group(group, kind.__doc__), kind, _spellings, _VALUES)
    for name, refusal in REFUSALS.items():
        parser.add_argument(*_spellings(name), *refusal.aliases, nargs="*", action=_Refuse, help=argparse.SUPPRESS)


def _spellings(name: str) -> list[str]:
    if name == "data_dir":
        return [*DATA_FLAGS]
    # timm spells some flags with underscores only in files; flags of the published scripts may use either.
    return [*dict.fromkeys([flag_of(name), "--" + name, *_SPELLINGS.get(name, ())])]


def add_settings(
    section: argparse._ActionsContainer,
    settings: type[Settings],
    spellings: Callable[[str], Iterable[str]],
    options: Mapping[str, dict[str, Any]],
) -> None:
    """Add the flag of each setting; `options` are further arguments of argparse by setting."""
    for name, field in settings.__pydantic_fields__.items():
        kind = _plain(field.annotation)
        arguments: dict[str, Any] = {"dest": name, "help": field.description}
        if kind is bool:  # a flag must be able to undo a switch that a file turned on
            arguments["action"] = "store_true" if name.startswith("no_") else argparse.BooleanOptionalAction
        elif get_origin(kind) is dict:
            arguments |= {"action": _Pairs, "type": _key_value, "nargs": "*", "metavar": "KEY=VALUE"}
        elif get_origin(kind) is Literal:
            arguments["metavar"] = "{" + ",".join(get_args(kind)) + "}"  # values are checked later, also those of files
        else:
            if get_origin(kind) is list:
                kind, arguments["nargs"] = _plain(get_args(kind)[0]), "+"
            arguments |= {"type": kind, "metavar": kind.__name__.upper()}
        section.add_argument(*spellings(name), **arguments | options.get(name, {}))
    show_defaults(section, settings)


def show_defaults(section: argparse._ActionsContainer, *settings: type[Settings]) -> None:
    """Add the defaults of settings to the help of their flags, which have none in argparse: a file may set them."""
    fields = {name: field for kind in settings for name, field in kind.__pydantic_fields__.items()}
    for action in section._actions:
        field = fields.get(action.dest)
        if field is not None and action.default is argparse.SUPPRESS and not field.is_required():
            action.help = with_default(action, field.get_default(call_default_factory=True))


def _plain(kind: Any) -> Any:
    """A type without `| None` and without the limits of its values."""
    while get_origin(kind) in (Annotated, Union, UnionType):
        kind = get_args(kind)[0]
    return kind


class _Refuse(argparse.Action):
    """Stop with the reason why a flag does not apply."""

    def __call__(self, *_: object) -> None:
        name = self.option_strings[0].removeprefix("--").replace("-", "_")
        raise REFUSALS[name].error(name)


class _Pairs(argparse.Action):
    """Several values of `_key_value` as a dictionary."""

    def __call__(self, _: object, namespace: argparse.Namespace, pairs: Any, __: object = None) -> None:
        values: dict[str, object] = {}
        for key, value in pairs:
            if key in values:
                raise InputError(f"{self.option_strings[0]} has {key} twice; remove one of the two")
            values[key] = value
        setattr(namespace, self.dest, values)


def _key_value(text: str) -> tuple[str, object]:
    """`key=value`; a value that is a Python literal is read as such, any other as text."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form key=value")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def resolve(flags: Mapping[str, object]) -> tuple[Recipe, StitchConfig | None]:
    """The recipe and the stitch configuration of a command: only flags that were given, as `add_flags` leaves them."""
    recipe, config = gather(flags)
    if config is not None and not recipe.run.eval:
        _say_recipe(recipe, config)
        if config.anchor_lora_r and (way := recipe.stitch.way_to_preserve) != "lora":
            raise InputError(
                f"anchor_lora_r is {config.anchor_lora_r}, but --preserve is {way}; only --preserve lora trains "
                "updates of anchors: give it, or take anchor_lora_r out of the stitch configuration"
            )
    return check(recipe, flags), config


def gather(flags: Mapping[str, object]) -> tuple[Recipe, StitchConfig | None]:
    """`resolve` for commands that start no run, without the check that the settings are compatible."""
    flags = dict(flags)
    if "data" in flags:
        folder = flags.pop("data")
        if flags.setdefault("data_dir", folder) != folder:
            raise InputError(f"the data are given twice, as '{folder}' and as --data {flags['data_dir']}; give one")
    file = flags.pop("config", None)
    # Each layer is checked separately: only then can an error name the flag or the line of a file.
    layers = [checked(flags, flag_of)]
    if file is not None:
        layers.append(read_settings(str(file), trains=not flags.get("eval")))
    settings, config = _merged(layers), None
    if settings.get("stitch_config"):
        config = StitchConfig.load(str(settings["stitch_config"]))
        own = _own_recipe(config, settings.get("task"), file=settings["stitch_config"])
        settings = _merged([*layers, *own])
    elif anchors := settings.get("anchors"):
        settings = _merged([*layers, RECIPE])
        settings.setdefault("experiment", "+".join(read_anchor(text).label for text in cast(list[str], anchors)))
    elif "pretrained" not in settings:
        settings["pretrained"] = bool(settings.get("pretrained_path"))  # timm's default for a single model is off
    recipe = make_recipe(settings)
    if flags.get("pretrained"):  # the files, as they stand, may want no weights
        specs = config.anchors if config else ()
        for name in [spec.name for spec in specs if spec.checkpoint is None] if config else [recipe.model.model]:
            if name and name != flags.get("model") and (fault := hub_fault(name, weights=True)):
                raise InputError(f"'{name}' {fault}")
    return recipe, config and config.with_updates(recipe)


def _own_recipe(config: StitchConfig, task: object, *, file: object) -> tuple[Mapping[str, object], ...]:
    """What a configuration in a file sets for a task, by default its own, the strongest first.

    Without a recipe, dense prediction has a default.
    """
    trains = _trained_task(config)
    if (task := task or trains) not in DENSE:
        if task != trains:
            raise InputError(f"'{file}' is for --task {trains}, not {task}; omit --task, or use --anchors")
        return (config.recipe,)
    # A recipe for classification is of no use in dense prediction, most of whose settings it would exclude. Where the
    # weights of anchors come from does not depend on the task.
    own = {key: value for key, value in config.recipe.items() if task == trains or key == "pretrained"}
    return (own,) if _optimises(own) else (own, RECIPE)


def _trained_task(config: StitchConfig) -> object:
    """The task that the recipe of a configuration is for."""
    return config.recipe.get("task", Recipe().dense.task)


def _optimises(recipe: Mapping[str, object]) -> bool:
    """Whether a recipe says how to train, and not only what."""
    return not {"lr", *RECIPE}.isdisjoint(recipe)


def _say_recipe(recipe: Recipe, config: StitchConfig) -> None:
    """Log that dense prediction is not trained as a configuration says, whose recipe is for something else."""
    task, trains = recipe.dense.task, _trained_task(config)
    if RECIPE not in _own_recipe(config, task, file=recipe.model.stitch_config):
        return
    why = f"is for {trains}, not for {task}" if task != trains and config.recipe else "does not say how to train"
    _logger.info(
        "the recipe in '%s' %s, so training starts from that of --anchors: %s, learning rate %g for %s images, %s "
        "epochs; flags and -c change it",
        recipe.model.stitch_config, why, *(RECIPE[key] for key in ("opt", "lr_base", "lr_base_size", "epochs")),
    )  # fmt: skip


def _network(settings: Mapping[str, object]) -> object:
    """The file of the configuration, the anchors or the model that settings name, if any."""
    if file := settings.get("stitch_config"):
        return config_file(str(file)).resolve()
    return settings.get("anchors") or settings.get("model")


def _merged(layers: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Settings of several sources, the strongest first."""
    merged: dict[str, object] = {}
    for layer in reversed(layers):
        if "lr" not in layer and any(name.startswith("lr_base") for name in layer):
            merged.pop("lr", None)  # a base rate determines the rate
        networks = [network for source in (merged, layer) if (network := _network(source))]
        if len(networks) == 2 and networks[0] != networks[1]:
            merged.pop("experiment", None)  # it names the folder of the other network
        for pair in ALTERNATIVES:
            for name, other in (pair, pair[::-1]):
                if layer.get(name) is not None:
                    merged.pop(other, None)
        merged |= layer
    return merged
