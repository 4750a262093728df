"""The best stitch of a ledger within a budget."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from stitchkit.display import counted
from stitchkit.errors import InputError
from stitchkit.measure.comparison import Compared
from stitchkit.measure.intervals import add_intervals, check_by_image, compared_beside
from stitchkit.measure.latency_verdict import check_latencies, latency_note
from stitchkit.measure.ledger import WITH_INTERVALS, Row, check_figures, figure_text, nouns_of, read_rows, strict_json
from stitchkit.measure.metric import ACCURACY, by, compared, compared_note, in_sentence, metric_of
from stitchkit.measure.overlay import better_single_model, comparison, read_overlay
from stitchkit.measure.pareto import table
from stitchkit.measure.scores import FILES
from stitchkit.ship.export_command import export_commands

_RUNNERS_UP = 4
_FIGURES = {"max_flops": "flops", "max_params": "params", "max_latency_ms": "latency_ms", "min_acc1": "acc1"}

_FOLLOWS = "give --stitch-config to compute it"
_ADVICE = {
    "flops": _FOLLOWS,
    "params": _FOLLOWS,
    ACCURACY: "use a ledger made by --eval; networks for pixels or without classes have none: omit --min-acc1",
    "latency_ms": "give --stitch-config to measure it here, or a ledger that has latencies",
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
                raise InputError(f"{flag} is {value:g}; give a number above 0, or omit it")
            if limit == "min_acc1" and value < 1:
                raise InputError(f"--min-acc1 is {value:g}, less than 1 %; give percent, such as 95, or omit it")

    @cached_property
    def limits(self) -> dict[str, float]:
        """The limits that are set."""
        return {limit: value for limit in _FIGURES if (value := getattr(self, limit)) is not None}

    @property
    def costs(self) -> dict[str, float]:
        """The limits on costs, by the figures that they limit."""
        return {_FIGURES[limit]: value for limit, value in self.limits.items() if limit != "min_acc1"}

    @property
    def cost(self) -> str:
        """The cost for comparing stitches: the first one with a limit, else FLOPs."""
        return next(iter(self.costs), "flops")

    @property
    def wants_cheapest(self) -> bool:
        """Whether only an accuracy is required, so that the cheapest stitch is the best."""
        return self.limits.keys() == {"min_acc1"}

    def misses(self, row: Row) -> dict[str, float]:
        """The excess of a row over each limit that it misses, as a share of the limit."""
        excess = {}
        for limit, value in self.limits.items():
            share = row[_FIGURES[limit]] / value - 1
            if (miss := -share if limit == "min_acc1" else share) > 0:
                excess[limit] = miss
        return excess

    def __str__(self) -> str:
        return " and ".join(
            f"at {'least' if limit == 'min_acc1' else 'most'} {figure_text(_FIGURES[limit], value)}"
            for limit, value in self.limits.items()
        )


def budget_of(flags: argparse.Namespace) -> Budget:
    """The budget that flags give."""
    return Budget(flags.max_flops, flags.max_params, flags.max_latency_ms, flags.min_acc1)


class Choice(NamedTuple):
    """The stitches that fit a budget; if none does, the row whose worst miss is smallest.

    With `confident`, also the row that the best is tied with, and the paired difference in points, with its interval.
    """

    best: Row | None
    runners_up: list[Row]
    fitting: int
    nearest_miss: Row | None
    metric: str
    most_accurate: Row | None = None
    difference: dict[str, float] | None = None


def pick(
    rows: Sequence[Row], budget: Budget, *, metric: str | None = None, allow_unreliable: bool = False,
    confident: Compared | None = None,
) -> Choice:  # fmt: skip
    """The most accurate stitch within a budget; if only an accuracy is required, the cheapest that reaches it.

    Args:
        metric: What is compared in place of accuracy, as in `metric_of`.
        allow_unreliable: Compare latencies even if their measurement called them unreliable.
        confident: With the hits or redrawn figures of the rows, the cheapest stitch that is not surely worse than the
            most accurate one.
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
        if confident is not None:
            return _cheapest_tied(within, confident, budget.cost)
    return Choice(within[0], within[1 : 1 + _RUNNERS_UP], len(within), None, metric)


def _cheapest_tied(within: Sequence[Row], known: Compared, cost: str) -> Choice:
    """Of rows from accurate to inaccurate, the cheapest one that is not surely worse than the first."""
    known = known.of([row["cfg_id"] for row in within])
    low, high = known.paired_intervals()
    index = min((index for index in range(len(within)) if high[index, 0] >= 0), key=lambda number: within[number][cost])
    if index == 0:
        return Choice(within[0], [*within[1 : 1 + _RUNNERS_UP]], len(within), None, known.metric, within[0])
    ends = {"low": float(low[index, 0]), "high": float(high[index, 0])}
    difference = {"points": known.difference(index, 0), **ends}
    others = [row for row in within if row is not within[index]]
    return Choice(within[index], others[:_RUNNERS_UP], len(within), None, known.metric, within[0], difference)


def confident_by_image(rows: Sequence[Row], ledger: str | Path, budget: Budget, metric: str) -> Compared:
    """The hits or sums beside a ledger that let `pick` compare all its rows."""
    if metric not in WITH_INTERVALS:
        usual = metric_of(rows)
        compares = in_sentence(usual) if usual in WITH_INTERVALS[1:] else "top-1 accuracies"
        raise InputError(f"--confident compares {compares}, not {in_sentence(metric)}; omit it")
    if budget.wants_cheapest:
        raise InputError(
            "--min-acc1 alone takes the cheapest stitch already, and --confident the cheapest near the most accurate; "
            "omit one of them, or add a limit on costs"
        )
    known, kind = compared_beside(ledger, metric), FILES[metric]
    if known is None or not known.has([row["cfg_id"] for row in rows]):
        some = f"no {kind} beside it" if known is None else f"stitches without {kind}"
        raise InputError(
            f"ledger '{ledger}' has {some}, which --confident requires; evaluate into a new ledger with --eval, "
            f"which writes {kind}, or omit --confident"
        )
    check_by_image(rows, known)
    return known


def pick_one(rows: Sequence[Row], budget: Budget, *, metric: str | None = None, allow_unreliable: bool = False) -> Row:
    """The row of the best stitch within a budget, as `pick` finds it."""
    choice = pick(rows, budget, metric=metric, allow_unreliable=allow_unreliable)
    if choice.best is not None:
        return choice.best
    raise InputError(refusal(rows, budget, choice))


def verdict(rows: Sequence[Row], budget: Budget, choice: Choice) -> str:
    """The sentence that names the best of a ledger's rows, and the row it is statistically tied with, if any."""
    first = choice.most_accurate or choice.best
    assert first is not None, "something fits"
    how = "cheapest" if budget.wants_cheapest else superlative(choice.metric)
    this = f"cfg_id {first['cfg_id']} is the"
    best, number, noun = f"{this} {how} of", len(compared(rows, choice.metric)), nouns_of(rows)[0]
    if choice.fitting == number == 1:
        sentence = f"{this} only {noun}" + (f", and has {budget}" if budget.limits else "")
    elif choice.fitting == 1:
        sentence = f"{this} only {noun}, out of {number}, with {budget}"
    elif not budget.limits:
        sentence = f"{best} {counted(number, noun)}"
    elif choice.fitting == number:
        sentence = f"{best} all {counted(number, noun)}; the budget excludes none: each has {budget}"
    else:
        sentence = f"{best} the {counted(choice.fitting, noun)}, out of {number}, with {budget}"
    if not choice.most_accurate:
        return sentence
    fitting = [row for row in compared(rows, choice.metric) if not budget.misses(row)]
    return f"{sentence}; {_tie(choice, first, budget.cost, fitting)}"


def _tie(choice: Choice, first: Row, cost: str, fitting: Sequence[Row]) -> str:
    """How the cheapest stitch differs from the most accurate one that it is statistically tied with."""
    best, difference = choice.best, choice.difference
    if best is None or difference is None:
        cheaper = any(row[cost] < first[cost] for row in fitting)
        return "all cheaper ones are significantly worse" if cheaper else "nothing costs less"
    less = f"{100 * (1 - best[cost] / first[cost]):.0f} %"
    saved = {"flops": f"has {less} fewer FLOPs", "params": f"has {less} fewer parameters"}
    return (
        f"cfg_id {best['cfg_id']} {saved.get(cost, f'takes {less} less time')} and is statistically tied with it: "
        f"{difference['points']:+.2f} points, 95 % from {difference['low']:.2f} to {difference['high']:.2f}"
    )


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
        f"{name} with {' and '.join(figures)}; relax the budget to take it" + (f"; {note}" if note else "")
    )


def run(flags: argparse.Namespace) -> None:
    """Run `stitchkit pick`."""
    budget, rows = budget_of(flags), read_rows(flags.ledger)
    metric = metric_of(rows, flags.metric)
    costs = [*budget.costs] or ["flops"]
    overlay = read_overlay(flags.overlay, costs, metric, every=True) if flags.overlay else None
    confident = confident_by_image(rows, flags.ledger, budget, metric) if flags.confident else None
    if flags.stitch_config:
        from stitchkit.measure.costs import complete_here  # torch, which a ledger alone does not need

        sizes = {"num_classes": flags.num_classes, "img_size": flags.img_size}
        complete_here(rows, flags.stitch_config, latency=budget.max_latency_ms is not None, **sizes)
    elif flags.num_classes is not None or flags.img_size:
        raise InputError("--num-classes and --img-size require --stitch-config; add it, or omit them")
    add_intervals(rows, confident or compared_beside(flags.ledger, metric), budget.cost)
    choice = pick(rows, budget, metric=metric, allow_unreliable=flags.allow_unreliable, confident=confident)
    rival = better_single_model(choice.best, budget.costs, overlay.models) if overlay and choice.best else None
    # Printed even if no stitch fits: scripts then find the nearest miss in it.
    if flags.json:
        content = {**choice._asdict(), "stitches": len(rows), "budget": budget.limits}
        print(strict_json(content | {"better_single_model": rival} if overlay else content))
    if choice.best is None:
        raise InputError(refusal(rows, budget, choice))
    if flags.json:
        return
    print(verdict(rows, budget, choice))
    if overlay:
        print(comparison(choice.best, rival, overlay))
    shown = [choice.best, *choice.runners_up]
    print(table(shown))
    for note in filter(None, [latency_note(shown), compared_note(rows, metric)]):
        print(note)
    (command,) = export_commands(Path(flags.ledger), [choice.best["cfg_id"]], flags.stitch_config)
    print(f"next, export it: {command}")
