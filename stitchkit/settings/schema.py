"""Schemas of settings: pydantic dataclasses, the check of data against them, and their JSON Schema."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cache
from inspect import cleandoc
from itertools import takewhile
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from pydantic import (
    AfterValidator,
    ConfigDict,
    GetJsonSchemaHandler,
    GetPydanticSchema,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import ArgsKwargs, CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from stitchkit.errors import InputError, unknown
from stitchkit.paths import dataset_fault, local_fault
from stitchkit.settings.fields import MOST_CHANNELS, MOST_CLASSES, MOST_SIDE, Channels, Side

Kind = TypeVar("Kind")

_EXPECTED = {
    "bool_type": "true or false", "int_type": "a whole number", "float_type": "a number", "finite_number": "finite",
    "string_type": "text", **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    **dict.fromkeys(("dict_type", "mapping_type", "dataclass_type"), "settings by name"),
}  # fmt: skip
"""The kind of value that pydantic expects, by the type of its error."""

_MESSAGES = {
    "missing": "{place} is missing; add it",
    "fault": "{shown}, which {fault}",
    "too_short": "{shown}; its length must be at least {min_length}",
    "too_long": "{shown}; its length must be at most {max_length}",
    "greater_than_equal": "{shown}; it must be at least {ge:g}",
    "less_than_equal": "{shown}; it must be at most {le:g}",
}
"""Messages for pydantic's other errors, by their types."""


class _Reported(type):
    """Raises what pydantic finds wrong with arguments in Python as an `InputError`, as `parse` does for files."""

    def __call__(cls: type[Kind], *values: Any, **named: Any) -> Kind:
        try:
            return type.__call__(cls, *values, **named)  # type: ignore[no-any-return]
        except ValidationError as error:
            raise _refusal(error, named, cls.__name__, None) from None


# Schemas are built when first used: `stitchkit --help` imports them all and must not wait for that.
@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False, defer_build=True))
class Settings(metaclass=_Reported):
    """Base of all schemas: an unknown key is an error that names the nearest known one."""

    further_keys: ClassVar[tuple[str, ...]] = ()
    """Keys that files may have although they are not fields."""
    if TYPE_CHECKING:
        __pydantic_fields__: ClassVar[dict[str, FieldInfo]]

    # pydantic forbids unknown keys too, but its error does not list the known ones.
    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, content: object) -> object:
        values = content.kwargs if isinstance(content, ArgsKwargs) else content
        if isinstance(values, Mapping):
            known = [*(field.name for field in fields(cls)), *cls.further_keys]
            for key in values:
                if key not in known:
                    raise PydanticCustomError("unknown_key", "unknown key", {"key": str(key), "known": known})
        return content

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        made = handler(core)
        schema = handler.resolve_ref_schema(made)
        schema["description"] = " ".join((cls.__doc__ or "").split("\n\n")[0].split())
        lines: dict[str, str] = {}
        for kind in reversed(cls.__mro__):  # a schema that extends another one describes only its own fields
            lines |= re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", cleandoc(kind.__doc__ or ""), flags=re.MULTILINE)
        for key, value in schema["properties"].items():
            value.pop("title", None)
            if value.get("default", ...) is None:
                del value["default"]
            if key in lines:
                value["description"] = " ".join(lines[key].split())
        return made


def checked_by(fault: Callable[[Kind], str | None]) -> AfterValidator:
    """The rule of a value: what is wrong with it, or None."""

    def check(value: Kind) -> Kind:
        if reason := fault(value):
            raise PydanticCustomError("fault", "{fault}", {"fault": reason})
        return value

    return AfterValidator(check)


LocalPath = Annotated[str, checked_by(local_fault)]
"""A path on this machine; neither a URL nor a command."""

DatasetName = Annotated[str, checked_by(dataset_fault)]
"""A data set's name or folder, as in timm; neither a URL nor a command."""


# These arguments of timm choose a model or its weights, perhaps by a URL, and so bypass the settings that are checked.
_RESERVED = (
    *("name", "model_name", "pretrained", "checkpoint", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"),
    "cache_dir",
)


# timm's arguments that count blocks, as a number or a list of numbers; it would build a million of them.
_BLOCKS = ("depth", "depths", "layers", "num_layers", "block_config", "num_blocks", "num_stages")
_MOST_BLOCKS = 1000
_SIZES = {"num_classes": (0, MOST_CLASSES), "in_chans": (1, MOST_CHANNELS), "img_size": (1, MOST_SIDE)}
"""The limits of timm's arguments of sizes; some of its models build anything."""
_MOST_OF_MODEL = 65_536
"""The largest number among other arguments of models, such as widths; none of timm's own is half as large."""
_MOST_FACTOR = 1000
"""The largest factor on a width or a depth, such as mlp_ratio."""
_MOST_NUMBER = 10**38  # float32 holds it
_MOST_NUMBERS = 10_000


def _argument_fault(arguments: dict[str, Any]) -> str | None:
    for key in arguments:
        if key in _RESERVED:
            return f"sets {key}; choose weights by checkpoint, in a job by ckp_path, or by --pretrained-path"
    for key in _BLOCKS:
        if _total(arguments.get(key)) > _MOST_BLOCKS:
            return f"sets {key} to more than {_MOST_BLOCKS} blocks; lower it"
    for key, (least, most) in _SIZES.items():
        value = arguments.get(key)
        sizes = value if isinstance(value, list | tuple) else [] if value is None else [value]
        if not all(isinstance(size, int) and least <= size <= most for size in sizes):
            return f"sets {key} to {value!r:.60}; it must be at least {least} and at most {most}"
    return _number_fault(arguments, _MOST_OF_MODEL)


def _number_fault(arguments: dict[str, Any], most: float = _MOST_NUMBER) -> str | None:
    """Why numbers within some arguments, of whatever type and depth, cannot be used."""
    numbers = [*_numbers(arguments)]
    if len(numbers) > _MOST_NUMBERS:
        return f"has {len(numbers):,} numbers; at most {_MOST_NUMBERS:,} are read"
    for key, number in numbers:
        limit = min(most, _MOST_FACTOR) if key.endswith(("ratio", "multiplier")) else most
        if not abs(number) <= limit:  # NaN is not
            # No float holds such an integer, and Python may refuse to print it.
            is_long = isinstance(number, int) and abs(number) >= 10**300
            shown = "a number of more than 300 digits" if is_long else f"{number:.9g}"
            return f"sets {key} to {shown}; it must be at most {limit:,}"
    return None


def _numbers(value: object, key: str = "") -> Iterator[tuple[str, float]]:
    """The numbers within a value, each with the name that it stands under."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _numbers(item, str(name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item, key)
    elif isinstance(value, int | float):
        yield key, value


def _total(value: object) -> int:
    if isinstance(value, list | tuple):
        return sum(map(_total, value))
    return value if isinstance(value, int) else 0


# Any, not object: pydantic 2.14 fails to build the schema of a strict, optional mapping of objects within a group.
ModelArguments = Annotated[dict[str, Any], checked_by(_argument_fault)]
"""Arguments of `timm.create_model` that do not choose the weights, within limits of what can be built."""
Arguments = Annotated[dict[str, Any], checked_by(_number_fault)]
"""Arguments of something else, whose numbers are finite and of a size that arithmetic can hold."""


def join(place: str, key: object) -> str:
    """The place of a key or index below another place: `train_config.tasks[0]`."""
    if isinstance(key, int):
        return f"{place}[{key}]"
    return f"{place}.{key}" if place else str(key)


def flag_of(name: str) -> str:
    """The flag of a setting, as messages show it."""
    return "--" + name.replace("_", "-")


def parse(kind: type[Kind], content: object, place: str = "", *, name: Callable[[str], str] | None = None) -> Kind:
    """Settings of a kind from plain data.

    Args:
        place: The place of the data in the file; errors begin with it.
        name: Names of the top-level keys in messages, such as their flags; by default their place in the file.
    """
    try:
        made: Kind = _adapter(kind).validate_python(content)  # type: ignore[arg-type] # kinds are hashable
    except ValidationError as error:
        raise _refusal(error, content, place, name) from None
    return made


@cache
def _adapter(kind: type[Kind]) -> TypeAdapter[Kind]:
    """What checks settings of a kind; it takes milliseconds to make."""
    return TypeAdapter(kind)


def _refusal(error: ValidationError, content: object, place: str, name: Callable[[str], str] | None) -> InputError:
    """The first of pydantic's errors, as one readable line."""
    errors = error.errors(include_url=False)
    path = _path(errors[0], content)
    # pydantic reports one error for each type that a value may have, one after another. One about the value says more
    # than one about its type: "it must be at least 1" helps where "it must be nothing" does not.
    alike = list(takewhile(lambda item: _path(item, content)[: len(path)] == path, errors))
    first = next((item for item in alike if item["type"] not in _EXPECTED), alike[0])
    for number, key in enumerate(_path(first, content)):
        place = name(str(key)) if name and not number else join(place, key)
    shown = f"{place or 'the content'} is {first['input']!r:.500}"
    details = first.get("ctx", {})
    match first["type"]:
        case "unknown_key":
            place = name(details["key"]) if name and not place else join(place, details["key"])
            return InputError(f"{place}: {unknown('key', details['key'], details['known'])}")
        case "literal_error":
            allowed = re.findall(r"'([^']*)'", details["expected"])
            kinds = [_EXPECTED[item["type"]] for item in alike if item["type"] in _EXPECTED]
            return InputError(f"{place}: {unknown('value', first['input'], [*allowed, *kinds])}")
        case "value_error":
            return InputError(f"{place}: {details['error']}" if place else str(details["error"]))
        case other if other in _MESSAGES:
            return InputError(_MESSAGES[other].format(place=place, shown=shown, **details))
    expected = dict.fromkeys(_EXPECTED.get(item["type"], item["msg"]) for item in alike)
    return InputError(f"{shown}; it must be {' or '.join(expected)}")


def _path(error: ErrorDetails, content: object) -> Sequence[str | int]:
    """Keys and indices that lead to an error, without the type names that pydantic adds."""
    path: list[str | int] = []
    for key in error["loc"]:
        is_index = isinstance(content, list | tuple) and isinstance(key, int) and 0 <= key < len(content)
        if is_index or (isinstance(content, Mapping) and key in content):
            content = content[key]  # type: ignore[index] # one of the two
        elif error["type"] != "missing" or key != error["loc"][-1]:
            continue
        path.append(key)
    return path


def image_size(value: object) -> tuple[int, int, int]:
    """The size of an image that a file says, `(C, H, W)`."""
    size: tuple[int, int, int] = parse(tuple[Channels, Side, Side], value, "input_size")
    return size


def as_written(kind: type[Settings]) -> GetPydanticSchema:
    """The annotation of data that must suit a schema but stay as the file has them, without its defaults."""

    def check(content: object, schema: ValidatorFunctionWrapHandler) -> object:
        schema(content)
        return content

    return GetPydanticSchema(
        lambda _, handler: core_schema.no_info_wrap_validator_function(check, handler.generate_schema(kind))
    )


def json_schema(kind: type[Settings]) -> JsonSchemaValue:
    """The JSON Schema of a kind of settings, with descriptions from its docstrings.

    Keys that default to None have no default in it.
    """
    schema = TypeAdapter(kind).json_schema()
    schema["properties"]["$schema"] = {"type": "string", "description": "This schema, for editors."}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
