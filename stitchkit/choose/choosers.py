"""The choosers by name."""

from __future__ import annotations

from stitchkit.choose.chooser import Chooser
from stitchkit.choose.cka import cka
from stitchkit.choose.klas import klas, klas_label_free
from stitchkit.choose.residual import residual
from stitchkit.choose.task_loss import task_loss

CHOOSERS: dict[str, Chooser] = {
    "klas": Chooser(klas, needs_labels=True),
    "klas-label-free": Chooser(klas_label_free),
    "cka": Chooser(cka),
    "residual": Chooser(residual),
    "task-loss": Chooser(task_loss, needs_labels=True),
}
