"""The parts by their names in configurations, and the arguments of each."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping

from stitchkit.assembly.parts.adapters import SimpleAdapter
from stitchkit.assembly.parts.blocks import (
    ResNetBasicBlock,
    ResNetBottleneck,
    SwinTransformerBlock,
    VisionTransformerBlock,
)
from stitchkit.assembly.parts.part import Assembly, BaseBlock, ClassifierHead, Function, ParallelPart, Part
from stitchkit.assembly.parts.pretrained import Subnet, WholeNetwork
from stitchkit.errors import InputError, unknown

PARTS: dict[str, type[Part]] = {
    "Subnet": Subnet,
    "Net": WholeNetwork,
    "ClassifierHead": ClassifierHead,
    "BaseBlock": BaseBlock,
    "Function": Function,
    "Assembly": Assembly,
    "ParallelPart": ParallelPart,
    "SimpleAdapter": SimpleAdapter,
    "ResNetBasicBlock": ResNetBasicBlock,
    "ResNetBottleneck": ResNetBottleneck,
    "VisionTransformerBlock": VisionTransformerBlock,
    "SwinTransformerBlock": SwinTransformerBlock,
}
"""The published name of each part -> its class."""
COMMON = ("frozen", "in_format", "out_format")
"""Arguments of every part."""
_CONTAINERS: dict[type[Part], tuple[str, ...]] = {
    Assembly: ("parts", "head", "input_shape", "reformat_options"),
    ParallelPart: ("parts", "agg", "reformat_options"),
}
# Parts that pass further arguments on to a model accept any name, but one this close to ours is a mistake.
_CLOSE = 0.8


def part_class(name: str) -> type[Part]:
    """The class of a name."""
    if name not in PARTS:
        raise unknown("part", name, PARTS)
    return PARTS[name]


def check_arguments(part: type[Part], arguments: Mapping[str, object]) -> None:
    """Check that a part knows all its arguments in a file, and gets those that it needs.

    Args:
        part: The class.
        arguments: The arguments in the file.
    """
    parameters = _parameters(part)
    allowed = [*parameters, *COMMON]
    for name in arguments:
        if name in allowed:
            continue
        if not _takes_any(part) or difflib.get_close_matches(name, allowed, cutoff=_CLOSE):
            raise unknown("argument", name, allowed)
    missing = [
        name for name, needed in parameters.items() if needed and name not in arguments and name not in part.inferred
    ]
    if missing:
        raise InputError(f"{', '.join(missing)} is missing; the arguments are {', '.join(allowed)}")


def _parameters(part: type[Part]) -> dict[str, bool]:
    """Names of a part's own arguments, and whether they must be given."""
    if part in _CONTAINERS:
        return {name: name == "parts" for name in _CONTAINERS[part]}
    signature = inspect.signature(part).parameters.values()
    named = [parameter for parameter in signature if parameter.kind is not parameter.VAR_KEYWORD]
    return {parameter.name: parameter.default is parameter.empty for parameter in named}


def _takes_any(part: type[Part]) -> bool:
    if part in _CONTAINERS:
        return False
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in inspect.signature(part).parameters.values())
