"""Loader processes: they end only with their run, whatever signals a cluster sends to all processes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from functools import partial

from timm.data.loader import PrefetchLoader
from torch.utils.data import DataLoader


def usable_cores() -> int:
    """Cores that this process may use; any further loader processes would only wait for each other."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _end_with_parent(worker_id: int, start: Callable[[int], None] | None) -> None:
    """Let a loader process end only on a signal from its parent."""
    # Ctrl-C reaches the whole foreground group, and a preempting cluster signals every process of a job. The parent
    # then still finishes its step and saves, for which it needs the batches in preparation.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_parent, daemon=True).start()
    if start is not None:
        start(worker_id)


def _wait_for_parent() -> None:
    # A signal handler would run too late: it waits for the main thread, which may be busy in an image library.
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def outlive_signals(loader: PrefetchLoader | DataLoader[object]) -> None:
    """Let the processes of a loader end only with their parent."""
    loader = getattr(loader, "loader", loader)  # timm's loader wraps torch's
    loader.worker_init_fn = partial(_end_with_parent, start=loader.worker_init_fn)
