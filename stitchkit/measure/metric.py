"""The metric for comparing stitches: a figure of a ledger, in percent, where more is better."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from stitchkit.display import listed
from stitchkit.errors import InputError, unknown
from stitchkit.measure.ledger import Row
from stitchkit.routes import Stitch

ACCURACY, AGREE = "acc1", "agree"
METRICS = {
    ACCURACY: "top-1 accuracy",
    "balanced_acc1": "balanced accuracy",
    "acc5": "top-5 accuracy",
    "miou": "mean IoU",
    "pixel_acc": "pixel accuracy",
    "delta1": "delta1: share of pixels within a factor of 1.25 of the true depth",
    "knn": "k-NN accuracy",
    "linear": "linear-probe accuracy",
    AGREE: "answers equal to the end anchor's",
    "agree_sure": "answers equal to the end anchor's where it is sure",
    "cosine": "cosine with the end anchor",
    "cka": "CKA with the end anchor",
}
"""What the figures are called; a sentence has only what comes before a colon, as axes have."""
_DEFAULTS = (ACCURACY, "miou", "delta1", "knn", AGREE, "cosine")
_AGREEMENTS = (AGREE, "agree_sure", "cosine", "cka")


def in_sentence(metric: str) -> str:
    """What a figure is called within a sentence, and on an axis."""
    return METRICS[metric].partition(":")[0]


def metric_of(rows: Sequence[Row], name: str | None = None) -> str:
    """The requested metric of some rows; by default the first of `_DEFAULTS` that any row has."""
    known = [metric for metric in METRICS if any(metric in row for row in rows)]
    if name is None:
        return next((metric for metric in _DEFAULTS if metric in known), ACCURACY)
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    if known and name not in known:
        raise InputError(f"no row of the ledger has '{name}'; choose from {listed(known, most=len(METRICS))}")
    return name


def compared(rows: Sequence[Row], metric: str) -> list[Row]:
    """The rows that a metric compares.

    By agreement, only stitches that end in the costliest row's anchor: every anchor agrees with itself.
    """
    if metric not in _AGREEMENTS or not rows:
        return [*rows]
    end = _end(max(rows, key=lambda row: row["flops"]))
    return [row for row in rows if _end(row) == end]


def _end(row: Row) -> str:
    return Stitch.parse(row["stitch"]).end if "stitch" in row else ""


def compared_note(rows: Sequence[Row], metric: str) -> str:
    """Which rows a metric compares, in words; empty if all."""
    few = compared(rows, metric)
    if len(few) == len(rows):
        return ""
    those = f"the {len(few)} of {len(rows)} that end in {_end(few[0])}"
    return f"by {in_sentence(metric)}, only {those} are compared, since every anchor agrees with itself"


def by(metric: str) -> str:
    """The end of a noun that depends on a metric, such as ` by k-NN accuracy`; empty for the usual accuracy."""
    return "" if metric == ACCURACY else f" by {in_sentence(metric)}"


def add_metric_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--metric`, as `metric_of` takes it."""
    about = f"metric for comparing stitches: {', '.join(METRICS)}; by default the first of {', '.join(_DEFAULTS)}"
    parser.add_argument("--metric", choices=[*METRICS], metavar="NAME", help=f"{about} that the ledger has")
