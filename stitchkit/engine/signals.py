"""SIGTERM and SIGINT end a training run at the end of a step, the same step on all ranks."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from stitchkit.distributed import World

SIGNALS = (signal.SIGTERM, signal.SIGINT)

# A launcher passes on what the cluster or the terminal has sent to all processes anyhow, so two are as one.
_PATIENCE = 2


class StopSignals:
    """While entered, the signals are noted instead of ending the process; after a third one SIGINT is as ever.

    A signal that somebody else answers, such as submitit, which puts a job back into the queue, is left to them.

    Args:
        world: This process among all.
    """

    def __init__(self, world: World):
        self._world = world
        self._received = 0
        self._times = 0
        self._before: dict[signal.Signals, Any] = {}
        self._asked: tuple[torch.Tensor, Any] | None = None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread have handlers
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS if _is_unanswered(number)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._asked is not None and error is None:
            self._asked[1].wait()

    def _note(self, number: int, _: FrameType | None) -> None:
        self._received = number
        self._times += 1
        if self._times > _PATIENCE:
            raise KeyboardInterrupt

    def agreed(self) -> int:
        """Number of the signal to stop for, the same on all ranks, or 0; every rank asks equally often.

        With several ranks it is the answer to what was asked the time before, so that no step waits for other ranks.
        """
        if self._world.size == 1:
            return self._received
        found = 0
        if self._asked is not None:
            answer, work = self._asked
            work.wait()
            found = int(answer.item())
        received = torch.tensor(self._received)
        self._asked = received, dist.all_reduce(received, op=dist.ReduceOp.MAX, async_op=True)
        return found


def _is_unanswered(number: signal.Signals) -> bool:
    """Whether a signal has no handler but those that a Python process begins with."""
    handler = signal.getsignal(number)
    return not callable(handler) or handler is signal.default_int_handler
