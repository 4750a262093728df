"""Files that exist whole or not at all, and are never written through a symbolic link.

A run's folder may come from somebody else, unpacked or on a shared disk, with links under the names that we write.
All such names are written here: a link is replaced, or the command ends with an error. The folder itself may be a link,
or lie under one: that is the user's choice.
"""

from __future__ import annotations

import csv
import errno
import io
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from stitchkit.errors import InputError

_logger = logging.getLogger(__name__)

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""The numbers of the system's errors for a disk or a quota without room."""


@contextmanager
def replacing(path: Path, *, writer: str = "") -> Iterator[Path]:
    """A temporary file beside `path` that replaces it when the block ends.

    An error in the block leaves everything as it was. Links under both names are removed, not followed. Where several
    processes may write the file at once, each is a `writer` of its own, which goes into the temporary name.
    """
    if path.exists() and not path.is_symlink() and not path.is_file():
        raise InputError(f"'{path}' is not a regular file, so it is not replaced; choose another name")
    temporary = path.with_name(".".join(filter(None, [path.name, writer, "tmp"])))
    temporary.unlink(missing_ok=True)
    # Created here, so that whoever writes to the name opens this file, not a link that was put there meanwhile.
    os.close(descriptor(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    try:
        yield temporary
        # First the content, then the name: a power cut leaves either the old file or the new one.
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, *, writer: str = "") -> None:
    """Write a small file completely, or keep the old one; `writer` is as for `replacing`."""
    with replacing(path, writer=writer) as draft:
        draft.write_text(text, encoding="utf-8")


def check_regular(path: Path) -> None:
    """Refuse a device or a named pipe, which would make a reader wait or never end; what is missing is the reader's."""
    if path.exists() and not path.is_file():
        raise InputError(f"'{path}' is not a file; check the path")


def read_table(path: Path, *, grows: bool = False) -> dict[str, list[str]]:
    """The columns of a CSV file by name; cells that a line lacks at its end are empty.

    Of a file that `grows`, an unfinished last line is dropped.
    """
    check_regular(path)
    try:
        content = path.read_bytes()
        if grows and not content.endswith(b"\n"):
            content = content[: content.rfind(b"\n") + 1]
            say_unfinished(path)
        table = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), restval="")
        rows, head = list(table), [*(table.fieldnames or ())]
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}; check the path") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"'{path}' is not a table: {error}; correct it, or move it away") from error
    if twice := next((key for key in head if head.count(key) > 1), None):
        raise InputError(f"'{path}' has the column {twice!r} twice; remove one, or move the file away")
    return {key: [row[key] for row in rows] for key in head}


def opened(path: Path, mode: str, *, newline: str | None = None) -> IO[Any]:
    """Open a file that grows in place, like the builtin `open`; text is UTF-8."""
    return open(path, mode, newline=newline, encoding=None if "b" in mode else "utf-8", opener=descriptor)


def drop_unfinished(path: Path) -> None:
    """Cut a last line without an end off a file that grows: a killed program or a power cut left part of it."""
    check_regular(path)
    content = path.read_bytes()
    if end := len(content) - content.rfind(b"\n") - 1:
        say_unfinished(path)
        with opened(path, "r+b") as file:
            file.truncate(len(content) - end)


def say_unfinished(path: Path) -> None:
    """Say that the last line of a file that grows is dropped."""
    _logger.warning("the last line of '%s' is dropped: an interrupted program left it unfinished", path)


def descriptor(path: str | Path, flags: int) -> int:
    """Open a regular file like `os.open`; a named pipe would make this program wait."""
    refuse_link(Path(path))
    check_regular(Path(path))
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def check_folder_of(path: Path) -> None:
    """Refuse a file whose folder does not exist."""
    if not path.parent.is_dir():
        raise InputError(f"folder '{path.parent}' does not exist; create it, or check the path")


def refuse_link(path: Path) -> None:
    """Refuse to write through a link."""
    if path.is_symlink():
        raise InputError(f"'{path}' is a symbolic link, and none is written through; remove it, or use another folder")


def own_folder(path: Path) -> Path:
    """A folder inside one that the user chose, created if necessary."""
    refuse_link(path)
    path.mkdir(parents=True, exist_ok=True)
    for child in sorted(path.iterdir()):
        refuse_link(child)
    return path


def fresh_folder(path: Path) -> Path:
    """An empty folder, without the remains of an interrupted command."""
    if path.is_symlink():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)  # fails if something could not be removed
    return path


def check_new_folder(path: Path) -> None:
    """Refuse, before the work that fills it, a folder that is not empty or cannot be created."""
    if path.is_dir() and any(path.iterdir()):
        raise InputError(f"'{path}' is not empty; choose a new folder")
    if path.exists() and not path.is_dir():
        raise InputError(f"'{path}' is a file; choose a new folder")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with TemporaryDirectory(dir=above):  # permissions do not say everything, as of /proc
            pass
    except OSError as error:
        raise InputError(f"folder '{path}' cannot be created: {error.strerror}; check the path") from error


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A folder of another name that gets the name of `folder`, which must be new or empty, when the block ends.

    An interrupted command therefore leaves no incomplete folder, and what it wrote does not keep a full disk full; that
    of a killed one is removed by the next command.
    """
    refuse_link(folder)
    unfinished = fresh_folder(folder.with_name(folder.name + ".unfinished"))
    try:
        yield unfinished
        unfinished.rename(folder)  # also replaces an empty folder
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk, if the file system can."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # others: data were lost
            raise
    finally:
        os.close(number)
