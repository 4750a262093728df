"""The lock on the folder of a run: only one run at a time writes to it."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stitchkit.errors import InputError
from stitchkit.files import descriptor

_logger = logging.getLogger(__name__)

# The fields of `struct flock`, in each system's order, and which of them is the lock's type; zeros mean the whole file.
_FLOCK, _TYPE = ("qqihh", 3) if sys.platform == "darwin" else ("hhqqi", 0)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that excludes all other processes until this one ends, however it ends.

    As in POSIX, the lock belongs to the process: loader processes that outlive a killed run do not hold it.
    """
    file = _open(path)
    try:
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()} on {os.uname().nodename}\n".encode())
        yield
    finally:
        path.unlink(missing_ok=True)  # before the release: later, the file could be the next run's lock
        os.close(file)


def is_held(path: Path) -> bool:
    """Whether another process holds the lock on this file.

    The lock is not taken to find out: a run that starts at that moment would be refused. The holder itself must not
    ask, because POSIX drops its lock when it closes the file again.
    """
    lock = [0] * len(_FLOCK)
    lock[_TYPE] = fcntl.F_WRLCK
    try:
        file = descriptor(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        answer = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(_FLOCK, *lock))
    except OSError:  # the file system has no locks, so nobody holds one
        return False
    finally:
        os.close(file)
    return bool(struct.unpack(_FLOCK, answer)[_TYPE] != fcntl.F_UNLCK)


@contextmanager
def made(folder: Path, flag: str) -> Iterator[None]:
    """Create the folder of a run, which a `flag` chooses, if it is missing, and remove a new one that stays empty."""
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"folder '{folder}' cannot be created: {error.strerror}; choose another {flag}") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"folder '{folder}' is not writable; choose another {flag}")
    try:
        yield
    finally:
        if is_new:
            with suppress(OSError):  # it has files by now
                folder.rmdir()


def _open(path: Path) -> int:
    while True:
        file = descriptor(path, os.O_RDWR | os.O_CREAT)
        try:
            # lockf, not flock: a lock by flock passes to forked loader processes and outlives the run in them.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            owner = os.read(file, 200).decode(errors="replace").strip() or "unknown"
            os.close(file)
            raise InputError(
                f"another run writes to '{path.parent}' (process {owner}); wait for it, stop it, or choose another "
                "folder"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                raise
            _logger.warning(
                "the file system of '%s' does not support locks; make sure that no other run writes there", path.parent
            )
            return file
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.lstat()):
                return file
        os.close(file)  # the previous run has just unlinked this file: a lock on it would exclude nobody
