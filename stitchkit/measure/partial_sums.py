"""Sums of an unfinished evaluation on the disk, so that it resumes where it was killed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stitchkit.files import write_text


class PartialSums:
    """A small file with the sums over the batches that are done; it is always complete or absent.

    Args:
        path: The file of this rank.
        of: What the sums depend on, as plain data; sums of anything else are not taken up.
    """

    def __init__(self, path: Path, of: Mapping[str, Any]):
        self.path = path
        self._of = json.loads(json.dumps(of))

    def restore(self, sums: torch.Tensor) -> int:
        """Fill in the sums that were saved.

        Args:
            sums: Changed in place if there is something to resume from.

        Returns:
            How many batches they are over.
        """
        try:
            content = json.loads(self.path.read_text())
            of, batches = content["of"], int(content["batches"])
            saved = torch.tensor(content["sums"], dtype=sums.dtype)
        except Exception:  # a garbled file can hold anything; the evaluation then starts over
            return 0
        if of != self._of or saved.shape != sums.shape:
            return 0
        sums.copy_(saved)
        return batches

    def save(self, sums: torch.Tensor, batches: int) -> None:
        """Put the sums over the first `batches` batches in the place of those before."""
        # repr of a float64 is exact
        write_text(self.path, json.dumps({"of": self._of, "batches": batches, "sums": sums.tolist()}))

    def remove(self) -> None:
        """Forget the sums; the evaluation is finished."""
        self.path.unlink(missing_ok=True)
