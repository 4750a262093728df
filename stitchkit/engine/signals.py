"""SIGTERM, SIGINT and SIGUSR1 end a training run at the end of a step, the same step on all ranks."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from stitchkit.distributed import World
from stitchkit.restarts import LIMIT_IS_NEAR

SIGNALS = (signal.SIGTERM, signal.SIGINT, LIMIT_IS_NEAR)

# A launcher forwards a signal that the cluster or terminal already sent to all processes, so two count as one.
_PATIENCE = 2


class StopSignals:
    """Records signals while entered, instead of letting them end the process; the third raises KeyboardInterrupt.

    A signal that already has a handler keeps it; submitit, for instance, requeues a job on a signal.
    """

    def __init__(self, world: World):
        self._world = world
        self._received = 0
        self._times = 0
        self._before: dict[signal.Signals, Any] = {}
        self._asked: tuple[torch.Tensor, dist.Work] | None = None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python allows no other thread to set handlers
            for number in SIGNALS:
                handler = signal.getsignal(number)
                if not callable(handler) or handler is signal.default_int_handler:  # Python's own
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        # The group is torn down next. After an error the other ranks may never answer.
        if self._asked is not None and kind is None:
            self._asked[1].wait()

    def _note(self, number: int, _: FrameType | None) -> None:
        self._received = number
        self._times += 1
        if self._times > _PATIENCE:
            raise KeyboardInterrupt

    def agreed(self) -> int:
        """Number of the signal to stop for, the same on all ranks, or 0; every rank must ask equally often.

        With several ranks, the answer is that to the previous question, so that no step waits for other ranks.
        """
        if self._world.size == 1:
            return self._received
        number = 0
        if self._asked is not None:
            answer, work = self._asked
            work.wait()
            number = int(answer.item())
        received = torch.tensor(self._received)
        work = dist.all_reduce(received, op=dist.ReduceOp.MAX, async_op=True)
        assert work is not None, "this rank is in the group"
        self._asked = received, work
        return number
