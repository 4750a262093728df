"""Gradients of a network of routes on several ranks: only those that exist on some rank are exchanged."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

import torch
import torch.distributed as dist
from torch import nn
from torch._utils import _flatten_dense_tensors, _take_tensors, _unflatten_dense_tensors  # as DistributedDataParallel

_BUCKET_BYTES = 2**20  # larger tensors are sent by themselves, without a copy


class GradientReducer:
    """Keeps the ranks' copies of a network equal, as DistributedDataParallel does, with fewer bytes.

    A step touches one route on each rank. DistributedDataParallel sends zeros for everything else; this
    class announces which gradients exist, one byte each, and sends only those. A gradient that one rank lacks counts
    as zero; one that all ranks lack stays None. Gradients are sent after the backward pass, not during it, so this
    pays off if the ranks' routes overlap. Creating it gives all ranks the parameters and buffers of the first; with
    `buffers`, its buffers are also sent before each step.
    """

    def __init__(self, network: nn.Module, *, buffers: bool = True):
        self._parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        saved = network.state_dict().keys()
        # Buffers that checkpoints leave out, such as tables of positions, follow from the settings and never change.
        self._buffers = [buffer for name, buffer in network.named_buffers() if buffers and name in saved]
        _broadcast([*network.parameters(), *network.buffers()])

    def broadcast_buffers(self) -> None:
        """Give all ranks the buffers of the first. Call it before the first forward pass of a step."""
        _broadcast(self._buffers)

    @torch.no_grad()
    def reduce(self) -> None:
        """Average gradients over ranks. Call it after the last backward pass of a step."""
        # The host knows which exist, so the exchange is on the CPU and no rank waits for its device.
        has_gradient = torch.tensor([parameter.grad is not None for parameter in self._parameters], dtype=torch.uint8)
        dist.all_reduce(has_gradient, op=dist.ReduceOp.MAX)
        gradients = []
        for parameter in compress(self._parameters, has_gradient.tolist()):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        if gradients:  # divide before the sum, which could overflow in float16
            torch._foreach_div_(gradients, dist.get_world_size())
        pending = []
        for bucket in _take_tensors(gradients, _BUCKET_BYTES):  # type: ignore[no-untyped-call]
            flat = _flatten_dense_tensors(bucket)  # type: ignore[no-untyped-call]
            pending.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
        for bucket, flat, work in pending:
            work.wait()
            _unpack(flat, bucket)


@torch.no_grad()
def _broadcast(tensors: Sequence[torch.Tensor]) -> None:
    for bucket in _take_tensors(tensors, _BUCKET_BYTES):  # type: ignore[no-untyped-call]
        flat = _flatten_dense_tensors(bucket)  # type: ignore[no-untyped-call]
        dist.broadcast(flat, src=0)
        _unpack(flat, bucket)


def _unpack(flat: torch.Tensor, tensors: list[torch.Tensor]) -> None:
    if flat.data_ptr() != tensors[0].data_ptr():  # a single contiguous tensor is not copied
        torch._foreach_copy_(tensors, _unflatten_dense_tensors(flat, tensors))  # type: ignore[no-untyped-call]
