"""Intervals, ties and P(on the front) where people see them: `pareto`, pictures, the page of a report."""

import csv
import json
import re

import matplotlib.figure
import pytest
from matplotlib.collections import PolyCollection

from stitchkit.cli import main
from stitchkit.measure.formulas import accuracy_interval
from stitchkit.measure.ledger import read_rows, write_rows
from tests.browser import open_page
from tests.results import write_evaluated

TOLD = "4 of 5 points of the front are told apart by a paired 95 % interval: 0, 1, 3, 4"


@pytest.fixture
def ledger(tmp_path):
    write_evaluated(tmp_path / "ours.txt", (300, 310, 312, 330, 340), images=400)
    return tmp_path / "ours.txt"


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    seen = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "savefig",
        lambda self, *args, **named: seen.append(self) or save(self, *args, **named),
    )
    return seen


def said(capsys, *arguments):
    assert main([*map(str, arguments)]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_table_of_a_front_has_its_intervals(ledger, capsys):
    lines = said(capsys, "pareto", ledger)
    assert " ".join(lines[0].split()) == "cfg_id stitch FLOPs params acc1 95 % knn P(front) tied with"
    low, high = accuracy_interval(312, 400)
    assert lines[3].split() == ["2", "-", "140", "700", "78.00", f"{low:.2f}-{high:.2f}", "52.00", "0.89", "1"]
    assert lines[-2:] == ["the Pareto front has 5 of 5 stitches", TOLD]
    lines = said(capsys, "pareto", ledger, "--cost", "params")
    assert lines[1].split()[-2:] == ["1.00", "none"]
    assert lines[-1] == "the front has 1 point with hits, so that there is nothing to tell apart"
    write_rows(ledger, [{**row, "p_front": 0.001, "tied_with": [77]} for row in read_rows(ledger)])
    assert said(capsys, "pareto", ledger)[-1] == TOLD
    assert "77" not in said(capsys, "pareto", ledger)[1], "ties of an older ledger"


def test_a_ledger_without_hits_says_so_once(ledger, capsys):
    ledger.with_suffix(".hits").unlink()
    lines = said(capsys, "pareto", ledger)
    assert lines[0].split()[-3:] == ["95", "%", "knn"]
    assert lines[-1] == "no ties and no P(front) without hits, which --eval writes beside a new ledger"
    write_rows(ledger, [{key: row[key] for key in ("cfg_id", "flops", "acc1", "knn")} for row in read_rows(ledger)])
    lines = said(capsys, "pareto", ledger)
    assert "%" not in lines[0]
    assert lines[-1].startswith("no intervals: the ledger has no hits")
    assert said(capsys, "pareto", ledger, "--metric", "knn")[-1].startswith("the Pareto front by k-NN accuracy has")


def test_by_another_metric_nothing_is_said(ledger, capsys, tmp_path, drawn):
    lines = said(capsys, "pareto", ledger, "--metric", "knn", "--plot", tmp_path / "p.svg")
    assert "P(front)" not in lines[0]
    assert lines[-2] == "the Pareto front by k-NN accuracy has 5 of 5 stitches"
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["stitches", "Pareto front"]
    assert main(["report", str(ledger), "-o", str(tmp_path / "r.html"), "--metric", "knn"]) == 0
    found = json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', (tmp_path / "r.html").read_text())[1])
    assert found["ledgers"][0]["told_apart"] == {}
    assert found["ledgers"][0]["rows"][0]["by_cost"] == {"flops": {}, "params": {}}


def test_pictures_have_a_band_for_each_front(ledger, tmp_path, drawn, capsys):
    write_evaluated(tmp_path / "theirs.txt", (200, 220, 240), images=400)
    said(capsys, "pareto", ledger, "--plot", tmp_path / "one.svg")
    said(capsys, "report", ledger, tmp_path / "theirs.txt", "-o", tmp_path / "r.html", "--plot", tmp_path / "two.svg")
    for figure, names in ((drawn[0], ["stitches"]), (drawn[1], ["ours", "theirs"])):
        (axes,) = figure.axes
        bands = [each for each in axes.collections if isinstance(each, PolyCollection)]
        assert len(bands) == len(names)
        low, _ = accuracy_interval(300, 400)
        ends = bands[0].get_paths()[0].vertices[:, 1]
        assert (ends.min(), ends.max()) == pytest.approx((low, accuracy_interval(340, 400)[1]), abs=1e-3)
        shown = [text.get_text() for text in figure.legends[0].get_texts()]
        assert shown == [*names, "Pareto front", "its 95 % intervals"]


@pytest.mark.full
def test_the_page_shows_them_by_the_chosen_cost(ledger, tmp_path):
    assert main(["report", str(ledger), "-o", str(tmp_path / "r.html")]) == 0
    with open_page((tmp_path / "r.html").as_uri()) as (page, wrong):
        assert TOLD in page.locator("#summary").inner_text()
        assert page.evaluate("document.getElementById('pareto').data[0].fill") == "toself"
        heads = page.locator("#head th").all_inner_texts()
        row = dict(zip(heads, page.locator("#body tr").nth(2).locator("td").all_inner_texts(), strict=True))
        low, high = accuracy_interval(312, 400)
        assert (row["95 %"], row["P(front)"], row["tied with"]) == (f"{low:.2f}–{high:.2f}", "0.89", "1")
        details = " ".join(page.locator("#details").inner_text().split())
        assert "P(front) 1.00" in details
        assert "tied with none" in details
        page.get_by_role("button", name="tied with").click()
        assert page.locator("#body tr").last.locator("td").all_inner_texts()[-1] == "1"
        with page.expect_download() as saved:
            page.locator("#csv").click()
        with open(saved.value.path(), newline="") as file:
            table = {int(line["cfg_id"]): line for line in csv.DictReader(file)}
        assert (table[2]["tied_with"], float(table[2]["acc1_high"])) == ("1", round(high, 4))
        page.locator("#axis").select_option("params")
        assert "the front has 1 point with hits" in page.locator("#summary").inner_text()
        row = page.locator("#body tr", has_text="78.00 %").locator("td").all_inner_texts()
        assert row[heads.index("P(front)")] == "0.00", "costlier in parameters than three that are better"
        assert wrong == []
