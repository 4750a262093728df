"""Classes of a job: the files of its classifiers must number them as its data do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from stitchkit.assembly.parts.part import Assembly, Function, ParallelPart
from stitchkit.classes import Origin, check_classes, origin_of


def check_origins(network: nn.Module, classes: Sequence[Sequence[str]], *, strict: bool) -> None:
    """Check that a network's classifiers, if loaded from files, number the classes as the data do.

    A classifier within the network, whose output feeds other parts, may have any classes. `classes` are those of each
    task; `strict` is for a network that is tested without training.
    """
    for number, origin in _origins(network, None):
        tasks = classes if number is None else classes[number : number + 1]
        check_classes(origin.classes, tasks, origin.path, strict=strict)


def _origins(part: nn.Module, number: int | None) -> Iterator[tuple[int | None, Origin]]:
    """Origins of the parts that return logits, each with the number of its task; None if all tasks share it."""
    origin = origin_of(part) or origin_of(getattr(part, "net", None))
    if origin is not None:
        yield number, origin
    elif isinstance(part, Assembly):
        weighty = [
            one for one in part.parts if not isinstance(one, Function)
        ]  # functions such as softmax keep the order of classes
        for last in [part.head] if part.head is not None else weighty[-1:]:
            yield from _origins(last, number)
    elif isinstance(part, ParallelPart) and part.agg in ("none", "avg"):
        for place, inner in enumerate(part.parts):
            yield from _origins(inner, place if part.agg == "none" else number)
