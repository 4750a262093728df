"""What is judged between the epochs of a training for dense prediction: the anchors."""

from __future__ import annotations

import logging
from collections.abc import Callable

from stitchkit.engine.loop import Trainer
from stitchkit.model.snnet import SNNet
from stitchkit.training.dense.data import PairLoader
from stitchkit.training.dense.judging import DenseJudge
from stitchkit.training.session import Session
from stitchkit.training.validation import Judgement, Validation

_logger = logging.getLogger(__name__)


class DenseFigures(Validation):
    """Judges anchors by the metric of the task, on the images of the validation split at their own sizes."""

    def __init__(self, session: Session, trainer: Trainer):
        super().__init__(session, trainer)
        model = session.model
        assert isinstance(model, SNNet), "dense prediction needs anchors"
        self._judge = DenseJudge.of_session(session, trainer.autocast)
        self._anchors = {label: cfg_id for cfg_id, label in enumerate(model.views)}

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
