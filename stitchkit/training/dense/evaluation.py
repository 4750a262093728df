"""`--eval` of networks for dense prediction: what every stitch gives on every image."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stitchkit.distributed import from_primary
from stitchkit.engine.recovery import advising_evaluation
from stitchkit.errors import InputError
from stitchkit.measure.evaluate import SAVE_EVERY
from stitchkit.measure.image_sums import ImageSums, read_sums, sums_beside, sums_file, write_sums
from stitchkit.measure.ledger import LEDGER, Ledger
from stitchkit.model.dense import DensePass, DenseSNNet
from stitchkit.progress import progress
from stitchkit.training.dense.data import PairLoader
from stitchkit.training.dense.judging import DenseJudge
from stitchkit.training.session import Session


@dataclass(frozen=True)
class DenseFigure:
    """What a stitch is worth: the figures of its row in a ledger."""

    figures: Mapping[str, float]


class DenseEvaluation:
    """Evaluates stitches in one pass over the images; every rank makes one.

    Args:
        origin: All that the figures depend on.
        ledgers: The ledger on the primary rank, which keeps the sums of images beside it; none on the others.
    """

    def __init__(self, session: Session, model: DenseSNNet, origin: Mapping[str, object], ledgers: Sequence[Ledger]):
        loader = session.loaders.validation
        assert isinstance(loader, PairLoader), "it is of a dense task"
        self._session, self._model, self._ledgers, self._loader = session, model, ledgers, loader
        self._judge = DenseJudge.of_session(session, session.autocast)
        self._origin = {**origin, "ranks": session.world.size}

    def stitches(self, cfg_ids: Sequence[int]) -> Iterator[dict[int, DenseFigure]]:
        """The figures of stitches, after one pass over the images.

        Sums are kept before figures are given, so that all in the ledger have them.
        """
        if not cfg_ids:
            return
        with advising_evaluation():
            figures = self._kept(cfg_ids)
        yield figures
        self._progress.unlink(missing_ok=True)  # only now: the ledger has all rows

    def _kept(self, cfg_ids: Sequence[int]) -> dict[int, DenseFigure]:
        """The figures of stitches, whose sums are in the file beside the ledger."""
        world = self._session.world
        sums = self._judge.over_ranks(self._of_rank(cfg_ids))
        numbers = [number for rank in range(world.size) for number in range(rank, len(sums.truth), world.size)]
        sums = sums.in_order(numbers, self._loader.dataset.names)
        from_primary(world, lambda: self._keep(sums))
        return {cfg_id: DenseFigure(sums.figures(cfg_id)) for cfg_id in cfg_ids}

    @property
    def _progress(self) -> Path:
        return self._session.folder / f"{LEDGER}.part{self._session.world.rank}"

    def _of_rank(self, cfg_ids: Sequence[int]) -> list[ImageSums]:
        """The sums of this rank's images; those so far are saved every few seconds."""
        of = {**self._origin, "cfg_ids": [*cfg_ids]}
        try:
            parts = [read_sums(self._progress, of=of)]
        except InputError:  # no evaluation of the same was killed, or its file is damaged
            parts = []
        done, saved = sum(len(part.truth) for part in parts), time.monotonic()
        batches = self._loader.batches(done)
        sums = self._judge.sums(self._model, DensePass(self._model, cfg_ids), cfg_ids, batches)
        for part in progress(sums, self._session.world, "evaluation", unit="batches"):
            parts.append(part)
            if time.monotonic() - saved >= SAVE_EVERY:
                parts, saved = [ImageSums.joined(parts)], time.monotonic()
                write_sums(self._progress, parts[0], of=of)
        return parts

    def _keep(self, sums: ImageSums) -> None:
        for ledger in self._ledgers:
            before = sums_beside(ledger.path) if ledger.rows else None
            kept = [row["cfg_id"] for row in ledger.rows if before is not None and before.has([row["cfg_id"]])]
            write_sums(sums_file(ledger.path), before.of(kept).with_more(sums) if before and kept else sums)


def check_sums_beside(ledger: Ledger, loader: PairLoader) -> None:
    """Refuse, before hours of evaluation, sums that are damaged or of other images than these."""
    before, names = sums_beside(ledger.path) if ledger.rows else None, loader.dataset.names
    if before is not None and before.names != names:
        advice = f"choose another --experiment or move the ledger '{ledger.path}' away"
        raise InputError(f"'{sums_file(ledger.path)}' is of other images; {advice}")
