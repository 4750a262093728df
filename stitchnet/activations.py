"""Activations: inputs and outputs of fragments on the stitching images, identified by their content."""

from __future__ import annotations

import hashlib
import logging
import math
import mmap
import tempfile
from functools import cached_property, partial

import torch
from torch import nn

from stitchkit.model.similarity import alignment, common_size, hsic, measure_by_name, pool, sample
from stitchkit.networks.layout import Layout, resize

_logger = logging.getLogger(__name__)
_SHELVED_BYTES = 2**24
_PORTION_BYTES = 2 * 2**20  # of input that a CPU's caches hold with what a module computes from it
_RESIZED_IMAGES = 8  # resized at a time, so that few pages of a shelved tensor are in memory


class Activation:
    """The tensor between two fragments, on all stitching images."""

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
        return None if self.layout.is_vector else (self.value.shape[2], self.value.shape[3])

    @property
    def num_positions(self) -> int:
        """Number of positions of the map; 1 for vectors."""
        return math.prod(self.size or ())

    def at(self, size: tuple[int, int] | None, *, keep: bool = False) -> torch.Tensor:
        """The maps at a size, or averaged over their positions if it is None; kept for later calls on request."""
        if size in self._resized:
            return self._resized[size]
        if size == self.size:
            return self.value
        parts = []
        for part in torch.split(self.value, _RESIZED_IMAGES):
            parts.append(pool(part) if size is None else resize(part, size, align_corners=True))
            self._release()  # otherwise the whole file would end up in memory
        resized = torch.cat(parts)
        if keep:
            self._resized[size] = resized
        return resized

    def shelve(self) -> None:
        """Move a large tensor to a temporary file, which is read on use."""
        is_on_gpu, is_small = self.tensor.device.type != "cpu", self.tensor.nbytes < _SHELVED_BYTES
        if is_on_gpu or is_small or not hasattr(mmap, "MADV_DONTNEED"):
            return
        assert self.key  # hashed while it is in memory, not by reading the file again
        try:
            with tempfile.TemporaryFile() as file:
                self.tensor.contiguous().numpy().tofile(file)
                file.flush()
                # torch needs a writable buffer; a private mapping is writable and does not change the file.
                self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            _logger.warning("activations stay in memory: '%s' has no room for them (%s)", tempfile.gettempdir(), error)
            return
        shelved = torch.frombuffer(self._mapping, dtype=self.tensor.dtype)
        self.tensor = shelved.view(self.tensor.shape)

    def forget(self) -> None:
        """Drop the resized copies, and the pages of the file that were read."""
        self._resized.clear()
        self._release()

    def _release(self) -> None:
        # Pages once read count as memory of the process until the system needs them, so peaks would add up.
        if self._mapping is not None:
            self._mapping.madvise(mmap.MADV_DONTNEED)


@torch.no_grad()
def run(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The output of a module for a batch, a few images at a time."""
    outputs: torch.Tensor | None = None
    first, count = 0, _PORTION_BYTES * len(x) // x.nbytes if x.device.type == "cpu" and len(x) else len(x)
    for portion in torch.split(x, max(1, count)):
        part = module(portion)
        if outputs is None:  # filled in place: a concatenation at the end would need the memory twice
            outputs = part.new_empty(len(x), *part.shape[1:])
        outputs[first : first + len(part)] = part
        first += len(part)
    assert outputs is not None
    return outputs


class Scores:
    """Scores of pairs of activations, identified by their content.

    Args:
        measure: `cka` or `r2`, as published.
        rows_per_channel: Compare only a sample of the rows, 10 per channel as published; by default all.
        seed: Seed of the sample.

    Raises:
        InputError: If there is no such measure.
    """

    def __init__(self, measure: str = "cka", *, rows_per_channel: int | None = None, seed: int = 0):
        self._name, self._rows_per_channel, self._seed = measure, rows_per_channel, seed
        self._measure = partial(measure_by_name(measure), rows_per_channel=rows_per_channel, seed=seed)
        # By content, not by object: networks may share fragments (twins, or the beginnings of one network), and a
        # search recomputes dropped outputs.
        self._known: dict[tuple[bytes, bytes], float] = {}
        self._own: dict[tuple[object, ...], float] = {}

    def __call__(self, x: Activation, y: Activation) -> float:
        """The score of joining an output `x` to an input `y`."""
        key = self._key(x.key, y.key)
        if key not in self._known:
            self._known[key] = self._cka(x, y) if self._name == "cka" else self._measure(x.value, y.value)
        return self._known[key]

    def remember(self, x: bytes, y: bytes, score: float) -> None:
        """Add a score that was computed earlier, of an output and an input by their keys, unless it is known."""
        self._known.setdefault(self._key(x, y), score)

    def _key(self, x: bytes, y: bytes) -> tuple[bytes, bytes]:
        return (y, x) if self._name == "cka" and y < x else (x, y)

    def _cka(self, x: Activation, y: Activation) -> float:
        """`linear_cka`, but each side's own HSIC, two thirds of the work, is computed only once per size."""
        size = None if x.size is None or y.size is None else common_size(x.value, y.value)
        if size is not None and self._rows_per_channel is not None:
            whole = x.value, y.value  # `sample` resizes only the rows that it draws
        else:
            whole = x.at(size, keep=True), y.at(size)  # x is compared with all fragments, y only now
        parts = sample(*whole, self._rows_per_channel, self._seed)
        own = []
        for activation, part in zip((x, y), parts, strict=True):
            # The draw follows from the seed and the shape, so equal shapes mean equal rows.
            key = (activation.key, size, tuple(part.shape))
            if key not in self._own:
                self._own[key] = hsic(part, part)
            own.append(self._own[key])
        return alignment(hsic(*parts), *own)
