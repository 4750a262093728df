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


def not_self_stitched(rows: Sequence[Row], coming: Collection[int], space: StitchSpace) -> list[int]:
    """The anchors in which stitches end, of those that a ledger has or will have, that have no such figures yet."""
    ends = {stitch.segments[-1].anchor for stitch in space if stitch.joints}
    done = {row["cfg_id"]: f"{SELF}cosine" in row for row in rows}
    anchors = [cfg_id for cfg_id in space.ids if space[cfg_id].is_anchor and space[cfg_id].segments[0].anchor in ends]
    return [cfg_id for cfg_id in anchors if not done.get(cfg_id, cfg_id not in coming)]


def add_self_stitch(rows: Sequence[Row], cfg_id: int, score: FeatureScore) -> None:
    """Add the figures of an anchor's self-stitch to its row."""
    (row,) = (row for row in rows if row["cfg_id"] == cfg_id)
    row |= {SELF + key: value for key, value in score.figures.items() if key != "images"}


def self_stitch_note(rows: Sequence[Row]) -> str:
    """What self-stitches lose against their anchors, in words; empty if the rows do not say."""
    said = [_of_anchor(row) for row in rows if f"{SELF}cosine" in row]
    return f"joined to themselves in the middle, {'; '.join(said)}" if said else ""


def _of_anchor(row: Row) -> str:
    name = str(row["stitch"]).partition("[")[0]
    figures = [f"{key} {row[SELF + key]:.2f}" for key in ("cosine", "cka", "knn", "linear") if SELF + key in row]
    alone = [f"{key} {row[key]:.2f}" for key in ("knn", "linear") if SELF + key in row and key in row]
    return f"{name} keeps {', '.join(figures)}" + (f" (uncut {', '.join(alone)})" if alone else "")
