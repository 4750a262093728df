"""The state within an epoch, from which a run resumes bitwise as if it had not stopped (law 8)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from stitchkit.data.batches import Batch, Loader
from stitchkit.distributed import gather_over_ranks
from stitchkit.engine import checkpoint_schema as rules
from stitchkit.engine.random_states import (
    RandomStates,
    check_states,
    random_states,
    set_random_states,
)  # fmt: skip
from stitchkit.errors import InputError


class LossWindow:
    """Losses of the steps since the last log line; they stay on the device until then."""

    def __init__(self) -> None:
        self._losses: list[torch.Tensor] = []
        self._routes: list[tuple[int, int]] = []

    def add(self, step: int, route: int | None, loss: torch.Tensor) -> None:
        """Add the loss of a step."""
        self._losses.append(loss.detach())
        self._routes.append((step, -1 if route is None else route))

    def flush(self) -> list[tuple[int, float]]:
        """`read`, then empty the window."""
        try:
            return self.read()
        finally:
            self._losses, self._routes = [], []

    def read(self) -> list[tuple[int, float]]:
        """Route (-1 where there is no choice) and loss of each step on each rank; every rank calls this.

        Raises:
            InputError: If a loss was not finite; the message names the first such step and its route.
        """
        if not self._losses:
            return []
        losses = torch.stack(self._losses).double()
        routes = torch.tensor(self._routes, dtype=losses.dtype, device=losses.device)
        # One tensor for all of it, so that the host waits for the device only once.
        ranks = gather_over_ranks(torch.cat([routes, losses[:, None]], dim=1)).tolist()
        found = []
        for steps in zip(*ranks, strict=True):
            for rank, (step, number, loss) in enumerate(steps):
                if not math.isfinite(loss):
                    route = "" if number < 0 else f" with route {number:.0f}"
                    raise InputError(
                        f"the loss is {loss} at step {step:.0f}{route} on rank {rank}; stopped. The last good "
                        "checkpoint is kept. Lower the learning rate, clip gradients, or train without --amp"
                    )
                found.append((int(number), loss))
        return found

    def state(self) -> dict[str, object]:
        """Its content as plain data and tensors."""
        return {"losses": torch.stack(self._losses).cpu() if self._losses else None, "routes": list(self._routes)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> LossWindow:
        """The window from which `state` was taken."""
        window = cls()
        if state["losses"] is not None:
            window._losses = list(state["losses"].to(device).unbind())
        window._routes = [(step, route) for step, route in state["routes"]]
        return window


class RouteLoss(NamedTuple):
    """Mean training loss of one route, and the number of steps, over all ranks, in that mean."""

    loss: float
    steps: int


@dataclass
class Position:
    """The position of a rank in an epoch.

    Args:
        done: Steps done.
        logged: Steps up to the last log line.
        total: Sum of the losses of the logged steps.
        sums: For each route, sum and number of its losses in the logged steps, over all ranks.
        window: Losses of the steps since.
        fetching: States of the random generators before the last batch was requested.
        going_on: States of the random generators to resume with; None in an uninterrupted epoch.
    """

    done: int = 0
    logged: int = 0
    total: float = 0.0
    sums: dict[int, tuple[float, int]] = field(default_factory=dict)
    window: LossWindow = field(default_factory=LossWindow)
    fetching: RandomStates | None = None
    going_on: RandomStates | None = None

    def log(self) -> float:
        """Empty the window and return the mean of its losses over steps and ranks."""
        losses = self.window.flush()
        for route, loss in losses:
            total, count = self.sums.get(route, (0.0, 0))
            self.sums[route] = total + loss, count + 1
        # fsum rounds once, so the mean does not depend on the number of ranks.
        mean = math.fsum(loss for _, loss in losses) / len(losses) if losses else math.nan
        self.total, self.logged = self.total + mean * (self.done - self.logged), self.done
        return mean

    @property
    def route_losses(self) -> dict[int, RouteLoss]:
        """The mean loss of each route that was drawn, by its number; empty where there is no choice."""
        sums = sorted(self.sums.items())
        return {route: RouteLoss(total / count, count) for route, (total, count) in sums if route >= 0}

    def state(self, device: torch.device) -> dict[str, object]:
        """Its content after a step, as plain data and tensors."""
        assert self.fetching is not None, "a step was done"
        return {
            "done": self.done,
            "logged": self.logged,
            "total": self.total,
            "sums": dict(self.sums),
            "window": self.window.state(),
            "fetching": self.fetching,
            "going_on": random_states(device),
        }

    @classmethod
    def from_state(cls, state: object, place: str, device: torch.device, *, steps: int, routes: int) -> Position:
        """The position from which `state` was taken.

        Args:
            state: The state in a checkpoint.
            place: Its place in the checkpoint, for messages.
            device: The device of this process.
            steps: Number of steps per epoch.
            routes: Number of routes; 0 if there is no choice.

        Raises:
            InputError: If it cannot be the state of such an epoch; nothing has been changed then.
        """
        route = rules.whole(-1, routes - 1)
        schema = {
            "done": rules.whole(1, steps),
            "logged": rules.whole(0, steps),
            "total": rules.number(),
            "sums": rules.table(route, [rules.number(), rules.whole(1)]),
            "window": {"losses": rules.or_none(_losses), "routes": rules.each([rules.whole(0), route])},
            "fetching": check_states,
            "going_on": check_states,
        }
        rules.check(state, schema, place)
        assert isinstance(state, Mapping), "it was checked"
        done, logged, window = state["done"], state["logged"], state["window"]
        waiting = len(window["routes"])
        if waiting != (0 if window["losses"] is None else len(window["losses"])) or logged + waiting != done:
            raise InputError(f"{place} counts {done} steps, but has logged {logged} and has losses of {waiting} more")
        losses = LossWindow.from_state(window, device)
        return cls(done, logged, state["total"], dict(state["sums"]), losses, state["fetching"], state["going_on"])


def _losses(found: object, place: str) -> None:
    """A rule: a loss for each step of a window."""
    length = len(found) if isinstance(found, torch.Tensor) and found.ndim == 1 else 1
    rules.check(found, torch.zeros(length), place)


class Batches:
    """The batches of an epoch, in order.

    Args:
        loader: Training batches of this rank.
        position: Keeps the random states of each fetch.
        device: The device of the rank.
    """

    def __init__(self, loader: Loader, position: Position, device: torch.device):
        self._batches: Iterator[Batch] = iter(loader)
        self._position = position
        self._device = device

    def __next__(self) -> Batch:
        self._position.fetching = random_states(self._device)
        return next(self._batches)

    def skip(self, count: int) -> None:
        """Advance past the `count` batches, at least one, that earlier steps have used.

        They are read again: loader processes draw random numbers for each image, so the next image depends on all
        earlier ones. timm's prefetcher reads one batch ahead, so the last of them is requested in the random states in
        which it was requested the first time.
        """
        assert self._position.fetching is not None, "read from a checkpoint"
        assert self._position.going_on is not None, "read from a checkpoint"
        for _ in range(count - 1):
            next(self._batches)
        set_random_states(self._position.fetching, self._device)
        next(self._batches)
        set_random_states(self._position.going_on, self._device)
