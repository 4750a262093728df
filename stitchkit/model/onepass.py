"""All stitches in one pass: common parts of routes run once, and routes through the same block run as one batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import torch
from torch import nn

from stitchkit.errors import InputError
from stitchkit.model.activation_memory import LiveBytes, in_portions
from stitchkit.model.statistics import RouteStatistics
from stitchkit.routes import Step
from stitchkit.routes.shared_work import Visit, shared_visits

_MIB = 2**20


class _Kind(NamedTuple):
    """What visits must agree in to run as one batch: the type of their activations, and the weights of the blocks."""

    dtype: torch.dtype
    adapted: bool


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

    Args:
        model: An SN-Net in evaluation mode.
        cfg_ids: The stitches; by default all.
        memory: Bytes that activations may take; by default half of a GPU's free memory, or 1 GiB on a CPU. The returned
            logits are not included.
    """

    def __init__(self, model: RouteStatistics, cfg_ids: Iterable[int] | None = None, *, memory: int | None = None):
        chosen = [*(model.space.ids if cfg_ids is None else cfg_ids)]
        self._model = model
        self._alone = [*filter(model.has_statistics, chosen)]
        self._visits = shared_visits({cfg_id: model.steps(cfg_id) for cfg_id in chosen if cfg_id not in self._alone})
        if not chosen:
            raise InputError("there is no stitch to run; give at least one cfg_id")
        self._memory = memory
        self._portion: dict[tuple[object, ...], int] = {}
        every = chain.from_iterable(visits for _, visits in self._visits)
        self._uses = Counter((visit.parent, visit.entry.index) for visit in every if visit.parent is not None)

    def __call__(self, x: torch.Tensor) -> dict[int, torch.Tensor]:
        """The output of every stitch by ascending `cfg_id`, as `SNNet.forward` gives it for images `[B, C, H, W]`."""
        if self._model.training:
            raise InputError("all stitches run in one pass only in evaluation mode; call model.eval() first")
        outputs: dict[int, torch.Tensor] = {}
        done = 0
        for part in self._portions(x):
            _put(self.at_once(part), outputs, slice(done, done + len(part)), len(x))
            done += len(part)
        return dict(sorted(outputs.items()))

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
                raise InputError(
                    f"a memory of {budget / _MIB:.3g} MiB is not enough for one image through "
                    f"{sum(self._uses.values())} joints; give at least {-(-live.peak // _MIB)} MiB, or fewer stitches"
                )
            self._portion[kind] = budget // live.peak
        return torch.split(x, self._portion[kind])

    def at_once(self, x: torch.Tensor) -> dict[int, torch.Tensor]:
        """The output of every stitch for images that fit the memory, whatever that is and in whichever mode."""
        left: dict[tuple[Visit, int], torch.Tensor] = {}
        uses = self._uses.copy()  # counted down, so that activations are freed after their last use
        logits = {cfg_id: self._model(x, cfg_id) for cfg_id in self._alone}

        def enter(visit: Visit) -> torch.Tensor:
            """The first activations of a visit; frees memory that no later visit needs."""
            entering = x
            if visit.parent is not None:
                source = (visit.parent, visit.entry.index)
                uses[source] -= 1
                entering = left[source] if uses[source] else left.pop(source)
            entered: torch.Tensor = self._model.module_of(visit.entry)(entering)
            return entered

        for label, visits in self._visits:
            # In mixed precision a stem may give another type than a layer.
            batches: dict[_Kind, _Batch] = {}
            anchor = self._model.views[label]
            for number in range(sum(anchor.depths)):
                width = anchor.boundaries[number].layout.width
                for visit in visits:
                    if visit.start == number:
                        state = enter(visit)
                        batch = batches.setdefault(_Kind(state.dtype, visit.entry.adapted), _Batch(len(x)))
                        batch.add(visit, state, width)
                for kind, batch in batches.items():
                    batch.run(self._model.module_of(Step("block", label, number, adapted=kind.adapted)), width)
                    leaving = [visit for visit in batch.visits if number in visit.leaves]
                    left |= {(visit, number + 1): part for visit, part in batch.parts(leaving)}
                    batch.keep(
                        [visit for visit in batch.visits if visit.cfg_id is not None or max(visit.leaves) > number]
                    )
                batches = {kind: batch for kind, batch in batches.items() if batch.visits}
            for batch in batches.values():
                logits |= self._finish(batch)
        return logits

    def _finish(self, batch: _Batch) -> dict[int, torch.Tensor]:
        """The heads of the routes that end in an anchor; uncut ones may have another than stitched ones."""
        heads: dict[Step, dict[int, torch.Tensor]] = {}
        for visit, part in batch.parts(batch.visits):
            assert visit.head is not None
            assert visit.cfg_id is not None
            heads.setdefault(visit.head, {})[visit.cfg_id] = part
        logits: dict[int, torch.Tensor] = {}
        for head, parts in heads.items():
            output = self._model.module_of(head)(_joined([*parts.values()]))
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
