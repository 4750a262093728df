"""What a configuration says of its parts: their names and arguments, and where in the file they stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stitchkit.errors import InputError


@dataclass(frozen=True)
class PartSpec:
    """One part: the name of its class and its arguments.

    Args:
        name: Name of the class, e.g. `SimpleAdapter`.
        arguments: As the file has them.
        place: Where it stands in the file, e.g. `assembly[2]`; errors begin with it.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    # Two parts are the same wherever they stand: a sweep asks whether its networks are.
    place: str = field(default="part", compare=False)

    @classmethod
    def parse(cls, value: object, place: str) -> PartSpec:
        """The part that a YAML value describes: a name, or a mapping of one name to its arguments.

        Raises:
            InputError: If it is anything else.
        """
        if isinstance(value, str):
            return cls(value, {}, place)
        if not isinstance(value, Mapping) or len(value) != 1:
            raise InputError(f"{place} is {value!r}; a part is one class name with its arguments, {{Subnet: {{...}}}}")
        [(name, arguments)] = value.items()
        if not isinstance(name, str) or not isinstance(arguments, Mapping | None):
            raise InputError(f"{place}: the arguments of {name} are {arguments!r}; give them by name")
        return cls(name, dict(arguments or {}), place)


@dataclass(frozen=True)
class NetworkSpec:
    """The network of a job: a list of parts and the head that follows them, or one model.

    Args:
        parts: The parts in the order they run; one alone where the file says `model`.
        head: Built after the parts, to what they give; None where the last part gives logits.
        reformat_options: `class_token`: what stands in for one that is not there, `zeros`, `ones` or `avg`.
        unfrozen: Train all parts, whatever they say of themselves.
    """

    parts: tuple[PartSpec, ...]
    head: PartSpec | None = None
    reformat_options: Mapping[str, str] = field(default_factory=dict)
    unfrozen: bool = False
