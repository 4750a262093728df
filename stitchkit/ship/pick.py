"""The best stitch of a ledger within a budget, once or in each call of an SN-Net."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from stitchkit.display import count, quantity
from stitchkit.errors import InputError
from stitchkit.measure.ledger import Row, check_figures, cost_row, difference, read_rows
from stitchkit.measure.profile import Profiler
from stitchkit.model.snnet import SNNet

_RUNNERS_UP = 4
_FIGURES = {"max_flops": "flops", "max_params": "params", "max_latency_ms": "latency_ms", "min_acc1": "acc1"}
_WORDS = {"flops": "FLOPs", "params": "parameters", "latency_ms": "ms", "acc1": "% top-1"}

_FOLLOWS = "give --stitch_config, from which it follows"
_ADVICE = {
    "flops": _FOLLOWS,
    "params": _FOLLOWS,
    "latency_ms": "give --stitch_config to measure it here, or a ledger that has latencies",
}


@dataclass(frozen=True)
class Budget:
    """Limits on the figures of a network in a ledger, the accuracy in percent; None for no limit."""

    max_flops: float | None = None
    max_params: float | None = None
    max_latency_ms: float | None = None
    min_acc1: float | None = None

    def __post_init__(self) -> None:
        for limit, value in self.limits.items():
            if not 0 < value < math.inf:
                flag = "--" + limit.replace("_", "-")
                raise InputError(f"{flag} is {value:g}; give a number above 0, or leave it out")

    @cached_property
    def limits(self) -> dict[str, float]:
        """The limits that are set."""
        return {limit: value for limit, value in asdict(self).items() if value is not None}

    def misses(self, row: Row) -> dict[str, float]:
        """The excess of a row over each limit that it misses, as a share of the limit."""
        found = {}
        for limit, value in self.limits.items():
            share = row[_FIGURES[limit]] / value - 1
            if (miss := -share if limit == "min_acc1" else share) > 0:
                found[limit] = miss
        return found

    def __str__(self) -> str:
        return " and ".join(
            f"at {'least' if limit == 'min_acc1' else 'most'} {_figure(_FIGURES[limit], value)}"
            for limit, value in self.limits.items()
        )


class Choice(NamedTuple):
    """The stitches that fit a budget.

    Args:
        runners_up: The next best rows.
        fitting: Number of stitches that fit.
        nearest_miss: If none fits, the row whose worst miss is smallest.
    """

    best: Row | None
    runners_up: list[Row]
    fitting: int
    nearest_miss: Row | None


def pick(rows: Sequence[Row], budget: Budget) -> Choice:
    """The most accurate stitch within a budget; if only an accuracy is required, the cheapest that reaches it."""
    check_figures(rows, dict.fromkeys(["flops", "acc1", *(_FIGURES[limit] for limit in budget.limits)]), _ADVICE)
    within = [row for row in rows if not budget.misses(row)]
    if not within:
        # Misses are shares of their limits, to make FLOPs and percent comparable. All limits hold, so the worst counts.
        return Choice(None, [], 0, min(rows, key=lambda row: max(budget.misses(row).values())))
    if budget.limits.keys() == {"min_acc1"}:
        within.sort(key=lambda row: (row["flops"], -row["acc1"]))
    else:
        within.sort(key=lambda row: (-row["acc1"], row["flops"]))
    return Choice(within[0], within[1 : 1 + _RUNNERS_UP], len(within), None)


def pick_one(rows: Sequence[Row], budget: Budget) -> Row:
    """The row of the best stitch within a budget."""
    choice = pick(rows, budget)
    if choice.best is not None:
        return choice.best
    raise InputError(refusal(len(rows), budget, choice))


def refusal(number: int, budget: Budget, choice: Choice) -> str:
    """The message that no stitch fits, with the nearest miss."""
    nearest = choice.nearest_miss
    assert nearest is not None, "nothing fits"
    figures = [_figure(_FIGURES[limit], nearest[_FIGURES[limit]]) for limit in budget.misses(nearest)]
    name = f" ({nearest['stitch']})" if "stitch" in nearest else ""
    return (
        f"none of the {number} stitches has {budget}; the nearest miss is cfg_id {nearest['cfg_id']}{name} with "
        f"{' and '.join(figures)}; widen the budget to take it"
    )


def _figure(key: str, value: float) -> str:
    text = quantity(value) if key in ("flops", "params") else f"{value:.4g}"
    return f"{text} {_WORDS[key]}"


def complete(rows: Sequence[Row], model: SNNet, *, latency: bool) -> str:
    """Add missing figures of the network to rows: name, FLOPs, parameters and, on request, latency.

    Returns:
        The method by which latencies were measured; empty if none was.
    """
    profiler = Profiler(model)
    for row in rows:
        if found := difference(row, model.space, profiler.cost):
            raise InputError(
                f"the ledger is of another SN-Net: {found}; give the ledger of this one, or check --stitch_config, "
                "--num-classes and --img-size"
            )
        # The row wins: published parameter counts leave some out, and are compared with each other.
        row.update(cost_row(model.space, row["cfg_id"], profiler.cost(row["cfg_id"])) | row)
    if latency and any("latency_ms" not in row for row in rows):
        from stitchkit.measure.latency import add_latencies  # torch's benchmarks are slow to import

        return add_latencies(rows, model, batch_size=1)
    return ""


class BudgetedModel(nn.Module):
    """An SN-Net with its ledger: `forward` takes a budget and runs the most accurate stitch that meets it.

    Args:
        model: The SN-Net; `model.reset_stitch_id` still chooses the stitch without a budget.
        ledger: Its ledger, or the rows.

    Raises:
        InputError: If the ledger cannot be read, lacks accuracies, or has other stitches or FLOPs than the SN-Net.
    """

    def __init__(self, model: SNNet, ledger: str | Path | Sequence[Row]):
        super().__init__()
        self.model = model
        rows = read_rows(ledger) if isinstance(ledger, str | Path) else ledger
        self.rows = [dict(row) for row in rows]
        self._chosen: dict[float | str, int] = {}
        complete(self.rows, model, latency=False)
        pick(self.rows, Budget())  # checks that every row has the needed figures, now instead of in the first call

    def measure(self, batch_size: int = 1) -> str:
        """Measure the latency of each stitch on the model's device, for budgets in milliseconds; returns the method."""
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
        if budget not in self._chosen:  # every call of the model chooses, mostly within the same few budgets
            self._chosen[budget] = int(pick_one(self.rows, self._limits(budget))["cfg_id"])
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
        """Logits `[B, num_classes]` of images `[B, C, H, W]` by the best stitch within a budget, as `choose` takes it.

        Raises:
            InputError: If no stitch meets the budget.
        """
        logits: torch.Tensor = self.model(x, None if budget is None else self.choose(budget))
        return logits
