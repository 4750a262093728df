"""`--confident`: the cheapest stitch that is statistically tied with the most accurate one within a budget."""

import json

import numpy as np
import pytest

from stitchkit.cli import main
from stitchkit.measure.comparison import Paired
from stitchkit.measure.ledger import read_rows, write_rows
from stitchkit.ship.pick import Budget, pick
from tests.commands import refused
from tests.results import write_evaluated


@pytest.fixture
def ledger(tmp_path):
    write_evaluated(tmp_path / "stitches_res.txt", (300, 302, 308, 309, 308), images=400)
    return tmp_path / "stitches_res.txt"


def said(capsys, *arguments):
    assert main([*map(str, arguments)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "best", "sentence"),
    [
        ([], 2, "cfg_id 3 is the most accurate of 5 stitches; cfg_id 2 has 12 % fewer FLOPs and is "
         "statistically tied with it: -0.25 points, 95 % from -1.09 to 0.60"),
        (["--max-flops", "140"], 2, "cfg_id 2 is the most accurate of the 3 stitches, out of 5, with at most 140 "
         "FLOPs; all cheaper ones are significantly worse"),
        (["--max-flops", "105"], 0, "cfg_id 0 is the only stitch, out of 5, with at most 105 FLOPs; "
         "nothing costs less"),
        (["--max-params", "800"], 4, "cfg_id 3 is the most accurate of the 4 stitches, out of 5, with at most 800 "
         "parameters; cfg_id 4 has 17 % fewer parameters and is statistically tied with it: -0.25 points, 95 % from"),
        (["--min-acc1", "75", "--max-flops", "1G"], 2, "FLOPs and at least 75 % top-1; cfg_id 2 has 12 % fewer FLOPs"),
    ],
)  # fmt: skip
def test_the_cheapest_that_is_not_surely_worse(flags, best, sentence, ledger, capsys):
    said_so = said(capsys, "pick", ledger, "--confident", *flags).splitlines()
    assert sentence in said_so[0]
    assert int(said_so[2].split()[0]) == best
    assert f"--cfg-id {best} " in said_so[-1]
    found = json.loads(said(capsys, "pick", ledger, "--confident", "--json", *flags))
    assert found["best"]["cfg_id"] == best
    assert found["best"]["cfg_id"] not in [row["cfg_id"] for row in found["runners_up"]]
    if found["difference"] is None:
        assert found["most_accurate"] == found["best"]
    else:
        assert found["runners_up"][0] == found["most_accurate"]
        assert found["difference"]["points"] == pytest.approx(found["best"]["acc1"] - found["most_accurate"]["acc1"])
        assert found["difference"]["low"] < found["difference"]["points"] < found["difference"]["high"]


def test_a_latency_is_time():
    rows = [{"cfg_id": place, "flops": 1, "acc1": 50.0, "latency_ms": 2.0 - place} for place in (0, 1)]
    right = np.arange(8) < np.array([4, 4])[:, None]
    hits = Paired((0, 1), "acc1", right, np.ones_like(right))
    choice = pick(rows, Budget(max_latency_ms=5), confident=hits)
    assert (choice.best["cfg_id"], choice.difference["points"]) == (1, 0)
    assert pick(rows, Budget(), confident=hits).best["cfg_id"] == 0, "as many FLOPs, so the first"


def test_pick_shows_intervals_and_ties_by_the_limited_cost(ledger, capsys):
    lines = said(capsys, "pick", ledger).splitlines()
    assert lines[1].split()[4:] == ["acc1", "95", "%", "knn", "P(front)", "tied", "with"]
    assert [(line.split()[0], line.split()[-1]) for line in lines[2:4]] == [("3", "2"), ("2", "none")]
    by_params = said(capsys, "pick", ledger, "--max-params", "1k").splitlines()
    assert by_params[2].split()[-1] == "4", "which has fewer parameters"
    best = json.loads(said(capsys, "pick", ledger, "--json"))["best"]
    assert best["acc1_low"] < best["acc1"] < best["acc1_high"]
    assert (0 < best["p_front"] <= 1, best["tied_with"]) == (True, [2])


def test_what_cannot_be_confident_is_refused(ledger, capsys, tmp_path):
    flags = ["pick", ledger, "--confident"]
    assert "--confident compares top-1 accuracies, not k-NN" in refused(capsys, *flags, "--metric", "knn")
    assert "--min-acc1 alone takes the cheapest stitch already" in refused(capsys, *flags, "--min-acc1", "50")
    assert "the nearest miss is cfg_id 0" in refused(capsys, *flags, "--max-flops", "5")
    output = ["-o", tmp_path / "x.onnx"]
    line = refused(capsys, "export", "--stitch_config", "digits_vit", "--cfg_id", "3", "--confident", *output)
    assert "--cfg-id 3 already names a stitch; omit --confident" in line
    rows = read_rows(ledger)
    write_rows(ledger, [*rows, {"cfg_id": 9, "flops": 5, "acc1": 99.0}])
    assert "has stitches without hits, which --confident requires" in refused(capsys, *flags)
    write_rows(ledger, [{**rows[0], "acc1": 99.0}])
    assert "the hits beside the ledger belong to another evaluation: cfg_id 0" in refused(capsys, *flags)
    ledger.with_suffix(".hits").unlink()
    assert "has no hits beside it, which --confident" in refused(capsys, *flags)
