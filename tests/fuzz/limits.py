"""Limits of time and memory for a piece of code in this process."""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SECONDS = {
    signal.ITIMER_PROF: 2.0,  # of computing
    signal.ITIMER_REAL: 300.0,  # of waiting, such as for a server; other processes may need the cores meanwhile
}
_BYTES = 2 << 30
_RECURSION = 1000  # Python's own; hypothesis allows more, so that refusing deep nesting takes longer than in a command


class Hang(BaseException):
    """The code took too long; no reader catches this."""


@contextmanager
def limited() -> Iterator[None]:
    """Raise `AssertionError` after 2 s of computing or 300 s of waiting, `MemoryError` at the second further GiB."""
    is_running = True

    def stop(*_: object) -> None:
        if is_running:
            raise Hang

    # They stay: on a loaded machine a signal may come late, and by default it would end the process.
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, stop)
    recursion, own = sys.getrecursionlimit(), resource.getrlimit(resource.RLIMIT_DATA)
    sys.setrecursionlimit(_RECURSION)
    resource.setrlimit(resource.RLIMIT_DATA, (_used() + _BYTES, own[1]))
    for timer, seconds in _SECONDS.items():
        signal.setitimer(timer, seconds, seconds)  # repeated, because the code may swallow the first one
    try:
        try:
            yield
        finally:
            is_running = False  # before anything that a signal must not interrupt
    except Hang as hang:
        raise AssertionError("it took too long") from hang
    finally:
        for timer in _SECONDS:
            signal.setitimer(timer, 0)
        resource.setrlimit(resource.RLIMIT_DATA, own)
        sys.setrecursionlimit(recursion)


def _used() -> int:
    """The memory that counts for the limit, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    return pages * resource.getpagesize()
