"""The best stitch of a ledger within a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from stitchkit.display import counted
from stitchkit.errors import InputError
from stitchkit.measure.latency_verdict import check_latencies
from stitchkit.measure.ledger import Row, check_figures, figure_text, nouns_of
from stitchkit.measure.metric import ACCURACY, by, compared, compared_note, metric_of

_RUNNERS_UP = 4
_FIGURES = {"max_flops": "flops", "max_params": "params", "max_latency_ms": "latency_ms", "min_acc1": "acc1"}

_FOLLOWS = "give --stitch_config, from which it follows"
_ADVICE = {
    "flops": _FOLLOWS,
    "params": _FOLLOWS,
    ACCURACY: "use a ledger made by --eval; networks without classes have none there: leave --min-acc1 out for them",
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
        return {limit: value for limit in _FIGURES if (value := getattr(self, limit)) is not None}

    @property
    def costs(self) -> dict[str, float]:
        """The limits on costs, by the figures that they limit."""
        return {_FIGURES[limit]: value for limit, value in self.limits.items() if limit != "min_acc1"}

    @property
    def wants_cheapest(self) -> bool:
        """Whether only an accuracy is required, so that the cheapest stitch is the best."""
        return self.limits.keys() == {"min_acc1"}

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
            f"at {'least' if limit == 'min_acc1' else 'most'} {figure_text(_FIGURES[limit], value)}"
            for limit, value in self.limits.items()
        )


class Choice(NamedTuple):
    """The stitches that fit a budget.

    Args:
        runners_up: The next best rows.
        fitting: Number of stitches that fit.
        nearest_miss: If none fits, the row whose worst miss is smallest.
        metric: The figure by which stitches were compared.
    """

    best: Row | None
    runners_up: list[Row]
    fitting: int
    nearest_miss: Row | None
    metric: str


def pick(rows: Sequence[Row], budget: Budget, *, metric: str | None = None, allow_unreliable: bool = False) -> Choice:
    """The most accurate stitch within a budget; if only an accuracy is required, the cheapest that reaches it.

    Args:
        metric: What is compared in place of accuracy, as in `metric_of`.
        allow_unreliable: Compare latencies even if their measurement called them unreliable.
    """
    metric = metric_of(rows, metric)
    check_figures(rows, dict.fromkeys(["flops", metric, *(_FIGURES[limit] for limit in budget.limits)]), _ADVICE)
    if budget.max_latency_ms is not None:
        check_latencies(rows, allowed=allow_unreliable)
    rows = compared(rows, metric)
    within = [row for row in rows if not budget.misses(row)]
    if not within:
        # Misses are shares of their limits, to make FLOPs and percent comparable. All limits hold, so the worst counts.
        return Choice(None, [], 0, min(rows, key=lambda row: max(budget.misses(row).values())), metric)
    if budget.wants_cheapest:
        within.sort(key=lambda row: (row["flops"], -row[metric]))
    else:
        within.sort(key=lambda row: (-row[metric], row["flops"]))
    return Choice(within[0], within[1 : 1 + _RUNNERS_UP], len(within), None, metric)


def pick_one(rows: Sequence[Row], budget: Budget, *, metric: str | None = None, allow_unreliable: bool = False) -> Row:
    """The row of the best stitch within a budget, as `pick` finds it."""
    choice = pick(rows, budget, metric=metric, allow_unreliable=allow_unreliable)
    if choice.best is not None:
        return choice.best
    raise InputError(refusal(rows, budget, choice))


def verdict(rows: Sequence[Row], budget: Budget, choice: Choice) -> str:
    """The sentence that names the best of a ledger's rows."""
    assert choice.best is not None, "something fits"
    how = "cheapest" if budget.wants_cheapest else superlative(choice.metric)
    best = f"cfg_id {choice.best['cfg_id']} is the {how} of"
    number, noun = len(rows), nouns_of(rows)[0]
    if not budget.limits:
        return f"{best} {counted(number, noun)}"
    if choice.fitting == number:
        return f"{best} all {counted(number, noun)}; the budget excludes none: each has {budget}"
    return f"{best} the {counted(choice.fitting, noun)}, out of {number}, with {budget}"


def superlative(metric: str) -> str:
    """What the best stitch is: the most accurate, or the best by another metric."""
    return "most accurate" if metric == ACCURACY else f"best{by(metric)}"


def refusal(rows: Sequence[Row], budget: Budget, choice: Choice) -> str:
    """The message that no row fits, with the nearest miss."""
    nearest = choice.nearest_miss
    assert nearest is not None, "nothing fits"
    figures = [figure_text(_FIGURES[limit], nearest[_FIGURES[limit]]) for limit in budget.misses(nearest)]
    name = f" ({nearest['stitch']})" if "stitch" in nearest else ""
    number, note = len(compared(rows, choice.metric)), compared_note(rows, choice.metric)
    return (
        f"none of {counted(number, nouns_of(rows)[0])} has {budget}; the nearest miss is cfg_id {nearest['cfg_id']}"
        f"{name} with {' and '.join(figures)}; widen the budget to take it" + (f"; {note}" if note else "")
    )
