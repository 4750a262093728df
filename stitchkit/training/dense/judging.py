"""What stitches of a dense SN-Net are worth on a split: the sums of each image; and its anchors between epochs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from stitchkit.display import counted
from stitchkit.distributed import from_primary, gather_objects
from stitchkit.engine.epoch_state import NotFinite
from stitchkit.engine.loop import Trainer
from stitchkit.engine.recovery import advising_evaluation
from stitchkit.engine.settings import Autocast
from stitchkit.errors import InputError
from stitchkit.measure.dense_sums import MIN_DEPTH, NOT_KNOWN, depth_sums, segmentation_sums
from stitchkit.measure.evaluate import SAVE_EVERY
from stitchkit.measure.ledger import LEDGER, Ledger
from stitchkit.measure.per_image import PerImage
from stitchkit.measure.scores import DenseScore, DepthScore, SegmentationScore
from stitchkit.model.onepass import OnePass
from stitchkit.model.snnet import SNNet
from stitchkit.networks.mode import evaluating
from stitchkit.networks.timm_model import as_timm
from stitchkit.progress import progress
from stitchkit.settings.dense_recipe import DenseRecipe
from stitchkit.training.dense.data import Pair, PairLoader
from stitchkit.training.dense.windows import Windows
from stitchkit.training.run_network import run_network
from stitchkit.training.session import Session
from stitchkit.training.validation import Judgement, Validation

Outputs = Iterable[tuple[int, torch.Tensor]]
"""The `cfg_id` of each network and its outputs for windows, `[W, K, h, w]`."""
Run = Callable[[Sequence[torch.Tensor]], Outputs]
"""Runs networks, in any order, on windows in portions `[w, C, H, W]`, one after the other."""


class DenseJudge:
    """Judges networks image by image.

    Args:
        num_classes: Number of classes; for depth, any number.
        sides: Height and width of the networks' images.
        portion: Windows that run at a time.
    """

    def __init__(
        self, settings: DenseRecipe, num_classes: int, sides: tuple[int, int], autocast: Autocast, portion: int
    ):
        self.score: DenseScore = DepthScore() if settings.task == "depth" else SegmentationScore(num_classes)
        self._windows = Windows.of_task(settings, sides)
        self._num_classes, self._max_depth = num_classes, settings.max_depth
        self._autocast, self._portion = autocast, portion

    @classmethod
    def of_session(cls, session: Session, autocast: Autocast) -> DenseJudge:
        """That of a run's networks, with as many windows at a time as it judges images."""
        model, loader = session.model, session.loaders.validation
        assert isinstance(loader, PairLoader), "it is of a dense task"
        sides = (session.input_size[1], session.input_size[2])
        return cls(session.recipe.dense, as_timm(model).num_classes, sides, autocast, loader.batch_size)

    @torch.no_grad()
    def sums(
        self, network: nn.Module, run: Run, cfg_ids: Sequence[int], batches: Iterable[Sequence[Pair]],
        names: Mapping[int, str] | None = None,
    ) -> Iterator[PerImage]:  # fmt: skip
        """The sums of networks on each batch of images.

        Args:
            network: The module that they belong to; its mode is restored.
            run: Runs the networks.
            cfg_ids: The networks.
            batches: The images with their targets.
            names: What messages call the networks; by default they give the `cfg_id`.

        Raises:
            NotFinite: If an output is not; what to do then depends on whether the network is in training.
        """
        for batch in batches:
            targets, sums = [target for _, target in batch], dict[int, np.ndarray]()
            for cfg_id, outputs in self.outputs(network, run, batch):
                name = names[cfg_id] if names else f"the network with cfg_id {cfg_id}"
                each = zip(outputs, targets, strict=True)
                sums[cfg_id] = np.concatenate([self._of_image(name, output, target) for output, target in each])
            own, truth = np.split(np.stack([sums[cfg_id] for cfg_id in cfg_ids]), [self.score.own], axis=-1)
            assert (truth == truth[:1]).all(), "all networks judge the same images"
            yield PerImage.of_all(cfg_ids, self.score, own, truth[0].astype(np.int32))

    @torch.no_grad()
    def outputs(
        self, network: nn.Module, run: Run, batch: Sequence[Pair]
    ) -> Iterator[tuple[int, Iterator[torch.Tensor]]]:
        """The `cfg_id` of each network and its outputs `[K, H, W]` for each image, at the size of its target.

        Take the outputs of one before those of the next. Arguments as for `sums`.
        """
        cut = self._windows.cut([image for image, _ in batch])
        targets = [target for _, target in batch]
        with evaluating(network), self._autocast():
            for cfg_id, outputs in run(cut.portions(self._portion)):
                yield cfg_id, cut.merged(outputs, targets)

    def _of_image(self, name: str, output: torch.Tensor, target: torch.Tensor) -> np.ndarray:
        if not output.isfinite().all():  # the class of NaN would be 0
            raise NotFinite(f"the outputs of {name} are not finite")
        if isinstance(self.score, DepthScore):
            return depth_sums(output, target[None], self._max_depth).cpu().numpy()
        return segmentation_sums(output[None], target[None], self._num_classes).cpu().numpy()

    def over_ranks(self, own: Iterable[PerImage]) -> PerImage:
        """The sums of the images of all ranks, in the order of the ranks, from those of this rank."""
        parts = [part for each in gather_objects([*own]) for part in each]
        if not parts:
            raise InputError("there is no image to evaluate on; check the validation set")
        whole = PerImage.joined(parts)
        if not whole.truth.any():  # there are no figures
            lacking = f"a known class, one other than {NOT_KNOWN}; check the masks of the validation set"
            if isinstance(self.score, DepthScore):
                lacking = (
                    f"a depth from {MIN_DEPTH:g} to {self._max_depth:g} m; check the unit of the depth maps, "
                    "millimetres in a PNG and metres in an .npy file, and --max-depth (max_depth)"
                )
            raise InputError(f"no pixel of {counted(len(whole.truth), 'image')} has {lacking}")
        return whole

    def figures(
        self, network: nn.Module, anchors: Mapping[str, int], batches: Iterable[Sequence[Pair]]
    ) -> dict[str, dict[str, float]]:
        """The figures of uncut anchors, by their labels, over the images of all ranks."""

        def run(portions: Sequence[torch.Tensor]) -> Outputs:
            return ((cfg_id, torch.cat([network(part, cfg_id) for part in portions])) for cfg_id in anchors.values())

        names = {cfg_id: f"anchor '{label}'" for label, cfg_id in anchors.items()}
        whole = self.over_ranks(self.sums(network, run, [*names], batches, names))
        return {label: whole.figures(cfg_id) for label, cfg_id in anchors.items()}


class DenseEvaluation:
    """Evaluates stitches in one pass over the images; every rank makes one.

    Args:
        origin: All that the figures depend on.
        ledgers: The ledger on the primary rank, which keeps the sums of images beside it; none on the others.
    """

    def __init__(self, session: Session, model: SNNet, origin: Mapping[str, object], ledgers: Sequence[Ledger]):
        loader = session.loaders.validation
        assert isinstance(loader, PairLoader), "it is of a dense task"
        self._session, self._model, self._ledgers, self._loader = session, model, ledgers, loader
        self._judge = DenseJudge.of_session(session, session.autocast)
        self._origin = {**origin, "ranks": session.world.size}

    def stitches(self, cfg_ids: Sequence[int]) -> Iterator[dict[int, dict[str, float]]]:
        """The figures of stitches, after one pass over the images.

        Sums are kept before figures are given, so that all in the ledger have them.
        """
        if not cfg_ids:
            return
        world = self._session.world
        with advising_evaluation():
            sums = self._judge.over_ranks(self._of_rank(cfg_ids))
        numbers = [number for rank in range(world.size) for number in range(rank, len(sums.truth), world.size)]
        sums = replace(sums.in_order(numbers), names=self._loader.dataset.names)
        from_primary(world, lambda: [*map(sums.keep, self._ledgers)])
        yield {cfg_id: sums.figures(cfg_id) for cfg_id in cfg_ids}
        self._progress.unlink(missing_ok=True)  # only now: the ledger has all rows

    @property
    def _progress(self) -> Path:
        return self._session.folder / f"{LEDGER}.part{self._session.world.rank}"

    def _of_rank(self, cfg_ids: Sequence[int]) -> list[PerImage]:
        """The sums of this rank's images; those so far are saved every few seconds."""
        of = {**self._origin, "cfg_ids": [*cfg_ids]}
        try:
            parts = [PerImage.read(self._progress, of=of, file=self._judge.score.file)]
        except InputError:  # no evaluation of the same was killed, or its file is damaged
            parts = []
        done, saved = sum(len(part.truth) for part in parts), time.monotonic()
        batches = self._loader.batches(done)
        sums = self._judge.sums(self._model, OnePass(self._model, cfg_ids).outputs, cfg_ids, batches)
        for part in progress(sums, self._session.world, "evaluation", unit="batches"):
            parts.append(part)
            if time.monotonic() - saved >= SAVE_EVERY:
                parts, saved = [PerImage.joined(parts)], time.monotonic()
                parts[0].write(self._progress, of=of)
        return parts


def check_sums_beside(session: Session, ledger: Ledger) -> None:
    """Refuse, before hours of evaluation, sums that are damaged or of other images than those of the run."""
    judge, loader = DenseJudge.of_session(session, session.autocast), session.loaders.validation
    assert isinstance(loader, PairLoader), "it is of a dense task"
    before = PerImage.of_rows(ledger, judge.score.metric)
    if before is not None and before.names != loader.dataset.names:
        advice = f"choose another --experiment or move the ledger '{ledger.path}' away"
        raise InputError(f"'{before.file(ledger.path)}' is of other images; {advice}")


class DenseFigures(Validation):
    """Judges anchors by the metric of the task, on the images of the validation split at their own sizes."""

    def __init__(self, session: Session, trainer: Trainer):
        super().__init__(session, trainer)
        self._judge = DenseJudge.of_session(session, trainer.autocast)
        self._anchors = run_network(session.model).anchors

    def before(self) -> None:
        """The head is untrained, so there is nothing to measure."""

    def judge(self, after_batch: Callable[[], None], *, due: bool) -> Judgement:
        """The figures of the anchors."""
        metric, networks = self._judge.score.metric, self._networks(self._anchors)
        columns: dict[str, float | str] = {
            f"eval_{label}{end}_{metric}": "" for end in networks for label in self._anchors
        }
        if not due:
            return Judgement(columns)
        loader, scores = self.session.loaders.validation, dict[str, dict[str, float]]()
        assert isinstance(loader, PairLoader), "it is of a dense task"
        for end, network in networks.items():
            own = self._judge.figures(network, self._anchors, loader.batches(after_batch=after_batch))
            scores |= {label + end: figures for label, figures in own.items()}
        columns |= {f"eval_{label}_{metric}": figures[metric] for label, figures in scores.items()}
        every = {f"eval_{label}_{key}": value for label, figures in scores.items() for key, value in figures.items()}
        *_, ranking = networks
        mean = sum(scores[label + ranking][metric] for label in self._anchors) / len(self._anchors)
        words = f"{metric}  " + "  ".join(f"{label} {figures[metric]:.2f}" for label, figures in scores.items())
        return Judgement(columns, every, metric=mean, words=words)
