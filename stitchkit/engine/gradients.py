"""Gradients of a network of routes on several ranks: only those that some rank has are exchanged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import nn

_BUCKET_BYTES = 2**20  # what is larger is worth a message of its own, from where it lies


class GradientReducer:
    """Keeps the ranks' copies of a network alike, as DistributedDataParallel does, with fewer bytes.

    A step touches one route on each rank. DistributedDataParallel sends zeros for all the rest; this
    announces which gradients exist, one byte each, and sends those. One that a rank lacks counts as zero, one that all
    lack stays None. It sends them after the backward pass, not during it, so it pays where routes of ranks agree. From
    here on, parameters and buffers are those of the first rank; `buffers` sends its buffers before each step too.
    """

    def __init__(self, network: nn.Module, *, buffers: bool = True):
        self._parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        saved = network.state_dict().keys()
        # Those that checkpoints leave out, such as tables of positions, follow from the settings and never change.
        self._buffers = [buffer for name, buffer in network.named_buffers() if buffers and name in saved]
        _broadcast([*network.parameters(), *network.buffers()])

    def broadcast_buffers(self) -> None:
        """Give all ranks the buffers of the first; before the first forward pass of a step."""
        _broadcast(self._buffers)

    @torch.no_grad()
    def reduce(self) -> None:
        """Average gradients over ranks; after the last backward pass of a step."""
        gradients = []
        for parameter in self._used_somewhere():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        if gradients:  # before the sum: in float16 the sum of all ranks could overflow
            torch._foreach_div_(gradients, dist.get_world_size())
        pending = []
        for bucket in _buckets(gradients):
            flat = _pack(bucket)
            pending.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
        for bucket, flat, work in pending:
            work.wait()
            _unpack(flat, bucket)

    def _used_somewhere(self) -> list[nn.Parameter]:
        """The parameters that have a gradient on some rank."""
        # The host knows which; exchanged on the CPU, no rank waits for its device.
        has_gradient = torch.tensor([parameter.grad is not None for parameter in self._parameters], dtype=torch.uint8)
        dist.all_reduce(has_gradient, op=dist.ReduceOp.MAX)
        return [parameter for parameter, used in zip(self._parameters, has_gradient.tolist(), strict=True) if used]


@torch.no_grad()
def _broadcast(tensors: Iterable[torch.Tensor]) -> None:
    for bucket in _buckets(tensors):
        flat = _pack(bucket)
        dist.broadcast(flat, src=0)
        _unpack(flat, bucket)


def _buckets(tensors: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Tensors of one type that make up a message, in the same order on all ranks: each knows them by their places."""
    kinds: dict[torch.dtype, list[torch.Tensor]] = defaultdict(list)
    for tensor in tensors:
        kinds[tensor.dtype].append(tensor)
    for kind in kinds.values():
        bucket: list[torch.Tensor] = []
        size = 0
        for tensor in kind:
            if bucket and size + tensor.nbytes > _BUCKET_BYTES:
                yield bucket
                bucket, size = [], 0
            bucket.append(tensor)
            size += tensor.nbytes
        yield bucket


def _pack(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The tensors as one vector; of a single one no copy, where its elements lie in order."""
    if len(tensors) == 1:
        return tensors[0].detach().reshape(-1)
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _unpack(flat: torch.Tensor, tensors: list[torch.Tensor]) -> None:
    if flat.data_ptr() == tensors[0].data_ptr():
        return
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    torch._foreach_copy_(tensors, [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)])
