"""`--metric`: what stitches are compared by in `pick`, `pareto`, `report` and pictures."""

import json
import re

import pytest

from stitchkit.cli import main
from stitchkit.errors import InputError
from stitchkit.measure.ledger import write_rows
from stitchkit.measure.metric import METRICS, compared, compared_note, in_sentence, metric_of
from stitchkit.measure.pareto import pareto_front, plot
from stitchkit.ship.pick import Budget, pick_one

ROWS = [
    {"stitch": "s[0:3]", "flops": 10, "params": 5, "cosine": 100.0, "cka": 100.0, "knn": 60.0, "linear": 70.0},
    {"stitch": "s[0:2] > b[2:3]", "flops": 15, "params": 6, "cosine": -2.5, "cka": 40.0, "knn": 75.0, "linear": 65.0},
    {"stitch": "s[0:1] > b[1:3]", "flops": 20, "params": 7, "cosine": 30.0, "cka": 50.0, "knn": 72.0, "linear": 80.0},
    {"stitch": "b[0:3]", "flops": 30, "params": 8, "cosine": 100.0, "cka": 100.0, "knn": 90.0, "linear": 90.0},
]
ROWS = [{"cfg_id": number, **row} for number, row in enumerate(ROWS)]


def test_by_agreement_only_one_end_is_compared(tmp_path, capsys):
    """Every anchor agrees with itself, so the cheapest one would be the best of all."""
    assert compared(ROWS, "knn") == ROWS
    assert compared(ROWS, "cosine") == compared(ROWS, "cka") == ROWS[1:]
    assert compared([], "cosine") == []
    assert [row["cfg_id"] for row in pareto_front(ROWS, metric="cosine")] == [1, 2, 3]
    back = [*ROWS, {**ROWS[1], "cfg_id": 4, "stitch": "b[0:1] > s[1:3]", "cosine": 99.0}]
    assert pick_one(back, Budget(max_flops=25), metric="cosine")["cfg_id"] == 2
    note = "by cosine with the end anchor, only the 3 of 5 that end in b are compared, since every anchor agrees with "
    note += "itself"
    assert compared_note(back, "cosine") == note
    with pytest.raises(InputError, match=rf"none of 3 stitches has .* relax the budget to take it; {note}"):
        pick_one(back, Budget(max_flops=12), metric="cosine")
    write_rows(tmp_path / "l.txt", back)
    for command in (["pareto", "--plot", str(tmp_path / "p.png")], ["pick", "--max-flops", "25"]):
        assert main([command[0], str(tmp_path / "l.txt"), *command[1:], "--metric", "cosine"]) == 0
        assert note in capsys.readouterr().out.splitlines()
    assert main(["report", str(tmp_path / "l.txt"), "-o", str(tmp_path / "r.html"), "--metric", "cka"]) == 0
    assert "only the 3 of 5 that end in b are compared" in (tmp_path / "r.html").read_text()


def test_a_stitch_that_missed_an_unreadable_image_is_compared():
    figures = [(10, 70.0, 50_000), (20, 75.0, 49_999), (30, 80.0, 50_000)]
    rows = [{"cfg_id": n, "flops": flops, "acc1": a, "images": i} for n, (flops, a, i) in enumerate(figures)]
    assert compared(rows, "acc1") == pareto_front(rows) == rows
    assert compared_note(rows, "acc1") == ""


@pytest.fixture
def ledger(tmp_path):
    write_rows(tmp_path / "stitches_res.txt", ROWS)
    return str(tmp_path / "stitches_res.txt")


def test_the_ledger_decides_unless_a_metric_is_named():
    assert metric_of(ROWS) == "knn"
    assert metric_of([{"cosine": 1.0, "cka": 2.0}]) == "cosine"
    assert metric_of([*ROWS, {"acc1": 50.0}]) == "acc1"
    assert metric_of([]) == metric_of([{"flops": 5}]) == "acc1"
    assert metric_of(ROWS, "linear") == "linear"
    with pytest.raises(InputError, match=r"no row of the ledger has 'acc1'; choose from knn, linear, cosine, cka"):
        metric_of(ROWS, "acc1")
    with pytest.raises(InputError, match=r"unknown metric 'knnn'; did you mean 'knn'"):
        metric_of(ROWS, "knnn")


@pytest.mark.parametrize(
    ("metric", "front", "best"),
    [("knn", [0, 1, 3], 1), ("linear", [0, 2, 3], 2), ("cka", [1, 2, 3], 2), (None, [0, 1, 3], 1)],
)
def test_fronts_and_choices_follow_the_metric(metric, front, best, ledger, capsys):
    assert [row["cfg_id"] for row in pareto_front(ROWS, metric=metric)] == front
    assert pick_one(ROWS, Budget(max_flops=20), metric=metric)["cfg_id"] == best
    named = ["--metric", metric] if metric else []
    name = METRICS[metric or "knn"]
    assert main(["pareto", ledger, *named]) == 0
    said = capsys.readouterr().out
    assert f"the Pareto front by {name} has {len(front)} of 4 stitches; * marks anchors" in said
    assert said.splitlines()[0].split() == ["cfg_id", "stitch", "FLOPs", "params", "knn", "linear", "cosine", "cka"]
    assert main(["pick", ledger, "--max-flops", "20", *named]) == 0
    few, every = (2, 3) if metric == "cka" else (3, 4)
    expected = f"cfg_id {best} is the best by {name} of the {few} stitches, out of {every}, with at most 20 FLOPs"
    assert expected in capsys.readouterr().out
    assert main(["pick", ledger, "--max-flops", "20", "--json", *named]) == 0
    assert json.loads(capsys.readouterr().out)["metric"] == (metric or "knn")


def test_pictures_name_the_metric(tmp_path):
    for metric in ("knn", "cka"):
        path = tmp_path / f"{metric}.svg"
        plot(ROWS, path, metric=metric)
        assert f"{METRICS[metric]} (%)" in path.read_text()
    assert "top-1" not in (tmp_path / "cka.svg").read_text()


def test_a_report_has_one_metric(ledger, tmp_path, capsys):
    pytest.importorskip("plotly", reason="plotly is not installed")
    page, picture = tmp_path / "report.html", tmp_path / "picture.svg"
    assert main(["report", ledger, "-o", str(page), "--plot", str(picture), "--metric", "linear"]) == 0
    found = json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', page.read_text())[1])
    assert (found["metric"], found["metric_name"]) == ("linear", "linear-probe accuracy")
    fronts = [row["cfg_id"] for row in found["ledgers"][0]["rows"] if "flops" in row["front"]]
    assert fronts == [0, 2, 3]
    assert "linear-probe accuracy (%)" in picture.read_text()
    write_rows(tmp_path / "labelled.txt", [{"cfg_id": 0, "flops": 5, "acc1": 50.0}])
    assert main(["report", ledger, str(tmp_path / "labelled.txt"), "-o", str(page)]) == 2
    assert "the row of cfg_id 0 has no 'acc1'; use a ledger made by --eval" in capsys.readouterr().err


def test_what_is_of_the_accuracy_alone_is_refused(ledger, tmp_path, capsys):
    (tmp_path / "models.csv").write_text("name,acc1,flops\nother,80,12\n")
    for command in ("pick", "pareto"):
        assert main([command, ledger, "--overlay", str(tmp_path / "models.csv")]) == 2
        assert "--overlay compares top-1 accuracies, not k-NN accuracy; omit it" in capsys.readouterr().err
    assert main(["pick", ledger, "--min-acc1", "50"]) == 2
    assert "has no 'acc1'" in capsys.readouterr().err
    assert main(["pick", ledger, "--metric", "loss"]) == 2
    assert "--metric: unknown value 'loss'" in capsys.readouterr().err


def test_a_sentence_has_no_explanation_of_a_figure():
    assert METRICS["delta1"] == "delta1: share of pixels within a factor of 1.25 of the true depth"
    assert [in_sentence(metric) for metric in ("delta1", "miou")] == ["delta1", "mean IoU"]
