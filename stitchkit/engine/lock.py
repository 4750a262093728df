"""The folder of a run, to which one run at a time writes."""

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
    """Hold a lock that no other process can have; it ends with the process, however that ends.

    The lock is the process's own, as POSIX has it: loader processes that outlive a killed run do not hold it.

    Raises:
        InputError: If another process holds it, or it is a symbolic link.
    """
    file = _open(path)
    try:
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()} on {os.uname().nodename}\n".encode())
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is released: a file unlinked later could be the next run's lock
        os.close(file)


def is_held(path: Path) -> bool:
    """Whether another process holds the lock of this file; a process that was killed holds none.

    The lock is not tried, which would refuse a run that begins in that moment. Not for the holder's own process: POSIX
    drops the lock when that closes the file again.
    """
    lock = [0] * len(_FLOCK)
    lock[_TYPE] = fcntl.F_WRLCK
    try:
        file = descriptor(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        found = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(_FLOCK, *lock))
    except OSError:  # a file system without locks, where nobody can hold one
        return False
    finally:
        os.close(file)
    return bool(struct.unpack(_FLOCK, found)[_TYPE] != fcntl.F_UNLCK)


@contextmanager
def made(folder: Path, flag: str) -> Iterator[None]:
    """Make the folder of a run where it is missing; a new one that got no files is removed.

    Raises:
        InputError: If it cannot be made or written to, with the flag that chooses another one.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"folder '{folder}' cannot be made: {error.strerror}; choose another {flag}") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"folder '{folder}' cannot be written; choose another {flag}")
    try:
        yield
    finally:
        if is_new:
            with suppress(OSError):  # it has files
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
            _logger.warning("the file system of '%s' has no locks; see that no other run writes there", path.parent)
            return file
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.lstat()):
                return file
        os.close(file)  # the run before has just unlinked this file: its lock would keep nobody out
