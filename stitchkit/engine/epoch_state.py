"""The state within an epoch: a run resumes from it bitwise, as if it had not stopped (law 8)."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from stitchkit.distributed import gather_over_ranks
from stitchkit.engine import checkpoint_schema as rules
from stitchkit.errors import InputError, NotFinite

RandomStates = Mapping[str, Any]
"""States of Python, NumPy, torch and the GPU, as plain data and tensors for a checkpoint."""


def random_states(device: torch.device) -> RandomStates:
    """States of all random generators of this process."""
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys, np.int64)), *rest],  # older versions of torch have no uint32
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_states(states: RandomStates, device: torch.device) -> None:
    """Restore the states of all random generators."""
    version, words, gauss = states["python"]
    kind, keys, *rest = states["numpy"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def check_states(states: object, path: str) -> None:
    """A rule: the result of `random_states`. NumPy accepts any position in its words and would read past their end."""
    before = random_states(torch.device("cpu"))
    (version, words, _), (kind, keys, *_), cpu = before["python"], before["numpy"], before["torch"]
    word, at = rules.whole(0, 2**32 - 1), rules.whole(0, len(keys))
    schema = {
        "python": [rules.exactly(version), [word] * (len(words) - 1) + [rules.whole(0, len(words) - 1)], None],
        "numpy": [rules.exactly(kind), _vector(torch.int64, len(keys)), at, rules.whole(0, 1), 0.0],
        "torch": _vector(torch.uint8, len(cpu)),
        "cuda": rules.or_none(_vector(torch.uint8)),  # torch checks its length
    }
    rules.check(states, schema, path)
    assert isinstance(states, Mapping)
    # A Mersenne Twister whose words are all zeros yields zeros for ever.
    there = [torch.tensor(states["python"][1][:-1]), states["numpy"][1]]
    if any(not numbers.any() or numbers.min() < 0 or numbers.max() >= 2**32 for numbers in there):
        raise InputError(f"{path} is not a state of random generators: its words are all zeros or out of range")
    try:
        set_random_states(states, torch.device("cpu"))
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{path} is not a state of random generators: {error}") from error
    finally:
        set_random_states(before, torch.device("cpu"))


def _vector(dtype: torch.dtype, length: int | None = None) -> rules.Rule:
    def fits(value: Any) -> bool:
        is_vector = isinstance(value, torch.Tensor) and value.dtype == dtype and value.ndim == 1
        return is_vector and length in (None, len(value))

    return rules.rule(f"a vector of {length or ''} {dtype}", fits)


@dataclass
class Position:
    """The position of a rank in an epoch.

    Args:
        done: Steps done.
        logged: Steps up to the last log line.
        total: Sum of the losses of the logged steps.
        rate: Learning rate of the last step.
        sums: For each route, sum and number of its losses in the logged steps, over all ranks.
        losses: Losses of the steps since; they stay on the device until the next log line.
        routes: Number and route of each of these steps; -1 if there is no choice.
        fetching: States of the random generators before the last batch was requested.
        going_on: States of the random generators to resume with; None in an uninterrupted epoch.
    """

    done: int = 0
    logged: int = 0
    total: float = 0.0
    rate: float = 0.0
    sums: dict[int, tuple[float, int]] = field(default_factory=dict)
    losses: list[torch.Tensor] = field(default_factory=list)
    routes: list[tuple[int, int]] = field(default_factory=list)
    fetching: RandomStates | None = None
    going_on: RandomStates | None = None

    def add(self, step: int, route: int | None, loss: torch.Tensor, rate: float) -> None:
        """Add a step that is done."""
        self.done, self.rate = self.done + 1, rate
        self.losses.append(loss.detach())
        self.routes.append((step, -1 if route is None else route))

    def read(self) -> list[tuple[int, float]]:
        """Route and loss of each step since the last log line, on each rank; every rank calls this."""
        if not self.losses:
            return []
        losses = torch.stack(self.losses).double()
        routes = torch.tensor(self.routes, dtype=losses.dtype, device=losses.device)
        # One tensor for all of it, so that the host waits for the device only once.
        ranks = gather_over_ranks(torch.cat([routes, losses[:, None]], dim=1)).tolist()
        losses_by_route = []
        for steps in zip(*ranks, strict=True):
            for rank, (step, number, loss) in enumerate(steps):
                if not math.isfinite(loss):
                    route = "" if number < 0 else f" with route {number:.0f}"
                    raise NotFinite(f"the loss is {loss} at step {step:.0f}{route} on rank {rank}")
                losses_by_route.append((int(number), loss))
        return losses_by_route

    def log(self) -> float:
        """The mean loss over ranks and the steps since the last call, which are now logged."""
        losses = self.read()
        self.losses, self.routes = [], []
        for route, loss in losses:
            total, count = self.sums.get(route, (0.0, 0))
            self.sums[route] = total + loss, count + 1
        # fsum rounds once, so the mean does not depend on the number of ranks.
        mean = math.fsum(loss for _, loss in losses) / len(losses) if losses else math.nan
        self.total, self.logged = self.total + mean * (self.done - self.logged), self.done
        return mean

    @property
    def route_losses(self) -> dict[int, tuple[float, int]]:
        """By the number of each route that was drawn, its mean loss and the number of steps in that, over all ranks."""
        return {route: (total / count, count) for route, (total, count) in sorted(self.sums.items()) if route >= 0}

    def state(self, device: torch.device) -> dict[str, object]:
        """Its content after a step, as plain data and tensors."""
        assert self.fetching is not None, "a step was done"
        losses = torch.stack(self.losses).cpu() if self.losses else None
        return {
            "done": self.done,
            "logged": self.logged,
            "total": self.total,
            "rate": self.rate,
            "sums": dict(self.sums),
            "window": {"losses": losses, "routes": list(self.routes)},
            "fetching": self.fetching,
            "going_on": random_states(device),
        }

    @classmethod
    def from_state(cls, state: object, path: str, device: torch.device, *, steps: int, routes: int) -> Position:
        """The position of a `state` at a `path` of a checkpoint.

        `steps` and `routes` are the number of steps in an epoch and of routes to choose from, 0 without a choice.
        """
        route = rules.whole(-1, routes - 1)
        schema = {
            "done": rules.whole(1, steps),
            "logged": rules.whole(0, steps),
            "total": rules.number(),
            "rate": rules.number(),
            "sums": rules.table(route, [rules.number(), rules.whole(1)]),
            "window": {"losses": rules.or_none(_losses), "routes": rules.each([rules.whole(0), route])},
            "fetching": check_states,
            "going_on": check_states,
        }
        rules.check(state, schema, path)
        assert isinstance(state, Mapping), "it was checked"
        done, logged, window = state["done"], state["logged"], state["window"]
        losses = [] if window["losses"] is None else list(window["losses"].to(device).unbind())
        waiting = [(step, route) for step, route in window["routes"]]
        if len(waiting) != len(losses) or logged + len(waiting) != done:
            raise InputError(
                f"{path} counts {done} steps, but has logged {logged} and has losses of {len(losses)} more"
            )
        sums, states = dict(state["sums"]), (state["fetching"], state["going_on"])
        return cls(done, logged, state["total"], state["rate"], sums, losses, waiting, *states)


def _losses(actual: object, path: str) -> None:
    """A rule: a loss for each step since the last log line."""
    length = len(actual) if isinstance(actual, torch.Tensor) and actual.ndim == 1 else 1
    rules.check(actual, torch.zeros(length), path)
