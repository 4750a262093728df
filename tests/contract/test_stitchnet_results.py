"""What is committed under results/stitchnet is of the shipped configuration, and the page says what it holds."""

import csv
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from stitchkit.config import StitchConfig
from stitchkit.measure.ledger import read_rows
from stitchkit.measure.pareto import is_anchor, pareto_front, quantity
from stitchnet import experiments
from stitchnet.task import against_parents
from tests.support import ROOT

FOLDER = ROOT / "results/stitchnet"
PAGE = (FOLDER / "README.md").read_text() if (FOLDER / "README.md").exists() else ""
LABELS = [anchor.label for anchor in StitchConfig.load(ROOT / "configs/compose/digits.json").anchors]


def table(name):
    """The rows of an experiment, numbers as numbers."""
    with (FOLDER / f"{name}.csv").open() as file:
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


def test_the_drawings_are_of_networks_in_the_ledger():
    names = {row["cfg_id"]: row["stitch"] for row in read_rows(FOLDER / "stitches_res.txt")}
    drawings = sorted(FOLDER.glob("*.svg"))
    assert len(drawings) == 2
    for path in drawings:
        assert path.name in PAGE
        words = " ".join(ET.parse(path).getroot().itertext())
        parents = {part.split("[")[0] for part in names[int(path.stem)].split(" > ")}
        assert all(f"{parent}, fragment" in words for parent in parents)


def test_the_page_tells_how_many_images_are_enough():
    rows = table("samples")
    assert sorted({row["images"] for row in rows}) == list(experiments._COUNTS)
    for count in experiments._COUNTS:
        these = composed([row for row in rows if row["images"] == count])
        assert len({row["seed"] for row in these}) == experiments._SEEDS
        best = max(row["acc1"] for row in these)
        assert f"| {count} | {mean(these):.1f} | {best:.1f} | {mean(these, 'parents_acc1'):.1f} |" in PAGE


def test_the_page_tells_what_is_on_the_front():
    rows = table("front")
    better = sum(row["acc1"] > row["parents_acc1"] for row in composed(rows))
    front = pareto_front(rows)
    assert f"{len(composed(rows))} composed networks, {better} of them better than the average of their parents" in PAGE
    assert f"{sum(not is_anchor(row) for row in front)} of the {len(front)} networks on the front are composed" in PAGE


@pytest.mark.parametrize("kind", ["composed", "parents"])
def test_the_page_tells_what_ensembles_reach(kind):
    rows = [row for row in table("ensembles") if row["kind"] == kind]
    for size in sorted({row["size"] for row in rows}):
        found = [row for row in rows if row["size"] == size]
        low, high = (pick(row["acc1"] for row in found) for pick in (min, max))
        assert f"| {size:.0f} {kind} | {mean(found):.2f} | {low:.2f} to {high:.2f} |" in PAGE


def test_the_page_tells_what_fine_tuning_brings():
    rows = table("finetune")
    for name in {row["stitch"] for row in rows}:
        these = [row for row in rows if row["stitch"] == name]
        accuracies = [f"{these[epoch]['acc1']:.2f}" for epoch in (0, 1, -1)]
        assert f"| `{name}` | {quantity(these[0]['flops'])} | {' | '.join(accuracies)} |" in PAGE
