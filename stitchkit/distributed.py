"""The process group: the place of this process in it, and sums over all ranks.

A run always has a process group, even alone: one path through the code serves a laptop and many GPUs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore, rendezvous  # type: ignore[attr-defined]

from stitchkit.errors import InputError, one_line
from stitchkit.restarts import restarts

Made = TypeVar("Made")


@dataclass(frozen=True)
class World:
    """This process among all ranks, and where it computes."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_primary(self) -> bool:
        """Whether this process writes files and prints messages."""
        return self.rank == 0


def choose_device(device: str | None = None) -> torch.device:
    """The device of this process: `cpu`, `cuda` or `cuda:N`, by default CUDA if available.

    Without a number, each rank takes the GPU with its local number.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", kind):
        raise InputError(f"device '{kind}' is not supported; use cpu, cuda or cuda:N")
    chosen, count = torch.device(kind), torch.cuda.device_count()
    if chosen.type == "cpu":
        return chosen
    index = int(os.environ.get("LOCAL_RANK", 0)) if chosen.index is None else chosen.index
    if index >= count:
        how = "start fewer processes, or use" if count else "use"
        raise InputError(f"there is no GPU {index}: PyTorch finds {count or 'none here'}; {how} --device cpu")
    return torch.device("cuda", index)


def init_world(device: str | None = None) -> World:
    """Join the group that the launcher describes in the environment, or start a group of one."""
    chosen = choose_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if not dist.is_initialized():
        # Two backends: plain data are exchanged on the CPU, without waiting for a GPU.
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        if restarts():
            # The launcher's store outlives its ranks, and still holds the addresses of those that died.
            store, rank, size = next(rendezvous("env://"))
            store = PrefixStore(f"restart{restarts()}", store)
            dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        elif "WORLD_SIZE" in os.environ:
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    return World(dist.get_rank(), dist.get_world_size(), chosen)


@contextmanager
def ranks_together() -> Iterator[None]:
    """Raise the error of a rank whose connection to another is lost as an `InputError`: the other says why it ended."""
    try:
        yield
    except RuntimeError as error:
        # gloo has no class of errors of its own, only its own files in their messages.
        if not isinstance(error, dist.DistError) and "/gloo/" not in str(error):
            raise
        raise InputError(
            f"another rank has ended and says why ({one_line(error)}); resume with --resume auto"
        ) from error


_alone = ContextVar("alone", default=False)


def are_together() -> bool:
    """Whether ranks exchange data now: there are several, and the others do not wait for `from_primary`."""
    return dist.is_initialized() and not _alone.get()


def from_primary(world: World, make: Callable[[], Made]) -> Made:
    """Plain data made by the primary rank, on all ranks: other machines may not see the same files.

    Meanwhile it is alone: what it sums or gathers over all ranks is its own.
    """
    shared: list[Any] = [None, ""]
    if world.is_primary:
        before = _alone.set(True)
        try:
            shared[0] = make()
        except InputError as error:  # the others wait for an answer, and would hang without one
            shared[1] = str(error)
        finally:
            _alone.reset(before)
    dist.broadcast_object_list(shared)
    if shared[1]:
        raise InputError(shared[1])
    made: Made = shared[0]
    return made


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Sum `tensor` over all ranks, in place; without a process group it does not change."""
    return _reduced(tensor, dist.ReduceOp.SUM)


def most_of_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The largest value of each element of `tensor` on any rank, in place; without a process group it stays."""
    return _reduced(tensor, dist.ReduceOp.MAX)


def _reduced(tensor: torch.Tensor, how: dist.ReduceOp.RedOpType) -> torch.Tensor:
    if are_together():
        dist.all_reduce(tensor, op=how)
    return tensor


def gather_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` of every rank, stacked in the order of ranks: `[...]` to `[ranks, ...]`."""
    if not are_together():
        return tensor[None]
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor)
    return torch.stack(parts)


def gather_objects(value: Made) -> list[Made]:
    """Plain data of every rank, in the order of ranks; without a process group, those of this process."""
    if not are_together():
        return [value]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, value)
    return parts


def gather_on(rank: int, value: Made, world: World) -> list[Made]:
    """Plain data of every rank on one of them, in the order of ranks; empty on the others."""
    if not are_together():
        return [value]
    parts: list[Any] | None = [None] * world.size if world.rank == rank else None
    dist.gather_object(value, parts, dst=rank)
    return parts or []
