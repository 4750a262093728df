"""Parts in a configuration: their names, their arguments and their places in the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from stitchkit.settings.tasks import DenseFacts

ReformatOptions = dict[Literal["class_token"], Literal["zeros", "ones", "avg", "zeroes", "mean"]]
"""`class_token`: the replacement for a missing one; `zeroes` is `zeros`, and `mean` is `avg`."""


def class_token_of(options: ReformatOptions | None, otherwise: str) -> str:
    """The replacement for a missing class token, in our spelling."""
    token: str = (options or {}).get("class_token", otherwise)
    return {"zeroes": "zeros", "mean": "avg"}.get(token, token)


class Wanted(NamedTuple):
    """The output that a task needs of a network."""

    channels: int  # how many values it has, one for each class, and one for depth
    dense: DenseFacts | None = None  # the task, if it has them at each position


@dataclass(frozen=True)
class PartSpec:
    """One part: the name of its class and its arguments."""

    name: str  # name of the class, e.g. `SimpleAdapter`
    arguments: Mapping[str, Any] = field(default_factory=dict)  # the arguments in the file
    # Equality ignores the place: a sweep compares its two networks.
    place: str = field(default="part", compare=False)  # its place in the file, e.g. `assembly[2]`; errors begin with it

    @classmethod
    def parse(cls, value: object, place: str) -> PartSpec:
        """The part described by a `WrittenPart`: a name, or a mapping of one name to its arguments."""
        [(name, arguments)] = value.items() if isinstance(value, Mapping) else [(str(value), None)]
        return cls(name, dict(arguments or {}), place)

    @property
    def parts(self) -> tuple[PartSpec, ...]:
        """The parts inside it, without a head."""
        inner, where = self.arguments.get("parts", ()), f"{self.place}.{self.name}.parts"
        return tuple(PartSpec.parse(value, f"{where}[{number}]") for number, value in enumerate(inner))

    @property
    def head(self) -> PartSpec | None:
        """The head of an assembly."""
        head = self.arguments.get("head")
        return None if head is None else PartSpec.parse(head, f"{self.place}.{self.name}.head")


@dataclass(frozen=True)
class NetworkSpec:
    """The network of a job: a list of parts and the head that follows them, or one model.

    Args:
        reformat_options: `class_token`: the replacement for a missing one, `zeros`, `ones` or `avg`.
    """

    parts: tuple[PartSpec, ...]  # the parts in their order; a single one if the file has `model`
    head: PartSpec | None = None  # built for the output of the parts; None if the last part returns logits
    reformat_options: ReformatOptions = field(default_factory=dict)
    unfrozen: bool = False  # train all parts, even frozen ones


def all_parts(spec: NetworkSpec | PartSpec) -> Iterator[PartSpec]:
    """The parts of a network, or of a part, at any depth: each before those inside it, and heads last."""
    for part in spec.parts if spec.head is None else (*spec.parts, spec.head):
        yield part
        yield from all_parts(part)
