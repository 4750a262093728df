"""Time several ways to do the same work in turn, and show the medians and whether the answers agree."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import TypeVar

import torch

Answer = TypeVar("Answer")
Seconds = dict[str, list[float]]
"""Seconds of each run, by way."""


def alternate(
    ways: Mapping[str, Callable[[], Answer]], *, rounds: int, quick: bool = False, device: str = "cpu"
) -> tuple[Seconds, dict[str, Answer]]:
    """Time several ways to do the same work, in turn.

    Args:
        ways: The work, by the way it is done.
        rounds: How often each is timed, after a round that does not count.
        quick: Run one round only, and count it.
        device: Where they compute.

    Returns:
        Seconds of each run, and the answer of each way in its first run.
    """
    # Round by round, not way by way: whatever else slows the machine down then falls on all of them alike.
    seconds: Seconds = {name: [] for name in ways}
    answers: dict[str, Answer] = {}
    for number in range(1 if quick else rounds + 1):
        for name, work in ways.items():
            start = _now(device)
            answer = work()
            taken = _now(device) - start
            answers.setdefault(name, answer)
            if quick or number > 0:  # the first round fills caches and starts threads
                seconds[name].append(taken)
    return seconds, answers


def _now(device: str) -> float:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)  # kernels run asynchronously: without this only their launch is timed
    return time.perf_counter()


def ratio(seconds: Seconds, way: str, other: str) -> float:
    """Median time of one way over that of another."""
    return median(seconds[way]) / median(seconds[other])


@dataclass(frozen=True)
class Check:
    """How far two answers are apart, and how far they may be."""

    what: str
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the answers agree."""
        return self.difference <= self.tolerance  # False for a NaN, which `not difference > tolerance` would let pass


@dataclass(frozen=True)
class Result:
    """The result of a benchmark.

    Args:
        name: The benchmark.
        work: The work, in words.
        seconds: Seconds of each run of `ours`, of the `reference`, and of further ways.
        checks: What was compared; none if the answers are not comparable.
        details: Further figures.
    """

    name: str
    work: str
    seconds: Seconds
    checks: tuple[Check, ...]
    details: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """How many times longer the reference takes."""
        return ratio(self.seconds, "reference", "ours")

    @property
    def agree(self) -> bool | None:
        """Whether all answers agree; None if none was compared."""
        return all(check.passed for check in self.checks) if self.checks else None

    def table(self) -> str:
        """The result for a person."""
        lines = [f"{self.name}: {self.work}", f"  {'':28}{'median s':>10}{'fastest':>10}{'slowest':>10}{'runs':>6}"]
        for way, runs in self.seconds.items():
            lines.append(f"  {way:28}{median(runs):10.4f}{min(runs):10.4f}{max(runs):10.4f}{len(runs):6}")
        lines.append(f"  reference / ours {self.ratio:.3f}")
        lines += [f"  {name} {value}" for name, value in self.details.items()]
        for check in self.checks:
            verdict = "agree" if check.passed else "DIFFER"
            lines.append(f"  {check.what}: {check.difference:.3g}, tolerance {check.tolerance:g}: {verdict}")
        if not self.checks:
            lines.append("  answers: not compared")
        return "\n".join(lines)

    def json_line(self) -> str:
        """The result for a program."""
        first = self.checks[0] if self.checks else None
        figures = {
            "name": self.name,
            "ratio": self.ratio,
            **{f"{way}_s": median(self.seconds[way]) for way in ("ours", "reference")},
            "agree": self.agree,
            "difference": first and first.difference,
            "tolerance": first and first.tolerance,
            **self.details,
            "work": self.work,
        }
        return json.dumps(figures)
