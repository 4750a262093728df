"""Several commands on two ranks, in one pair of forked processes: starting one costs more than a pico run."""

from __future__ import annotations

import os
import pkgutil
import socket
from collections.abc import Callable, Mapping, Sequence

from torch.multiprocessing.spawn import start_processes

from stitchkit.cli import main
from tests.distributed.forks import settle


def run_on_two_ranks(
    commands: Sequence[Sequence[object]],
    replace: Mapping[str, object] | None = None,
    codes: Sequence[int] | None = None,
) -> None:
    """Run `stitchkit` commands one after the other, each as two ranks of one group.

    Args:
        commands: Arguments of `stitchkit`.
        codes: Their exit statuses on both ranks; by default 0.
        replace: What to put in the place of functions, by their path; checks that look at both ranks.
    """
    ports = [_free_port() for _ in commands]
    words = [list(map(str, command)) for command in commands]
    in_two_processes(_rank, words, ports, dict(os.environ), replace or {}, codes or [0] * len(commands))


def in_two_processes(function: Callable[..., None], *arguments: object) -> None:
    """Run a function of a module in two processes, with the number of the process before the arguments."""
    start_processes(function, arguments, nprocs=2, start_method="forkserver")  # type: ignore[no-untyped-call]


def _free_port() -> int:
    with socket.socket() as place:
        place.bind(("localhost", 0))
        return int(place.getsockname()[1])


def _rank(
    rank: int,
    commands: list[list[str]],
    ports: list[int],
    environment: Mapping[str, str],
    replace: Mapping[str, object],
    codes: Sequence[int],
) -> None:
    settle(environment)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    for path, function in replace.items():
        place, _, name = path.rpartition(".")
        setattr(pkgutil.resolve_name(place), name, function)
    for command, port, code in zip(commands, ports, codes, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        assert main(command) == code
