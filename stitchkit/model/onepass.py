"""All stitches in one pass: common parts of routes run once, and routes through the same block run as one batch."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from stitchkit.errors import InputError
from stitchkit.model.statistics import RouteStatistics
from stitchkit.routes import Step
from stitchkit.routes.shared_work import Visit, shared_visits

_MIB = 2**20
_POSITIONS = 1600
"""Tokens or pixels that a block takes at once on a CPU.

With fewer, matrix products are too small to be fast; with more, what a block computes leaves the caches.
"""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all live tensors that operations inside it create.

    Works on every device; workspaces inside kernels are not counted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        inputs = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }
        for leaf in tree_leaves(result):
            if not isinstance(leaf, torch.Tensor) or (storage := leaf.untyped_storage()) in self._known:
                continue
            if storage._cdata not in inputs:  # no view of a tensor from outside
                # Python's object of a storage lives as long as its last tensor, views among them, on every device.
                self._known[storage] = True
                self._now += storage.nbytes()
                self.peak = max(self.peak, self._now)
                weakref.finalize(storage, self._forget, storage.nbytes())
        return result

    def _forget(self, size: int) -> None:
        self._now -= size


def in_portions(x: torch.Tensor, positions: int) -> tuple[torch.Tensor, ...]:
    """A batch `[B, ...]` in the parts that run fastest: of so many tokens or pixels on a CPU, whole on a GPU.

    Its images or activations must be independent of each other, as in evaluation mode.

    Args:
        positions: Tokens or pixels of each in the blocks that run.
    """
    if x.device.type != "cpu" or not len(x):
        return (x,)
    return torch.split(x, max(1, round(_POSITIONS / positions)))


class _Batch:
    """The activations of some visits to one anchor, one visit after the other, in the portions that run fastest.

    A portion may hold parts of several visits, so that blocks run without joining and splitting what they give.

    Args:
        images: Images of each visit.
    """

    def __init__(self, images: int):
        self.visits: list[Visit] = []
        self._images = images
        self._portions: list[torch.Tensor] = []
        self._positions = 0

    def add(self, visit: Visit, state: torch.Tensor, width: int) -> None:
        """Add the activations `[images, ...]` of a visit, with so many channels."""
        self._arrange(state, width)
        self._portions[-1:] = in_portions(torch.cat([*self._portions[-1:], state]), self._positions)  # it may have room
        self.visits.append(visit)

    def run(self, block: nn.Module, width: int) -> None:
        """Run a block on what has so many channels."""
        self._arrange(self._portions[0], width)
        self._portions = [block(portion) for portion in self._portions]

    def _arrange(self, like: torch.Tensor, width: int) -> None:
        """Make other portions if the last block was down-sampling, so that each may hold more."""
        positions = like[:1].numel() // width
        if positions != self._positions and self._portions:
            self._portions = [*in_portions(_joined(self._portions), positions)]
        self._positions = positions

    def parts(self, chosen: Container[Visit]) -> Iterator[tuple[Visit, torch.Tensor]]:
        """Copies of the activations of some visits; a view would keep its whole portion."""
        for index, visit in enumerate(self.visits):
            if visit not in chosen:
                continue
            start, stop, rows = index * self._images, (index + 1) * self._images, []
            for portion in self._portions:
                rows.append(portion[max(start, 0) : max(stop, 0)])
                start, stop = start - len(portion), stop - len(portion)
            yield visit, torch.cat(rows)

    def keep(self, visits: list[Visit]) -> None:
        """Drop the other visits."""
        if len(visits) < len(self.visits):
            kept = [part for _, part in self.parts(visits)]
            self._portions = [*in_portions(torch.cat(kept), self._positions)] if kept else []
            self.visits = visits


class OnePass:
    """Runs many stitches of an SN-Net on the same images.

    Each anchor runs once, or in turns with others if routes lead back and forth, with a batch that grows as stitches
    enter it and shrinks as they leave for the next anchor.
    Images are processed in portions as large as the memory allows, as measured with the first image. Stitches with
    batch-norm statistics of their own share no work.

    Routes that end in a dense head come one after the other: at the size of dense prediction one image already
    saturates the device, so batching routes gains nothing, and all outputs together would not fit the memory. Each step
    runs on one portion of the images after the other, because it takes far more memory than its input and output.

    Args:
        model: An SN-Net in evaluation mode.
        cfg_ids: The stitches; by default all.
        memory: Bytes that activations may take; by default half of a GPU's free memory, or 1 GiB on a CPU. The returned
            logits are not included. Not for dense heads.

    Raises:
        InputError: If there is no stitch, or the head is dense and a memory is given.
    """

    def __init__(self, model: RouteStatistics, cfg_ids: Iterable[int] | None = None, *, memory: int | None = None):
        chosen = [*(model.space.ids if cfg_ids is None else cfg_ids)]
        self._model, self._module_of = model, model.route_head.module_of
        self._alone = [*filter(model.has_statistics, chosen)]
        routes = {cfg_id: model.route_head.steps(model.space[cfg_id]) for cfg_id in chosen if cfg_id not in self._alone}
        self._visits = shared_visits(routes)
        if not chosen:
            raise InputError("there is no stitch to run; give at least one cfg_id")
        if memory is not None and not model.route_head.batches_routes:
            raise InputError(
                f"memory is {memory}, but an SN-Net for dense prediction returns a map of each image for every stitch, "
                "which no limit makes smaller; remove the limit, or give fewer images or cfg_ids"
            )
        self._memory = memory
        self._portion: dict[tuple[object, ...], int] = {}
        self._taps = {cfg_id: [step for step in steps if step.kind == "level"] for cfg_id, steps in routes.items()}
        self._after: dict[tuple[Visit | None, int], list[Visit]] = {}
        for visit in chain.from_iterable(visits for _, visits in self._visits):
            self._after.setdefault((visit.parent, visit.entry.index), []).append(visit)

    def __call__(self, x: torch.Tensor) -> dict[int, torch.Tensor]:
        """The output of every stitch by ascending `cfg_id`, as `SNNet.forward` gives it for images `[B, C, H, W]`."""
        return dict(sorted(self.outputs([x])))

    def outputs(self, portions: Sequence[torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
        """The `cfg_id` and the output of every stitch for all images, in any order.

        Args:
            portions: Images `[b, C, H, W]` that run at a time, or fewer if the memory is small.

        Raises:
            InputError: If the model is in training mode, or the memory is not enough for one image.
        """
        if self._model.training:
            raise InputError("all stitches run in one pass only in evaluation mode; call model.eval() first")
        return self._together(portions) if self._model.route_head.batches_routes else self._one_by_one(portions)

    def _together(self, portions: Sequence[torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
        outputs: dict[int, torch.Tensor] = {}
        done, count = 0, sum(map(len, portions))
        for part in chain.from_iterable(map(self._portions, portions)):
            _put(self.at_once(part), outputs, slice(done, done + len(part)), count)
            done += len(part)
        yield from outputs.items()

    def _one_by_one(self, portions: Sequence[torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
        for cfg_id in self._alone:
            yield cfg_id, _joined([self._model(x, cfg_id) for x in portions])
        waiting: list[tuple[Visit, Sequence[torch.Tensor], dict[Step, list[Any]]]]
        waiting = [(root, portions, {}) for root in self._after.get((None, 0), ())]
        while waiting:  # only tensors where routes part are kept
            visit, xs, levels = waiting.pop()
            step = visit.entry
            for number in range(visit.start - 1, max([*visit.leaves, *visit.taps]) + 1):
                if number >= visit.start:
                    step = Step("block", visit.anchor, number, adapted=visit.entry.adapted)
                module = self._module_of(step)
                xs = [module(x) for x in xs]
                for tap in visit.taps.get(number, ()):
                    levels = {**levels, tap: [*map(self._module_of(tap), xs)]}
                for cfg_id in visit.ends:
                    if (taps := self._taps[cfg_id])[-1] in visit.taps.get(number, ()):
                        assert visit.head is not None
                        of_portions = zip(*(levels[tap] for tap in taps), strict=True)
                        yield cfg_id, _joined([*map(self._module_of(visit.head), of_portions)])
                waiting += [(child, xs, levels) for child in self._after.get((visit, number + 1), ())]

    def _portions(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The images in parts that fit the memory."""
        kind = (x.shape[1:], x.dtype, x.device, torch.is_autocast_enabled(x.device.type))
        if kind not in self._portion:
            # Measured, not estimated: the tensors that a block keeps alive depend on its kernels.
            with LiveBytes() as live:
                self.at_once(x[:1])
            budget = self._memory
            if budget is None:
                budget = torch.cuda.mem_get_info(x.device)[0] // 2 if x.device.type == "cuda" else 2**30
            if live.peak > budget:
                joints = sum(len(visits) for (parent, _), visits in self._after.items() if parent)
                raise InputError(
                    f"a memory of {budget / _MIB:.3g} MiB is not enough for one image through "
                    f"{joints} joints; give at least {-(-live.peak // _MIB)} MiB, or fewer stitches"
                )
            self._portion[kind] = budget // live.peak
        return torch.split(x, self._portion[kind])

    def at_once(self, x: torch.Tensor) -> dict[int, torch.Tensor]:
        """The output of every stitch for images that fit the memory, whatever that is and in whichever mode."""
        left: dict[tuple[Visit | None, int], torch.Tensor] = {}
        # Counted down, so that activations are freed after their last use.
        uses = {source: len(visits) for source, visits in self._after.items()}
        logits = {cfg_id: self._model(x, cfg_id) for cfg_id in self._alone}

        def enter(visit: Visit) -> torch.Tensor:
            """The first activations of a visit; frees memory that no later visit needs."""
            entering = x
            if visit.parent is not None:
                source = (visit.parent, visit.entry.index)
                uses[source] -= 1
                entering = left[source] if uses[source] else left.pop(source)
            entered: torch.Tensor = self._module_of(visit.entry)(entering)
            return entered

        for label, visits in self._visits:
            # By type, as in mixed precision a stem may give another than a layer, and by whether weights are updated.
            batches: dict[tuple[torch.dtype, bool], _Batch] = {}
            anchor = self._model.views[label]
            for number in range(sum(anchor.depths)):
                width = anchor.boundaries[number].layout.width
                for visit in visits:
                    if visit.start == number:
                        state = enter(visit)
                        batch = batches.setdefault((state.dtype, visit.entry.adapted), _Batch(len(x)))
                        batch.add(visit, state, width)
                for (_, adapted), batch in batches.items():
                    batch.run(self._module_of(Step("block", label, number, adapted=adapted)), width)
                    leaving = [visit for visit in batch.visits if number in visit.leaves]
                    left |= {(visit, number + 1): part for visit, part in batch.parts(leaving)}
                    batch.keep([visit for visit in batch.visits if visit.ends or max(visit.leaves) > number])
                batches = {kind: batch for kind, batch in batches.items() if batch.visits}
            for batch in batches.values():
                logits |= self._finish(batch)
        return logits

    def _finish(self, batch: _Batch) -> dict[int, torch.Tensor]:
        """The heads of the routes that end in an anchor; uncut ones may have another than stitched ones."""
        heads: dict[Step, dict[int, torch.Tensor]] = {}
        for visit, part in batch.parts(batch.visits):
            assert visit.head is not None
            heads.setdefault(visit.head, {}).update(dict.fromkeys(visit.ends, part))
        logits: dict[int, torch.Tensor] = {}
        for head, parts in heads.items():
            output = self._module_of(head)(_joined([*parts.values()]))
            logits |= zip(parts, output.chunk(len(parts)), strict=True)
        return logits


def _put(logits: dict[int, torch.Tensor], outputs: dict[int, torch.Tensor], rows: slice, count: int) -> None:
    """Write a portion into the logits of all images; joining portions at the end would hold everything twice."""
    for cfg_id, part in logits.items():
        if cfg_id not in outputs:
            outputs[cfg_id] = part.new_empty(count, *part.shape[1:])
        outputs[cfg_id][rows] = part


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """Parts of a batch, concatenated; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
