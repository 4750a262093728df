"""Commands in processes of their own, forked from that of the tests: nothing is loaded anew, and they may be killed."""

from __future__ import annotations

import os
import socket
import time
import traceback
import warnings
from collections.abc import Callable, Sequence

import torch

from stitchkit.cli import main


def start(command: Sequence[object], *, ranks: int = 1, first: Callable[[int], None] = lambda _: None) -> list[int]:
    """Start a `stitchkit` command; the process of each rank.

    Args:
        command: Arguments of `stitchkit`.
        ranks: How many processes form a group.
        first: Called in each of them, with the rank, before the command; what it changes is changed there alone.
    """
    with socket.socket() as place:
        place.bind(("localhost", 0))
        port = place.getsockname()[1]
    return [_fork(command, rank, ranks, port, first) for rank in range(ranks)]


def _fork(command: Sequence[object], rank: int, ranks: int, port: int, first: Callable[[int], None]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads that are left from elsewhere
        process = os.fork()
    if process:
        return process
    status = 99
    try:
        torch.set_num_threads(1)
        if ranks > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        first(rank)
        status = main(list(map(str, command)))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def end(processes: Sequence[int], *, limit: float = 60) -> list[int]:
    """Wait for processes; their exit statuses, or the negative numbers of the signals that ended them."""
    found: dict[int, int] = {}
    deadline = time.monotonic() + limit
    while len(found) < len(processes) and time.monotonic() < deadline:
        for process in processes:
            if process not in found and (ended := os.waitpid(process, os.WNOHANG))[0]:
                found[process] = os.waitstatus_to_exitcode(ended[1])
        time.sleep(0.01)
    for process in set(processes) - found.keys():
        os.kill(process, 9)
        os.waitpid(process, 0)
    assert len(found) == len(processes), "a process did not end in time"
    return [found[process] for process in processes]
