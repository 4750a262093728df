"""What the pieces of a network take and give: as they declare it, and where they do not, as a dry run shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from assembly.parts.network import build_network
from assembly.parts.spec import NetworkSpec, PartSpec
from assembly.sweep.stitchers import Shape
from stitchkit.errors import InputError
from stitchkit.model.formats import TensorFormat


class PieceShapes(NamedTuple):
    """What a piece of a network takes and gives.

    Args:
        takes: None for the first piece, which takes an image.
        gives: None for the last piece, which gives logits.
    """

    takes: Shape | None
    gives: Shape | None


def piece_shapes(pieces: Sequence[PartSpec], image_size: int) -> tuple[PieceShapes, ...]:
    """What each piece of a network takes and gives.

    Args:
        pieces: The network, all of it; where it declares the sizes of all formats, nothing is built.
        image_size: Side of an image, for a dry run on the meta device.

    Raises:
        InputError: If a piece declares no format, or cannot be built or run.
    """
    given = [_declared(piece, "out_format") for piece in pieces[:-1]]
    if any(shape is None for shape in given):
        return run_dry(pieces, image_size)
    taken = [_declared(piece, "in_format") or before for piece, before in zip(pieces[1:], given, strict=True)]
    return tuple(map(PieceShapes, [None, *taken], [*given, None]))


def _declared(piece: PartSpec, key: str) -> Shape | None:
    try:
        return Shape.parse(piece.arguments.get(key))
    except InputError as error:
        raise InputError(f"{piece.place}.{piece.name}.{key}: {error}") from error


def run_dry(pieces: Sequence[PartSpec], image_size: int) -> tuple[PieceShapes, ...]:
    """What each piece of a network really takes and gives, found without weights and without memory.

    Args:
        pieces: The network, all of it.
        image_size: Side of an image.

    Raises:
        InputError: If a piece declares no format, or cannot be built or run.
    """
    with torch.device("meta"):
        size = (3, image_size, image_size)
        network = build_network(NetworkSpec(tuple(pieces)), num_classes=1, input_size=size, pretrained=False).eval()
        x = torch.empty(2, *size)
    taken: list[Shape | None] = []
    given: list[Shape | None] = []
    with torch.no_grad():
        for part, enter, piece in zip(network.parts, network.entries, pieces, strict=True):
            before = given[-1] if given else None
            x = enter(x)
            taken.append(None if before is None else _shape(x, piece.arguments.get("in_format") or before.format))
            x = part(x)
            if len(taken) < len(pieces) and "out_format" not in piece.arguments:
                raise InputError(f"{piece.place} has no out_format, which a sweep has to know; give img, token or bert")
            given.append(_shape(x, piece.arguments["out_format"]) if len(taken) < len(pieces) else None)
    return tuple(map(PieceShapes, taken, given))


def _shape(x: torch.Tensor, declared: object) -> Shape:
    """The shape of a tensor of a declared kind."""
    shape = Shape.of(TensorFormat.of(x, TensorFormat.parse(declared).kind))
    assert shape is not None, "a tensor has a size"
    return shape
