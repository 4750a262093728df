"""The sums of an unfinished evaluation on the disk, from which it resumes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from stitchkit.files import write_text


class PartialSums:
    """A small file with the sums over finished batches; it is always complete or absent.

    Args:
        path: The file of this rank.
        of: Everything that the sums depend on, as plain data; saved sums of anything else are ignored.
    """

    def __init__(self, path: Path, of: Mapping[str, object]):
        self.path = path
        self._of = json.loads(json.dumps(of))  # as it is read back, with lists for tuples

    def restore(self, sums: torch.Tensor) -> int:
        """Copy the saved sums into `sums`, and return the number of batches that they cover; 0 if there are none."""
        try:
            content = json.loads(self.path.read_text())
            of, batches = content["of"], int(content["batches"])
            saved = torch.tensor(content["sums"], dtype=sums.dtype)
        except Exception:  # a damaged file can hold anything; the evaluation then starts over
            return 0
        if of != self._of or saved.shape != sums.shape:
            return 0
        sums.copy_(saved)
        return batches

    def save(self, sums: torch.Tensor, batches: int) -> None:
        """Save the sums over the first `batches` batches, replacing earlier ones."""
        # JSON writes a float64 by its repr, which is exact: a resumed evaluation ends with the same last digit.
        write_text(self.path, json.dumps({"of": self._of, "batches": batches, "sums": sums.tolist()}))

    def remove(self) -> None:
        """Remove the file of a finished evaluation."""
        self.path.unlink(missing_ok=True)
