"""The tables of results and studies/stitchnet are of the shipped configuration; the pages say what they hold."""

import csv
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from stitchkit.display import quantity
from stitchkit.measure.ledger import read_rows
from stitchkit.measure.pareto import is_anchor, pareto_front
from stitchkit.settings.stitch_config import StitchConfig
from stitchnet.compose import against_parents
from studies.stitchnet import experiments
from tests.support import ROOT

FOLDER = ROOT / "results/stitchnet"
PAGE = (FOLDER / "README.md").read_text()
STUDY = ROOT / "studies/stitchnet"
WORDS = " ".join([*PAGE.split(), *(STUDY / "README.md").read_text().split()])
LABELS = [anchor.label for anchor in StitchConfig.load(ROOT / "configs/compose/digits.json").anchors]


def table(name):
    """The rows of an experiment, numbers as numbers."""
    with ((FOLDER if name == "front" else STUDY) / f"{name}.csv").open() as file:
        return [
            {key: float(value) if value.replace(".", "").isdigit() else value for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


def mean(rows, key="acc1"):
    return float(np.mean([row[key] for row in rows]))


def composed(rows):
    return [row for row in rows if row["parents_acc1"] != ""]


def test_the_page_shows_the_ledger_of_the_demo():
    rows = read_rows(FOLDER / "stitches_res.txt")
    assert against_parents(rows) in PAGE
    assert [row["stitch"].split("[")[0] for row in rows if is_anchor(row)] == LABELS


def beating_each(rows):
    """Composed networks that are better than each of their parents."""
    alone = {row["stitch"].split("[")[0]: row["acc1"] for row in rows if is_anchor(row)}
    return [
        row
        for row in rows
        if not is_anchor(row) and row["acc1"] > max(alone[part.split("[")[0]] for part in row["stitch"].split(" > "))
    ]


def test_the_page_says_how_many_beat_each_of_their_parents():
    [only] = beating_each(read_rows(FOLDER / "stitches_res.txt"))
    assert f"only {only['cfg_id']} is better than each of its parents" in WORDS
    assert f"{len(beating_each(table('front')))} of them better than each of their parents" in WORDS


def test_the_drawings_are_of_networks_in_the_ledger():
    names = {row["cfg_id"]: row["stitch"] for row in read_rows(FOLDER / "stitches_res.txt")}
    drawings = sorted(FOLDER.glob("*.svg"))
    assert len(drawings) == 2
    for path in drawings:
        assert path.name in PAGE
        words = " ".join(ET.parse(path).getroot().itertext())
        parents = {part.split("[")[0] for part in names[int(path.stem)].split(" > ")}
        assert all(f"{parent}[" in words for parent in parents)


def test_the_page_says_how_many_images_are_enough():
    rows = table("samples")
    assert sorted({row["images"] for row in rows}) == list(experiments._COUNTS)
    for count in experiments._COUNTS:
        these = composed([row for row in rows if row["images"] == count])
        assert len({row["seed"] for row in these}) == experiments._SEEDS
        best = max(row["acc1"] for row in these)
        assert f"| {count} | {mean(these):.1f} | {best:.1f} | {mean(these, 'parents_acc1'):.1f} |" in WORDS


def test_the_page_says_where_images_are_as_few_as_features():
    for images, network in ((32, "dense"), (64, "r26")):
        rows = composed([row for row in table("samples") if row["images"] == images])
        parts = [row["stitch"].split(" > ")[-2:] for row in rows]
        ends = ("r18[7:8]", "r26[6:7]", "dense[4:5]")
        hit = [row for row, (one, last) in zip(rows, parts, strict=True) if one.startswith(network) and last in ends]
        beating = sum(row["acc1"] > row["parents_acc1"] for row in rows)
        assert images != 32 or f"{beating} of {len(rows)} beat the average" in WORDS
        assert f"those of `{network}` to {mean(hit):.1f} % with {images}" in WORDS


def test_the_page_says_what_is_on_the_front():
    rows = table("front")
    better = sum(row["acc1"] > row["parents_acc1"] for row in composed(rows))
    front = pareto_front(rows)
    assert (
        f"{len(composed(rows))} composed networks, {better} of them better than the average of their parents" in WORDS
    )
    best = max(rows, key=lambda row: row["acc1"])
    assert f"`{best['stitch']}` has the highest accuracy, {best['acc1']:.2f} %" in WORDS
    assert f"{sum(not is_anchor(row) for row in front)} of the {len(front)} networks on the front are composed" in WORDS


@pytest.mark.parametrize("kind", ["composed", "parents"])
def test_the_page_says_what_ensembles_reach(kind):
    rows = [row for row in table("ensembles") if row["kind"] == kind]
    for size in sorted({row["size"] for row in rows}):
        found = [row for row in rows if row["size"] == size]
        low, high = (pick(row["acc1"] for row in found) for pick in (min, max))
        assert f"| {size:.0f} {kind} | {mean(found):.2f} | {low:.2f} to {high:.2f} |" in WORDS


def test_the_page_says_what_fine_tuning_gains():
    rows = table("finetune")
    for name in {row["stitch"] for row in rows}:
        these = [row for row in rows if row["stitch"] == name]
        accuracies = [f"{these[epoch]['acc1']:.2f}" for epoch in (0, 1, -1)]
        assert f"| `{name}` | {quantity(these[0]['flops'])} | {' | '.join(accuracies)} |" in WORDS
