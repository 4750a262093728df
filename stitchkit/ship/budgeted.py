"""A budget for each call of an SN-Net."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from stitchkit.display import count
from stitchkit.errors import InputError
from stitchkit.measure.costs import complete
from stitchkit.measure.latency import add_latencies
from stitchkit.measure.ledger import Row, read_rows
from stitchkit.measure.statistics_file import load_statistics, without_statistics
from stitchkit.model.snnet import SNNet
from stitchkit.ship.pick import Budget, pick, pick_one


class BudgetedModel(nn.Module):
    """An SN-Net with its ledger: `forward` takes a budget and runs the most accurate stitch that meets it.

    Args:
        model: The SN-Net; `model.reset_stitch_id` still chooses the stitch without a budget.
        ledger: Its ledger, with the file of batch-norm statistics beside it; or the rows, with the model's statistics.
        allow_unreliable: Choose by latencies even if their measurement called them unreliable.

    Raises:
        InputError: If the ledger cannot be read, lacks accuracies, or has other stitches or FLOPs than the SN-Net.
    """

    def __init__(self, model: SNNet, ledger: str | Path | Sequence[Row], *, allow_unreliable: bool = False):
        super().__init__()
        self.model = model
        rows = read_rows(ledger) if isinstance(ledger, str | Path) else ledger
        self.rows = [dict(row) for row in rows]
        if isinstance(ledger, str | Path):
            load_statistics(model, ledger)
        model.lacks_statistics |= bool(without_statistics(model.statistics, self.rows))
        self._allow_unreliable = allow_unreliable
        self._chosen: dict[float | str, int] = {}
        complete(self.rows, model, latency=False)
        pick(self.rows, Budget())  # checks that every row has the needed figures, now instead of in the first call

    def measure(self, batch_size: int = 1) -> str:
        """Measure the latency of each stitch on the model's device, for budgets in milliseconds."""
        self._chosen.clear()
        return add_latencies(self.rows, self.model, batch_size=batch_size)

    def choose(self, budget: float | str) -> int:
        """The `cfg_id` of the most accurate stitch within a budget.

        Args:
            budget: FLOPs of an image as a number or a text such as `5G`, or a measured latency such as `8ms`.

        Raises:
            InputError: If no stitch meets it, or the ledger has no latencies or unreliable ones; see `measure`.
        """
        if budget not in self._chosen:  # every call of the model chooses, mostly within the same few budgets
            row = pick_one(self.rows, self._limits(budget), allow_unreliable=self._allow_unreliable)
            self._chosen[budget] = int(row["cfg_id"])
        return self._chosen[budget]

    def _limits(self, budget: float | str) -> Budget:
        latency = re.fullmatch(r"\s*(.*\d\.?)\s*ms\s*", budget) if isinstance(budget, str) else None
        value = count(latency[1] if latency else budget) if isinstance(budget, str) else budget
        if not 0 < value < math.inf:
            raise InputError(f"budget is {budget}; give FLOPs above 0 such as 5e9 or '5G', or a latency such as '8ms'")
        if latency is None:
            return Budget(max_flops=value)
        if any("latency_ms" not in row for row in self.rows):
            raise InputError(f"budget '{budget}' is a latency, but the ledger has none; call measure() first")
        return Budget(max_latency_ms=value)

    def forward(self, x: torch.Tensor, *, budget: float | str | None = None) -> torch.Tensor:
        """Logits `[B, num_classes]` of images `[B, C, H, W]` by the best stitch within a budget, as in `choose`."""
        logits: torch.Tensor = self.model(x, None if budget is None else self.choose(budget))
        return logits
