"""Loader processes: they end with their run alone, whatever signals a cluster sends to all."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any


def usable_cores() -> int:
    """Cores that this process may use: more loader processes than these only wait for one another."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _end_with_parent(worker_id: int, start: Callable[[int], None] | None) -> None:
    """Begin a loader process that ends when its parent says so, and for no other signal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_parent, daemon=True).start()
    if start is not None:
        start(worker_id)


def _wait_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def outlive_signals(loader: Any) -> None:
    """Let the processes of a loader end with their parent alone: signals often go to all processes of a run.

    Args:
        loader: timm's, or torch's.
    """
    loader = getattr(loader, "loader", loader)
    loader.worker_init_fn = partial(_end_with_parent, start=loader.worker_init_fn)
