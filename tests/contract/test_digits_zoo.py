"""What is committed under results/digits_zoo: SN-Nets of families without a view, from `--anchors` alone."""

import csv
from dataclasses import replace
from statistics import mean

import numpy as np
import pytest

from stitchkit.cli import main
from stitchkit.display import quantity
from stitchkit.measure.ledger import Ledger, read_rows
from stitchkit.measure.pareto import is_anchor
from stitchkit.measure.profile import Profiler
from stitchkit.model.create import create_snnet
from stitchkit.model.plan import plan_anchors
from stitchkit.settings.stitch_config import StitchConfig
from stitchkit.ship.pick import Budget, pick_one
from tests.support import ROOT, mostly_full

ZOO = ROOT / "results/digits_zoo"
PAGE = (ZOO / "README.md").read_text()
BUDGETS = {"digits_convnext": 500_000, "digits_rope": 2_500_000, "digits_mnv4": 5_000_000}
"""For each SN-Net, the most FLOPs that the exported stitch may have."""
NAMES = tuple(BUDGETS)


def above_the_line(name):
    """By how many points each stitch lies above the straight line through the two anchors that it joins."""
    rows = read_rows(ZOO / f"{name}.txt")
    anchors = {row["stitch"].split("[")[0]: row for row in rows if is_anchor(row)}
    gains = []
    for row in rows:
        if not is_anchor(row):
            ends = [anchors[part.split("[")[0]] for part in row["stitch"].split(" > ")]
            flops, acc1 = ([end[key] for end in ends] for key in ("flops", "acc1"))
            gains.append(row["acc1"] - np.interp(row["flops"], flops, acc1))
    return gains


@pytest.mark.parametrize("name", mostly_full(NAMES, quick=NAMES[:1]))
def test_a_ledger_is_of_the_space_that_its_anchors_alone_give(name):
    config = StitchConfig.load(ZOO / f"{name}.json")
    plan = plan_anchors(config.anchors[::-1])  # the order is found, too
    assert replace(plan.config, recipe=config.recipe) == config
    model = create_snnet(config, checkpoints=False)
    ledger = Ledger(ZOO / f"{name}.txt", model.space, Profiler(model).cost)
    assert not ledger.missing
    assert all(row["images"] == 600 for row in ledger.rows)


def alone(label):
    with (ZOO / f"anchor_{label}.csv").open() as file:
        return float(list(csv.DictReader(file))[-1]["eval_model_acc1"])


@pytest.mark.parametrize("name", NAMES)
def test_the_page_shows_the_anchors_alone_and_inside(name):
    for row in filter(is_anchor, read_rows(ZOO / f"{name}.txt")):
        label = row["stitch"].split("[")[0]
        assert f"| {label} | {alone(label):.2f} | {row['acc1']:.2f} |" in PAGE


@pytest.mark.parametrize("name", NAMES)
def test_the_page_shows_the_committed_ledger(name, capsys):
    assert main(["pareto", str(ZOO / f"{name}.txt")]) == 0
    assert capsys.readouterr().out in PAGE
    gains = above_the_line(name)
    above = sum(gain > 1e-6 for gain in gains)
    assert f"| {above} of {len(gains)} | {mean(gains):+.1f} | {min(gains):+.1f} to {max(gains):+.1f} |" in PAGE


def test_recalibration_changes_stitched_routes_alone_and_as_the_page_says():
    own, shared = (read_rows(ZOO / f"digits_mnv4{kind}.txt") for kind in ("", "_shared"))
    assert [row["stitch"] for row in own] == [row["stitch"] for row in shared]
    assert all(("recalibrate_bn" in row) != is_anchor(row) for row in own)
    assert not any("recalibrate_bn" in row for row in shared)
    assert [row["loss"] for row in own if is_anchor(row)] == [row["loss"] for row in shared if is_anchor(row)]
    shown = [mean(row["acc1"] for row in rows if not is_anchor(row)) for rows in (own, shared)]
    assert f"{shown[0]:.2f} % on average; with `--recalibrate-bn 0`, {shown[1]:.2f} %" in PAGE


@pytest.mark.parametrize("name", NAMES)
def test_the_exported_file_is_as_accurate_as_the_ledger_says(name):
    best = pick_one(read_rows(ZOO / f"{name}.txt"), Budget(max_flops=BUDGETS[name]))
    with (ZOO / f"{name}_exported.csv").open() as file:
        rows = list(csv.DictReader(file))
    right = sum(row["path"].split("/")[0] == row["class"] for row in rows)
    assert len(rows) == 600
    assert 100 * right / 600 == pytest.approx(best["acc1"])
    assert f"| {quantity(BUDGETS[name])} | {best['stitch']} | {best['acc1']:.2f} | {100 * right / 600:.2f} |" in PAGE
