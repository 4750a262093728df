"""The file of scores beside a chosen configuration, and their rank correlation with the accuracies of a ledger."""

from __future__ import annotations

import csv
import math
import warnings
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stitchkit.choose.choice import Candidate
from stitchkit.errors import InputError, prefixed
from stitchkit.files import read_table, replacing
from stitchkit.measure.ledger import Row, check_figures
from stitchkit.routes import Joint

_OWN = ("joint", "stitch", "flops", "bucket", "kept")
"""The columns before the scores."""
_FEWEST = 3
"""Stitches without which a correlation says nothing."""


def scores_file(config: Path) -> Path:
    """The file of scores beside a chosen configuration."""
    return config.with_suffix(".scores.csv")


def correlations_file(scores: Path) -> Path:
    """The file of correlations beside a file of scores."""
    return scores.with_name(f"{scores.name.removesuffix('.csv').removesuffix('.scores')}.spearman.csv")


def write_scores(
    path: Path, given: Sequence[Candidate], scores: Mapping[str, Mapping[Joint, float]], kept: Collection[Joint]
) -> None:
    """Write the scores of all joints by the names of their choosers, and which joints were kept."""
    rows = [[one.joint, one.stitch, one.flops, one.bucket, int(one.joint in kept)] for one in given]
    columns = [[by[one.joint] for one in given] for by in scores.values()]
    _write(path, [*_OWN, *scores], [[*row, *values] for row, *values in zip(rows, *columns, strict=True)])


def _write(path: Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)


@dataclass(frozen=True)
class StoredScores:
    """Scores that were stored.

    Args:
        groups: For each stitch the anchors that it joins and its bucket.
        scores: By chooser, then by stitch.
    """

    groups: Mapping[str, tuple[str, str, str]]
    scores: Mapping[str, Mapping[str, float]]


def read_scores(path: Path) -> StoredScores:
    """Read what `write_scores` wrote.

    Raises:
        InputError: If the file is another table, or a score is not a number.
    """
    if not path.exists():
        raise InputError(f"'{path}' does not exist; give the .scores.csv that stitchkit choose wrote")
    table = read_table(path)
    names = [name for name in table if name not in _OWN]
    if not names or any(name not in table for name in _OWN):
        raise InputError(f"'{path}' has no scores of joints; give the .scores.csv that stitchkit choose wrote")
    with prefixed(f"'{path}': "):
        joints = [*map(Joint.parse, table["joint"])]
    groups = [(joint.front, joint.end, bucket) for joint, bucket in zip(joints, table["bucket"], strict=True)]
    scores = {name: dict(zip(table["stitch"], map(_number, table[name]), strict=True)) for name in names}
    if wrong := next((name for name in names if any(map(math.isnan, scores[name].values()))), None):
        raise InputError(f"'{path}' has a value of {wrong} that is not a finite number; choose again")
    return StoredScores(dict(zip(table["stitch"], groups, strict=True)), scores)


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of a score with accuracy; -1 is best, since low scores are good.

    Args:
        score: Name of the chooser.
        stitches: Number of stitches with both.
        spearman: Over all of them. Accuracy follows cost, so a score that only tells cheap from costly has one too.
        in_buckets: Mean over the buckets in which joints were chosen, by number of stitches; NaN if none has three.
    """

    score: str
    stitches: int
    spearman: float
    in_buckets: float


def rows_of(stitches: Collection[str], rows: Sequence[Row]) -> list[Row]:
    """The rows of a ledger that scores of some stitches can be compared with.

    Raises:
        InputError: If there are fewer than three, or one has no accuracy.
    """
    known = [row for row in rows if row.get("stitch") in stitches]
    if len(known) < _FEWEST:
        raise InputError(
            f"the ledger has {len(known)} of the {len(stitches)} scored stitches, and a correlation needs {_FEWEST}; "
            "give the ledger of an SN-Net of these anchors"
        )
    check_figures(known, ["acc1"])
    return known


def correlate(stored: StoredScores, rows: Sequence[Row]) -> list[Correlation]:
    """The correlation of each score with the accuracies of a ledger.

    Raises:
        InputError: If the ledger has fewer than three of the scored stitches.
    """
    known = rows_of(stored.groups, rows)
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in known:
        groups[stored.groups[row["stitch"]]].append(row)
    found = []
    for name, scores in stored.scores.items():
        within = [(len(some), _spearman(scores, some)) for some in groups.values() if len(some) >= _FEWEST]
        defined = [(count, value) for count, value in within if not math.isnan(value)]
        total = sum(count for count, _ in defined)
        mean = sum(count * value for count, value in defined) / total if total else math.nan
        found.append(Correlation(name, len(known), _spearman(scores, known), mean))
    return found


def _spearman(scores: Mapping[str, float], rows: Sequence[Row]) -> float:
    """NaN if all scores or all accuracies are equal."""
    from scipy.stats import ConstantInputWarning, spearmanr  # only here: its import takes a second

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        return float(spearmanr([scores[row["stitch"]] for row in rows], [row["acc1"] for row in rows]).statistic)


def write_correlations(path: Path, found: Sequence[Correlation], ledger: str) -> None:
    """Write correlations, which replace those with another ledger."""
    rows = [[one.score, one.stitches, one.spearman, one.in_buckets, ledger] for one in found]
    _write(path, ["score", "stitches", "spearman", "spearman_in_buckets", "ledger"], rows)


def _number(text: str) -> float:
    """The finite number that a text is; NaN for any other."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
