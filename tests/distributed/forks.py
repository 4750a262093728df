"""Commands in processes of their own, which may be killed; all fork from one that has loaded the house and run nothing.

A fork of the process of the tests itself would inherit the locks of threads that it does not have.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch
from PIL import Image

from stitchkit.cli import main

_SERVER = multiprocessing.get_context("forkserver")
_COMMANDS = {entry.module for entry in entry_points(group="stitchkit.commands")}
_RUNS = ("stitchkit.training.run", "stitchkit.assembly.train.run", "pandas", "webdataset")
_TESTS = ("tests.distributed.pico_task", "tests.distributed.ranks", "tests.distributed.subjects", "tests.support")
_SERVER.set_forkserver_preload([__name__, *_COMMANDS, *_RUNS, *_TESTS])
Image.init()  # every fork would import all of its formats


def start(
    command: Sequence[object], *, ranks: int = 1, first: Callable[[int], None] | None = None, said: Path | None = None,
    program: Callable[[Sequence[str]], int] = main,
) -> list[ForkServerProcess]:  # fmt: skip
    """Start a `stitchkit` command; the process of each rank.

    Args:
        command: Arguments of `stitchkit`.
        ranks: How many processes form a group.
        first: Called in each of them, with the rank, before the command; what it changes is changed there alone.
            A function of a module, or a `partial` of one.
        said: The file that takes what they print.
        program: The program in place of `stitchkit`, such as that of a study.
    """
    with socket.socket() as place:
        place.bind(("localhost", 0))
        port = place.getsockname()[1]
    processes = []
    for rank in range(ranks):
        environment = dict(os.environ)
        if ranks > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        process = _SERVER.Process(target=_run, args=([*map(str, command)], environment, rank, first, said, program))
        process.start()
        processes.append(process)
    return processes


def _run(
    command: list[str],
    environment: Mapping[str, str],
    rank: int,
    first: Callable[[int], None] | None,
    said: Path | None,
    program: Callable[[Sequence[str]], int],
) -> None:
    settle(environment)
    if said is not None:
        file = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file, stream.fileno())
    if first is not None:
        first(rank)
    sys.exit(program(command))


def settle(environment: Mapping[str, str]) -> None:
    """Let this process be as one that a person starts: loader processes are its own children and end with it."""
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)


def end(processes: Sequence[ForkServerProcess], *, limit: float = 60) -> list[int]:
    """Wait for processes; their exit statuses, or the negative numbers of the signals that ended them."""
    deadline = time.monotonic() + limit
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0))
    late = [process for process in processes if process.exitcode is None]
    for process in late:
        process.kill()
        process.join()
    assert not late, "a process did not end in time"
    return [process.exitcode for process in processes if process.exitcode is not None]


def kill_once_there(
    command: Sequence[object], place: Path, *, ranks: int = 1, limit: float = 60,
    first: Callable[[int], None] | None = None,
) -> list[ForkServerProcess]:  # fmt: skip
    """Start a `stitchkit` command and kill it as soon as a file is there, as `kill -9` does; its processes.

    `first` is as in `start`.
    """
    processes = start(command, ranks=ranks, first=first)
    deadline = time.monotonic() + limit
    while not place.exists() and processes[0].is_alive() and time.monotonic() < deadline:
        time.sleep(0.001)
    for process in processes:
        process.kill()
    return processes


def hold_lock(path: Path) -> subprocess.Popen[bytes]:
    """A process that holds the lock on a file until it is killed."""
    hold = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); print(); sys.stdin.read()"
    )
    command = [sys.executable, "-u", "-c", hold, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process
