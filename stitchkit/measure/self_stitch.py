"""What self-stitches lose, in the ledger: further figures in the rows of the anchors."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from stitchkit.measure.ledger import Row
from stitchkit.routes import StitchSpace

if TYPE_CHECKING:
    from stitchkit.measure.features import FeatureScore  # torch, without which a ledger is read

SELF = "self_"
"""What the names of their figures begin with."""


def ends_in_ledger(rows: Sequence[Row], coming: Collection[int], space: StitchSpace) -> list[int]:
    """The end anchors of stitches that a ledger has or will have."""
    ends, known = {stitch.end for stitch in space if stitch.joints}, {row["cfg_id"] for row in rows} | {*coming}
    return [cfg_id for cfg_id in space.ids if space[cfg_id].is_anchor and space[cfg_id].end in ends and cfg_id in known]


def add_self_stitch(rows: Sequence[Row], cfg_id: int, score: FeatureScore) -> None:
    """Add the figures of an anchor's self-stitch to its row."""
    (row,) = (row for row in rows if row["cfg_id"] == cfg_id)
    row |= {SELF + key: value for key, value in score.figures.items() if key != "images"}


def self_stitch_note(rows: Sequence[Row]) -> str:
    """What self-stitches lose against their anchors, in words; empty if the rows do not say."""
    texts = [_of_anchor(row) for row in rows if f"{SELF}cosine" in row]
    return f"joined to themselves in the middle, {'; '.join(texts)}" if texts else ""


def _of_anchor(row: Row) -> str:
    name = str(row["stitch"]).partition("[")[0]
    figures = [f"{key} {row[SELF + key]:.2f}" for key in ("cosine", "cka", "knn", "linear") if SELF + key in row]
    alone = [f"{key} {row[key]:.2f}" for key in ("knn", "linear") if SELF + key in row and key in row]
    return f"{name} keeps {', '.join(figures)}" + (f" (uncut {', '.join(alone)})" if alone else "")
