"""The best stitch of a ledger within a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import NamedTuple

from stitchkit.display import quantity
from stitchkit.errors import InputError
from stitchkit.measure.ledger import Row, check_figures, cost_row, difference
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
    """The row of the best stitch within a budget.

    Raises:
        InputError: If none fits; the message names the nearest miss.
    """
    choice = pick(rows, budget)
    if choice.best is not None:
        return choice.best
    raise InputError(refusal(len(rows), budget, choice))


def refusal(count: int, budget: Budget, choice: Choice) -> str:
    """The message that no stitch fits, with the nearest miss."""
    nearest = choice.nearest_miss
    assert nearest is not None, "nothing fits"
    figures = [_figure(_FIGURES[limit], nearest[_FIGURES[limit]]) for limit in budget.misses(nearest)]
    name = f" ({nearest['stitch']})" if "stitch" in nearest else ""
    return (
        f"none of the {count} stitches has {budget}; the nearest miss is cfg_id {nearest['cfg_id']}{name} with "
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
