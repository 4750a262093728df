"""The count of images that decoding changed, in loader processes and ranks, for the log."""

from __future__ import annotations

import logging

import torch
import torch.distributed as dist

from stitchkit.data.decoding import Change, Decoding
from stitchkit.display import counted

_logger = logging.getLogger(__name__)


class Changes:
    """What decoding did to each image of a split."""

    def __init__(self, size: int):
        # Loader processes write to it, each its own bytes, so no lock is needed.
        self._changes = torch.zeros(size, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
        self._is_reported = False

    def __setitem__(self, number: int, change: Change) -> None:
        if change and number < len(self._changes):  # the length of a stream may be an estimate
            self._changes[number] = change

    def report(self, split: str, decoding: Decoding, *, are_divided: bool = False) -> None:
        """Log the changes so far, once; every rank calls this, and has images of its own if they `are_divided`."""
        if self._is_reported:
            return
        changes = self._changes.clone()  # loader processes may still write
        if dist.is_initialized() and not are_divided:
            dist.all_reduce(changes, op=dist.ReduceOp.MAX)
        counts = torch.stack([(changes & change).count_nonzero() for change in Change])
        if dist.is_initialized() and are_divided:
            dist.all_reduce(counts)
        if words := decoding.described(dict(zip(Change, counts.tolist(), strict=True))):
            self._is_reported = True
            _logger.info("of the %s of the %s split: %s", counted(len(changes), "image"), split, words)
