"""What is judged between the epochs of a training: the anchors, or stitches by their features."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from torch import nn

from stitchkit.engine.loop import Trainer
from stitchkit.measure.evaluate import batches_of
from stitchkit.networks.timm_model import as_timm
from stitchkit.training.features import FeatureLoss, held_out_loss, judged_routes
from stitchkit.training.judging import judged_of
from stitchkit.training.preserve import UntouchedAnchors, warn_of_guesses
from stitchkit.training.run_network import run_network
from stitchkit.training.session import Session

_logger = logging.getLogger(__name__)

_EMA = "_ema"
_WORST = float("-inf")


@dataclass(frozen=True)
class Judgement:
    """The figures of an epoch."""

    columns: Mapping[str, float | str]  # of `summary.csv`, in their order; a cell is empty if the epoch was not judged
    figures: Mapping[str, float] = field(default_factory=dict)  # for the trackers of experiments
    losses: tuple[float, ...] = ()  # those that must be finite
    metric: float = _WORST  # ranks the epochs, the higher the better
    words: str = ""  # for the log


class Validation(ABC):
    """Judges a network between epochs, on the validation split."""

    def __init__(self, session: Session, trainer: Trainer):
        self.session = session
        self.trainer = trainer

    @abstractmethod
    def before(self) -> None:
        """Judge the network before the training, and log it."""

    @abstractmethod
    def judge(self, after_batch: Callable[[], None], *, due: bool) -> Judgement:
        """Judge an epoch if it is due; `after_batch` is called equally often on all ranks."""

    def say_what_ranks(self) -> None:
        """Log which weights choose the best epoch, if there is a moving average: evaluations use that."""
        if (average := self.trainer.task.average) is not None:
            *_, ranking = self._networks().values()
            reason = ": --model-ema-force-cpu leaves the moving average unjudged"
            weights = "moving average of the weights" if ranking is average else f"weights themselves{reason}"
            _logger.info("model_best is chosen by the %s", weights)

    def _networks(self, labels: Collection[str] = ()) -> dict[str, nn.Module]:
        """The network and the moving average, by the end of their names, unique beside `labels`; the last one ranks."""
        task, end = self.trainer.task, _EMA
        networks = {"": task.network}
        # Validation on a CPU would take hours.
        if task.average is not None and not self.trainer.settings.model_ema_force_cpu:
            while any(label + end in labels for label in labels):
                end += _EMA
            networks[end] = task.average
        return networks


class Anchors(Validation):
    """Judges anchors, or a plain model, as an evaluation does."""

    def __init__(self, session: Session, trainer: Trainer, untouched: UntouchedAnchors):
        super().__init__(session, trainer)
        self._untouched, self._judged = untouched, judged_of(session)
        self._routes = run_network(session.model).anchors or {"model": 0}

    def before(self) -> None:
        """Keep the accuracy of each anchor."""
        network = run_network(self.session.model)
        if not network.anchors or network.level_blocks:  # a shared head is untrained, so there is nothing to measure
            return
        scores = self._figures(self.session.model, "")
        accuracies = self._untouched.alone = {label: score["acc1"] for label, score in scores.items()}
        _logger.info("anchors before training  acc1  %s", _shown(accuracies, ".2f"))
        if self.session.recipe.stitch.way_to_preserve != "none":
            warn_of_guesses(accuracies, as_timm(self.session.model).num_classes)

    def judge(self, after_batch: Callable[[], None], *, due: bool) -> Judgement:
        """The figures of anchors or the plain model, and how much each accuracy changed since before the training."""
        metric, alone, networks = self._judged.score.metric, self._untouched.alone, self._networks(self._routes)
        names = [f"eval_{label}{end}_{metric}" for end in networks for label in self._routes]
        columns: dict[str, float | str] = dict.fromkeys([*names, *(f"eval_{label}_change" for label in alone)], "")
        if not due:
            return Judgement(columns)
        scores: dict[str, dict[str, float]] = {}
        for end, network in networks.items():
            scores |= self._figures(network, end, after_batch)
        compared = {label: score[metric] for label, score in scores.items()}
        changes = {label: compared[label] - acc1 for label, acc1 in alone.items() if label in compared}
        changed = {f"eval_{label}_change": value for label, value in changes.items()}
        columns |= {f"eval_{label}_{metric}": value for label, value in compared.items()} | changed
        figures = {f"eval_{label}_{key}": value for label, score in scores.items() for key, value in score.items()}
        words = f"{metric}  {_shown(compared, '.2f')}"
        if changes:
            words += f"  change since before training  {_shown(changes, '+.2f')}"
        losses = tuple(score["loss"] for score in scores.values() if "loss" in score)
        *_, ranking = networks
        key = {"top1": metric, "top5": "acc5", "loss": "loss"}[self.session.recipe.run.eval_metric]
        mean = sum(scores[label + ranking][key] for label in self._routes) / len(self._routes)
        return Judgement(columns, {**figures, **changed}, losses, -mean if key == "loss" else mean, words)

    def _figures(
        self, network: nn.Module, end: str, after_batch: Callable[[], None] = lambda: None
    ) -> dict[str, dict[str, float]]:
        """The figures of the anchors of a network, by their labels with an end."""
        names = {cfg_id: f"anchor '{label}'" for label, cfg_id in self._routes.items()}
        networks = self._judged.networks(network, names, run_network(network).each([*names]))
        images = self._judged.evaluate(networks, f"validation{end}", after_batch)
        return {label + end: images.figures(cfg_id) for label, cfg_id in self._routes.items()}


class FeatureLosses(Validation):
    """Judges a few stitches by the loss of their features, which needs no labels."""

    def __init__(self, session: Session, trainer: Trainer, features: FeatureLoss):
        super().__init__(session, trainer)
        self._features = features

    def before(self) -> None:
        """Say what is left after the fit of the stitching layers."""
        (loss,) = self._losses({"": self.session.model}).values()
        _logger.info("before the training  feature loss of held-out images %.4f", loss)

    def judge(self, after_batch: Callable[[], None], *, due: bool) -> Judgement:
        """The mean loss over the stitches."""
        networks = self._networks()
        losses = self._losses(networks, after_batch) if due else {}
        columns: dict[str, float | str] = {_column(end): losses.get(end, "") for end in networks}
        if not losses:
            return Judgement(columns)
        words = f"feature loss of held-out images  {_shown(losses, '.4f')}"
        figures = {_column(end): loss for end, loss in losses.items()}
        *_, ranking = losses.values()
        return Judgement(columns, figures, (*losses.values(),), -ranking, words)

    def _losses(
        self, networks: Mapping[str, nn.Module], after_batch: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        session, losses = self.session, {}
        routes = judged_routes(run_network(session.model).space)
        for end, network in networks.items():
            batches = batches_of(session.loaders.validation, session.world, f"held out{end}", after_batch)
            losses[end] = held_out_loss(
                network, self._features, routes, batches, device=session.world.device, autocast=self.trainer.autocast
            )
        return losses


def _shown(figures: Mapping[str, float], form: str) -> str:
    return "  ".join(f"{name.strip('_')} {figure:{form}}".strip() for name, figure in figures.items())


def _column(end: str) -> str:
    return f"eval_feature_loss{end}"
