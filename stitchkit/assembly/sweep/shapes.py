"""Input and output shapes of a network's pieces, from a dry run, compared with the declared ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch

from stitchkit.assembly.parts.network import check_network
from stitchkit.assembly.parts.spec import NetworkSpec, PartSpec
from stitchkit.errors import InputError
from stitchkit.networks.layout import Layout


class PieceShapes(NamedTuple):
    """The full layouts of a piece's input and output.

    Args:
        takes: None for the first piece, which takes an image.
        gives: None for the last piece, which returns logits.
    """

    takes: Layout | None
    gives: Layout | None


def piece_shapes(pieces: Sequence[PartSpec], image_size: int) -> tuple[PieceShapes, ...]:
    """Input and output shapes of each piece of a network, found without weights and memory.

    Args:
        pieces: All pieces of the network.
        image_size: Side of an image.

    Raises:
        InputError: If a piece declares no format or a wrong one, or cannot be built or run.
    """
    for key, some in (("out_format", pieces[:-1]), ("in_format", pieces)):
        for piece in some:
            _declared(piece, key)  # an unknown format is reported before anything is built
    found = _run_dry(pieces, image_size)
    for piece, (takes, gives) in zip(pieces, found, strict=True):
        _compare(piece, "in_format", "takes", takes)
        _compare(piece, "out_format", "returns", gives)
    return found


def _declared(piece: PartSpec, key: str) -> Layout | None:
    value = piece.arguments.get(key)
    with _at(piece, key):
        return None if value is None else Layout.parse(value)


@contextmanager
def _at(piece: PartSpec, key: str) -> Iterator[None]:
    """Begin errors with the place of a piece's format."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{piece.place}.{piece.name}.{key}: {error}") from error


def _compare(piece: PartSpec, key: str, does: str, shape: Layout | None) -> None:
    """Compare a declared format with the actual shape."""
    declared = _declared(piece, key)
    if declared is None or shape is None:
        return
    if declared.channels in (None, shape.channels) and declared.positions in (None, shape.positions):
        return
    with _at(piece, key):
        raise InputError(f"it is {declared}, but the piece {does} {shape}; correct one of them")


def _run_dry(pieces: Sequence[PartSpec], image_size: int) -> tuple[PieceShapes, ...]:
    # On the meta device nothing is computed: twelve published sweeps are planned in seconds, without weights.
    with torch.device("meta"):
        size = (3, image_size, image_size)
        # Without declared sizes nothing is resized, so each piece shows its own shapes; only images may be resized.
        first = without_sizes(pieces[0], "out_format")
        bare = (first, *(without_sizes(piece, "in_format", "out_format") for piece in pieces[1:]))
        network = check_network(NetworkSpec(bare), num_classes=1, input_size=size, pretrained=False).eval()
        x = torch.empty(2, *size)
    taken: list[Layout | None] = []
    given: list[Layout | None] = []
    with torch.no_grad():
        for part, enter, piece in zip(network.parts, network.entries, pieces, strict=True):
            before = given[-1] if given else None
            x = enter(x)
            taken.append(None if before is None else _shape(x, piece, "in_format", before))
            x = part(x)
            if len(taken) < len(pieces) and _declared(piece, "out_format") is None:
                raise InputError(f"{piece.place} has no out_format, which a sweep needs; declare img, token or bert")
            given.append(_shape(x, piece, "out_format") if len(taken) < len(pieces) else None)
    return tuple(map(PieceShapes, taken, given))


def without_sizes(piece: PartSpec, *keys: str) -> PartSpec:
    """A piece whose formats under these keys are declared by name only, without sizes."""
    names = {key: found.name for key in keys if (found := _declared(piece, key))}
    return replace(piece, arguments={**piece.arguments, **names})


def _shape(x: torch.Tensor, piece: PartSpec, key: str, otherwise: Layout | None = None) -> Layout:
    """The full layout of a tensor, in the format that a piece declares."""
    layout = _declared(piece, key) or otherwise
    assert layout is not None
    with _at(piece, key):
        shape = layout.sized(x)
        if not shape.positions:
            raise InputError(f"it is {layout}, which has no positions; only the last piece may return that")
        height, width = shape.grid
        if height != width:
            raise InputError(f"{shape} is not square; sweeps need square images")
    return shape
