"""An SN-Net that chooses its stitch anew for each call, by what the call may cost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from stitchkit.errors import InputError
from stitchkit.measure.ledger import Row, read_rows
from stitchkit.model.snnet import SNNet
from stitchkit.ship.pick import Budget, count, pick_one


class BudgetedModel(nn.Module):
    """An SN-Net with its ledger: `forward` takes a budget and runs the most accurate stitch that meets it.

    Args:
        model: The SN-Net; `model.reset_stitch_id` goes on to choose what runs without a budget.
        ledger: A ledger of it, or its rows.

    Raises:
        InputError: If the ledger cannot be read or names stitches that the SN-Net does not have.
    """

    def __init__(self, model: SNNet, ledger: str | Path | Sequence[Row]):
        super().__init__()
        self.model = model
        rows = read_rows(ledger) if isinstance(ledger, str | Path) else ledger
        self.rows = [dict(row) for row in rows]
        for row in self.rows:
            name = model.space[row["cfg_id"]].name
            if row.get("stitch", name) != name:
                raise InputError(
                    f"the ledger is of another SN-Net: its cfg_id {row['cfg_id']} is {row['stitch']}, here it is "
                    f"{name}; give the ledger of this one"
                )
        self._chosen: dict[float | str, int] = {}

    def measure(self, batch_size: int = 1) -> str:
        """Measure the latency of each stitch where the model is now, for budgets in milliseconds.

        Args:
            batch_size: Images that go through at once.

        Returns:
            How it was measured.
        """
        from stitchkit.measure.latency import add_latencies  # slow to import

        self._chosen.clear()
        return add_latencies(self.rows, self.model, batch_size=batch_size)

    def choose(self, budget: float | str) -> int:
        """The `cfg_id` of the most accurate stitch within a budget.

        Args:
            budget: FLOPs of an image as a number or a text such as `5G`, or a measured latency such as `8ms`.

        Raises:
            InputError: If no stitch meets it, or the ledger has no latencies; see `measure`.
        """
        if budget not in self._chosen:
            self._chosen[budget] = int(pick_one(self.rows, self._limit(budget))["cfg_id"])
        return self._chosen[budget]

    def _limit(self, budget: float | str) -> Budget:
        if not isinstance(budget, str):
            return Budget(max_flops=budget)
        if not (latency := re.fullmatch(r"\s*(.*\d\.?)\s*ms\s*", budget)):
            return Budget(max_flops=count(budget))
        if any("latency_ms" not in row for row in self.rows):
            raise InputError(f"budget '{budget}' is a latency, and the ledger has none; call measure() once before")
        return Budget(max_latency_ms=count(latency[1]))

    def forward(self, x: torch.Tensor, *, budget: float | str | None = None) -> torch.Tensor:
        """Run the best stitch within a budget.

        Args:
            x: Images `[B, C, H, W]`.
            budget: As `choose` takes it; without one the stitch of `model.reset_stitch_id` runs.

        Returns:
            Logits `[B, num_classes]`.

        Raises:
            InputError: If no stitch meets the budget.
        """
        logits: torch.Tensor = self.model(x, None if budget is None else self.choose(budget))
        return logits
