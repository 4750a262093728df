"""studies/samplers: its table is the measured one, and the study that writes it works."""

import csv
import importlib.util
import json
import re
from functools import partial

import numpy as np
import pytest
import timm
import torch

from stitchkit.measure.profile import Profiler
from tests.support import ROOT, demo_folder

FOLDER = ROOT / "studies/samplers"


@pytest.fixture
def study():
    spec = importlib.util.spec_from_file_location("study", FOLDER / "study.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows():
    with (FOLDER / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_page_has_the_measured_table(study):
    page = (FOLDER / "README.md").read_text()
    shown = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:3] == "| `"]
    shown = [cells for cells in shown if cells[0].strip("`") in study.SAMPLERS]
    measured = rows()
    assert [(row["sampler"], row["preserve"]) for row in measured] == [
        (sampler, way) for sampler in study.SAMPLERS for way in study.WAYS
    ]
    for cells, row in zip(shown, measured, strict=True):
        figures = [float(figure) for figure in re.findall(r"-?\d+\.?\d*", " ".join(cells[2:]).replace("± ", ""))]
        assert [cell.strip("`") for cell in cells[:2]] == [row["sampler"], row["preserve"]]
        names = [name for name in row if name not in ("sampler", "preserve", "training_gflops")]
        assert figures == [float(row[name]) for name in names], cells


def test_all_rows_have_the_training_flops_of_the_first():
    first, *others = [float(row["training_gflops"]) for row in rows()]
    largest = max(abs(spent / first - 1) for spent in others)
    assert f"within {100 * largest:.1f} %" in (FOLDER / "README.md").read_text(), "whole epochs"


def test_the_page_has_the_fresh_seeds(study):
    with (FOLDER / "fresh.csv").open(newline="") as file:
        fresh = [(float(row["uniform"]), float(row["cost_bins"])) for row in csv.DictReader(file)]
    assert len(fresh) == len(study.FRESH)
    uniform, default = np.array(fresh).T
    mean, half = study.with_interval(default - uniform)
    page = " ".join((FOLDER / "README.md").read_text().split())
    assert f"a mean of {default.mean():.2f} %, `uniform` of {uniform.mean():.2f} %" in page
    assert f"the paired difference is {mean:.2f} ± {half:.2f} points" in page


def test_the_best_within_a_budget_is_judged_on_other_images_than_it_was_chosen_on(study):
    # The cheap stitch gets half of either half right; the costlier one all even images, and no odd one.
    hits = np.array([[True, True, False, False] * 2, [True, False] * 4])
    found = study.best_within(hits, np.array([10.0, 1000.0]))
    assert found.shape == (study.BUDGETS,)
    assert found[0] == 50, "only the cheap one"
    # On even images the costlier one is chosen, and then gets no odd one right; on odd ones, the cheap one is.
    assert found[-1] == (0 + 50) / 2
    mean, half = study.with_interval(np.array([1.0, 2.0, 3.0]))
    assert (mean, half) == (2, pytest.approx(4.3027 / 3**0.5, rel=1e-4))


@pytest.mark.nightly
def test_the_study_runs(study, tmp_path, monkeypatch):
    """Two cells of one epoch, from anchors that were not trained."""
    monkeypatch.chdir(demo_folder(tmp_path))
    for anchor in json.loads((ROOT / "configs/digits_vit.json").read_text())["anchors"]:
        (tmp_path / anchor["checkpoint"]).parent.mkdir()
        torch.save(timm.create_model(anchor["name"], **anchor["kwargs"]).state_dict(), tmp_path / anchor["checkpoint"])
    monkeypatch.setattr(study, "DRAWS", 100)
    monkeypatch.setattr(study, "HERE", tmp_path)
    monkeypatch.setattr(study, "SEEDS", (0, 1))
    study.OUTPUT.mkdir(parents=True)
    cells = [("uniform", "none"), ("sandwich", "lora")]
    for _, way in cells:
        study.write_config(way)
    flops = {cell: study.step_flops(*cell) for cell in cells}
    assert 2 < flops[cells[1]] / flops[cells[0]] < 8, "four routes, whose anchors learn only in part"
    for cell in cells:
        for seed in study.SEEDS:
            study.train_and_judge((*cell, seed, 1))
    study.write_table(cells, dict.fromkeys(cells, 1), flops)
    with (tmp_path / "table.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["difference"], first["half_interval"]) == ("0.00", "0.00")
    assert [second[f"drop_{label}"] for label in ("ti", "s", "b")] == ["0.00"] * 3, "lora keeps the anchors"
    assert first["drop_b"] != "0.00"


@pytest.mark.full
@pytest.mark.parametrize("way", ["none", "frozen"])
def test_flops_of_a_step_are_those_of_its_routes(study, way, tmp_path, monkeypatch):
    """Three times a route's, forward and backward, if all of it is trained; less if its anchors are not."""
    monkeypatch.chdir(demo_folder(tmp_path))
    monkeypatch.setattr(study, "DRAWS", 40)
    study.OUTPUT.mkdir(parents=True)
    study.write_config(way)
    monkeypatch.setattr(study.stitchkit, "create_snnet", partial(study.stitchkit.create_snnet, checkpoints=False))
    found = study.step_flops("uniform", way)
    model = study.stitchkit.create_snnet(study.config_of(way))
    cost = Profiler(model).cost
    rng = [np.random.default_rng((42, step, 0)).integers(len(model.space)) for step in range(40)]
    forward = 2 * np.mean([cost(cfg_id).flops for cfg_id in rng])  # a multiply-add is two operations here
    assert (2.6 * forward < found < 3.1 * forward) if way == "none" else (1 * forward < found < 2.6 * forward)
