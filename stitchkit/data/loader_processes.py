"""Loader processes: their number, their death, and their end with their run, whatever signals a cluster sends them."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from timm.data.loader import PrefetchLoader
from torch.utils.data import DataLoader, IterableDataset

from stitchkit.data.timm_readers import needs_process, num_shards
from stitchkit.display import counted
from stitchkit.distributed import World
from stitchkit.errors import InputError, one_line
from stitchkit.restarts import LIMIT_IS_NEAR

_logger = logging.getLogger(__name__)
_MOST_PER_CORE = 16


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def more_than_cores() -> Iterator[None]:
    """Silence torch's warning about more loader processes than cores: augmentation depends on their number."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")
        yield


def workers_for(images: object, wanted: int, world: World) -> int:
    """The loader processes of each rank: as many as wanted, but no more than a stream has shards.

    More than 16 for each core are refused instead of reduced, because augmentation depends on their number.
    """
    if wanted > (most := _MOST_PER_CORE * usable_cores()):
        raise InputError(
            f"--workers is {wanted}, and this machine has {counted(usable_cores(), 'core')}; give at most {most}"
        )
    reader = getattr(images, "reader", None)
    if world.size > 1 and needs_process(reader):
        wanted = max(wanted, 1)
    shards = num_shards(reader, world.size) if isinstance(images, IterableDataset) else None
    if shards is None or max(wanted, 1) <= shards:
        return wanted
    name = f"the {images.split} split"  # type: ignore[attr-defined] # `open_dataset` sets it
    if not shards:
        raise InputError(f"{name} has fewer shards than the {world.size} ranks; write more, or start fewer ranks")
    _logger.info("%s has %s for each rank; one loader process reads each", name, counted(shards, "shard"))
    return shards


def _end_with_parent(worker_id: int, start: Callable[[int], None] | None) -> None:
    """Let a loader process end only on a signal from its parent."""
    # Ctrl-C reaches the whole foreground group, and a preempting cluster signals every process of a job. The parent
    # then still finishes its step and saves, and needs the batches in preparation.
    for number in (signal.SIGINT, LIMIT_IS_NEAR):
        signal.signal(number, signal.SIG_IGN)
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


@contextmanager
def explained(advice: str = "lower --workers and resume with --resume auto") -> Iterator[None]:
    """Raise torch's errors about dead or failing loader processes as an `InputError`; `advice` is for dead ones."""
    try:
        yield
    except InputError as error:
        words = str(error.args[0])
        if words.startswith("Caught InputError in DataLoader worker"):  # torch has added the traceback
            raise InputError(words.strip().splitlines()[-1].partition(": ")[2]) from error
        raise
    except (RuntimeError, OSError, EOFError) as error:  # the last two, as `ConnectionError`, if it died while sending
        if isinstance(error, OSError) and "in DataLoader worker" in str(error):  # torch has added the traceback
            cause = str(error).strip().splitlines()[-1]
            raise InputError(f"the data cannot be read ({cause}); check the disk or the network") from error
        if isinstance(error, OSError) and not isinstance(error, ConnectionError):
            raise
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        if threading.current_thread() is threading.main_thread():  # Python allows no other thread to set handlers
            # torch's handler would say it once more, with a traceback, wherever the signal of the death arrives. Later
            # loaders have no need of it: while they wait for a batch, they look every 5 seconds.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        cause = one_line(error) if isinstance(error, RuntimeError) else "its connection is lost"
        raise InputError(f"a loader process died ({cause}), perhaps for lack of memory; {advice}") from error
