"""Limits of time and memory for a piece of code in this process."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

_CPU_SECONDS = 2.0
_SECONDS = 60.0  # of waiting, such as for a server; other processes may need the cores meanwhile
_BYTES = 2 << 30


class Hang(BaseException):
    """The code took too long; no reader catches this."""


@contextmanager
def limited() -> Iterator[None]:
    """Raise `AssertionError` after two seconds of computing, and `MemoryError` at the second GiB of further memory."""

    def stop(*_: object) -> NoReturn:
        raise Hang

    before = [(number, signal.signal(number, stop)) for number in (signal.SIGPROF, signal.SIGALRM)]
    own = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_used() + _BYTES, own[1]))
    signal.setitimer(signal.ITIMER_PROF, _CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, _SECONDS)
    try:
        yield
    except Hang as hang:  # pytest itself would end
        raise AssertionError("it took too long") from hang
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_DATA, own)
        for number, handler in before:
            signal.signal(number, handler)


def _used() -> int:
    """The memory that counts for the limit, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    return pages * resource.getpagesize()
