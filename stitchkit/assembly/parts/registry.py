"""The parts by their names in configurations, and the schema of each, which is made from its constructor."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Annotated, Literal, get_type_hints

from pydantic import ConfigDict, Field, GetJsonSchemaHandler, StrictBool, model_validator
from pydantic.dataclasses import dataclass
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from stitchkit.assembly.parts import adapters, part
from stitchkit.assembly.parts.part import Assembly, Format, ParallelPart, Part
from stitchkit.assembly.parts.pretrained import Subnet, WholeNetwork
from stitchkit.assembly.parts.spec import ReformatOptions
from stitchkit.errors import InputError
from stitchkit.settings.fields import Side
from stitchkit.settings.schema import Settings, as_written

_ALL: tuple[type[Part], ...] = (
    Subnet, WholeNetwork, part.ClassifierHead, part.SegmentationHead, part.DepthHead, part.BaseBlock, part.Function,
    Assembly, ParallelPart, adapters.SimpleAdapter, adapters.ResNetBasicBlock, adapters.ResNetBottleneck,
    adapters.VisionTransformerBlock, adapters.SwinTransformerBlock,
)  # fmt: skip
PARTS = {"Net" if kind is WholeNetwork else kind.__name__: kind for kind in _ALL}
"""The published name of each part -> its class."""
COMMON = ("frozen", "in_format", "out_format")
"""Arguments of every part."""


@dataclass(frozen=True, kw_only=True)
class PartSettings(Settings):
    """The arguments of every part.

    Args:
        frozen: Do not train its weights; its batch norms still learn statistics, unless it is `statistics`.
        in_format: Layout that its input is converted to: `img`, `bhwc`, `token`, `bert` or `vector`, or a list of one
            of them and a size, such as `[img, [C, H, W]]`.
        out_format: Layout of its output, likewise.
    """

    frozen: StrictBool | Literal["statistics"] | None = None
    in_format: Format | None = None
    out_format: Format | None = None


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="ignore", allow_inf_nan=False, defer_build=True))
class _OpenSettings(PartSettings):
    # Further arguments have any name, as those of a timm model; but one this close to a known one is a mistake.
    @model_validator(mode="before")
    @classmethod
    def _leave_out_further(cls, content: object) -> object:
        if not isinstance(content, Mapping):
            return content
        names = {key for key in content if difflib.get_close_matches(str(key), cls.__dataclass_fields__, cutoff=0.8)}
        return {key: value for key, value in content.items() if key in names}


@dataclass(frozen=True, kw_only=True)
class _ContainerSettings(PartSettings):
    """Parts inside a part.

    Args:
        parts: The parts.
        reformat_options: `class_token`: the replacement for a missing one, `zeros`, `ones` or `avg`.
    """

    parts: tuple[WrittenPart, ...] = Field(min_length=1)
    reformat_options: ReformatOptions | None = None


@dataclass(frozen=True, kw_only=True)
class AssemblySettings(_ContainerSettings):
    """Parts that run one after the other.

    Args:
        head: A last part.
        input_shape: Shape of the input, `[C, H, W]`.
    """

    head: WrittenPart | None = None
    input_shape: tuple[Side, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ParallelSettings(_ContainerSettings):
    """Parts that take the same input.

    Args:
        agg: What becomes of their outputs: `none` lists, `avg` averages, the others concatenate them.
    """

    agg: Literal["none", "avg", "concat", "concat_channels", "concat_sequence"] | None = None


def _settings(kind: type[Part]) -> type:
    """The schema of a part's arguments: those of its constructor; those that are inferred may be missing."""
    if kind in (Assembly, ParallelPart):  # constructors that take parts which are built already
        return AssemblySettings if kind is Assembly else ParallelSettings
    # pydantic makes a dataclass of a class with annotations and defaults, so one is made here. Its annotations must be
    # objects: pydantic looks names up in this module, not in the part's. `include_extras` keeps Annotated's rules.
    hints, parameters = get_type_hints(kind.__init__, include_extras=True), inspect.signature(kind).parameters
    own = {name: item.default for name, item in parameters.items() if item.kind is item.KEYWORD_ONLY}
    defaults = {name: default for name, default in own.items() if default is not inspect.Parameter.empty}
    # The JSON Schema takes its descriptions from docstrings; arguments may be described in a base class.
    doc = "\n\n".join(inspect.cleandoc(base.__doc__ or "") for base in kind.__mro__ if issubclass(base, Part))
    content = {**defaults, **dict.fromkeys(kind.inferred), "__annotations__": {name: hints[name] for name in own}}
    base = PartSettings if own.keys() == parameters.keys() else _OpenSettings
    return dataclass(frozen=True, kw_only=True)(type(kind.__name__, (base,), {**content, "__doc__": doc}))


class _OnePart(Settings):
    """A part: the name of its class and its arguments, or only the name."""

    @model_validator(mode="before")
    @classmethod
    def _check_one(cls, content: object) -> object:
        content = {content: None} if isinstance(content, str) else content
        if not isinstance(content, Mapping) or len(content) != 1:
            raise InputError(f"{content!r} is not a part; write one class name with its arguments, {{Subnet: {{...}}}}")
        return {name: {} if arguments is None else arguments for name, arguments in content.items()}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"enum": [*PARTS]}, super().__get_pydantic_json_schema__(core, handler)]}


# A part as a file has it, with a key for each kind; `_OnePart` requires exactly one of them.
_kinds = {name: _settings(kind) for name, kind in PARTS.items()}
PartFile = dataclass(frozen=True)(
    type("PartFile", (_OnePart,), {"__annotations__": _kinds, "__doc__": _OnePart.__doc__, **dict.fromkeys(_kinds)})
)
WrittenPart = Annotated[object, as_written(PartFile)]
"""A part as a file describes it, checked."""
