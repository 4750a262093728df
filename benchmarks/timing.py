"""Runs what is compared in alternation, and shows the medians and whether the answers agree."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, TypeVar

import torch

Answer = TypeVar("Answer")
Seconds = dict[str, list[float]]
"""Seconds of each run, by way."""


def alternate(
    ways: Mapping[str, Callable[[], Answer]], *, rounds: int, quick: bool = False, device: str = "cpu"
) -> tuple[Seconds, dict[str, Answer]]:
    """Time several ways to do the same work, in turn, so that what else the machine does falls on all of them.

    Args:
        ways: The work, by the way it is done.
        rounds: How often each is timed; a round that does not count goes before.
        quick: Run one round only, and count it.
        device: Where they compute.

    Returns:
        Seconds of each run, and what each way gave when it ran first.
    """
    seconds: Seconds = {name: [] for name in ways}
    answers: dict[str, Answer] = {}
    for number in range(1 if quick else rounds + 1):
        for name, work in ways.items():
            start = _now(device)
            answer = work()
            taken = _now(device) - start
            answers.setdefault(name, answer)
            if quick or number > 0:
                seconds[name].append(taken)
    return seconds, answers


def _now(device: str) -> float:
    """The time, once the device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def ratio(seconds: Seconds, way: str, other: str) -> float:
    """Median time of one way over that of another."""
    return median(seconds[way]) / median(seconds[other])


@dataclass(frozen=True)
class Check:
    """How far two answers are apart.

    Args:
        what: What was compared, and how the difference is counted.
        difference: The largest difference.
        tolerance: How large it may be.
    """

    what: str
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the answers agree; a NaN does not."""
        return self.difference <= self.tolerance


@dataclass(frozen=True)
class Result:
    """What a benchmark found.

    Args:
        name: The benchmark.
        work: What was done, in words.
        seconds: Seconds of each run of `ours`, of the `reference`, and of further ways.
        checks: What was compared; none where the answers are not comparable.
        details: Further figures.
    """

    name: str
    work: str
    seconds: Seconds
    checks: tuple[Check, ...]
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """How many times longer the reference takes."""
        return ratio(self.seconds, "reference", "ours")

    @property
    def agree(self) -> bool | None:
        """Whether all answers agree; None where none was compared."""
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
        medians = {f"{way}_s": median(self.seconds[way]) for way in ("ours", "reference")}
        first = self.checks[0] if self.checks else None
        compared = {"difference": first and first.difference, "tolerance": first and first.tolerance}
        return json.dumps(
            {
                "name": self.name,
                "ratio": self.ratio,
                **medians,
                "agree": self.agree,
                **compared,
                **self.details,
                "work": self.work,
            }
        )


def relative_difference(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest difference of two tensors as a part of the largest value of the reference."""
    return ((ours - reference).abs().max() / reference.abs().max()).item()
