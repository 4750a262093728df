"""What fragments give and take on the stitching images, known by its content."""

from __future__ import annotations

import hashlib
import logging
import mmap
import tempfile
from functools import cached_property

import torch
from torch import nn

from stitchkit.model.activation_memory import in_portions
from stitchkit.model.similarity import pool
from stitchkit.networks.layout import Layout, resize

_logger = logging.getLogger(__name__)
_SHELVED_BYTES = 2**24
_RESIZED_IMAGES = 8


class Activation:
    """A tensor between two fragments, on all stitching images.

    Args:
        tensor: As the fragment before it gives it.
        layout: Its layout.
    """

    def __init__(self, tensor: torch.Tensor, layout: Layout):
        self.tensor = tensor
        self.layout = layout
        self._resized: dict[tuple[int, int] | None, torch.Tensor] = {}
        self._mapping: mmap.mmap | None = None

    @cached_property
    def key(self) -> bytes:
        """A hash of the content."""
        values = self.tensor.contiguous().cpu()
        digest = hashlib.blake2b(str((values.dtype, tuple(values.shape), self.layout)).encode(), digest_size=16)
        digest.update(values.view(-1).numpy().view("uint8").data)
        return digest.digest()

    @property
    def value(self) -> torch.Tensor:
        """Maps `[B, C, H, W]` or vectors `[B, D]`."""
        return self.layout.maps(self.tensor)

    @property
    def prefix(self) -> torch.Tensor | None:
        """Prefix tokens `[B, C, P]`, if there are any."""
        return self.layout.split(self.tensor)[1]

    @property
    def width(self) -> int:
        """Number of features."""
        return self.tensor.shape[self.layout.channel_dim]

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the map; None for vectors."""
        if self.layout.is_vector:
            return None
        height, width = self.value.shape[2:]
        return height, width

    def at(self, size: tuple[int, int] | None, *, keep: bool = False) -> torch.Tensor:
        """The maps at a size; averaged over their positions if it is None.

        Args:
            size: Height and width.
            keep: Have it ready for the next time.
        """
        if size in self._resized:
            return self._resized[size]
        if size == self.size:
            return self.value
        parts = []
        for part in torch.split(self.value, _RESIZED_IMAGES):
            parts.append(pool(part) if size is None else resize(part, size, align_corners=True))
            self._release()
        resized = torch.cat(parts)
        if keep:
            self._resized[size] = resized
        return resized

    def shelve(self) -> None:
        """Move a large tensor to a temporary file, from where it is read when it is used."""
        if (
            self.tensor.device.type != "cpu"
            or self.tensor.nbytes < _SHELVED_BYTES
            or not hasattr(mmap, "MADV_DONTNEED")
        ):
            return
        assert self.key  # hashed while it is at hand
        try:
            with tempfile.TemporaryFile() as file:
                self.tensor.contiguous().numpy().tofile(file)
                file.flush()
                self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            _logger.warning("activations stay in memory, as '%s' takes no more: %s", tempfile.gettempdir(), error)
            return
        shelved = torch.frombuffer(self._mapping, dtype=self.tensor.dtype)
        self.tensor = shelved.view(self.tensor.shape)

    def forget(self) -> None:
        """Drop what was kept ready, and what was read from the file."""
        self._resized.clear()
        self._release()

    def _release(self) -> None:
        """Let go of the pages of the file that were read."""
        if self._mapping is not None:
            self._mapping.madvise(mmap.MADV_DONTNEED)

    @property
    def num_bytes(self) -> int:
        """Memory that the tensor takes."""
        return self.tensor.nbytes


@torch.no_grad()
def run(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a module makes of a batch, a few images at a time."""
    outputs: torch.Tensor | None = None
    first = 0
    for portion in in_portions(x):
        part = module(portion)
        if outputs is None:
            outputs = part.new_empty(len(x), *part.shape[1:])
        outputs[first : first + len(part)] = part
        first += len(part)
    assert outputs is not None
    return outputs
