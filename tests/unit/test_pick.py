"""The stitch that fits a budget, against the plain reading of every ledger that there is."""

import json

import pytest

import stitchkit
from stitchkit.cli import main
from stitchkit.display import count
from stitchkit.measure.costs import complete
from stitchkit.measure.ledger import read_rows, write_rows
from stitchkit.ship.pick import Budget, pick, pick_one
from tests.results import pareto_like
from tests.support import ROOT, pico_images, pico_snnet, write_config

OURS = sorted(ROOT.glob("results/*/digits_*.txt")) + sorted(ROOT.glob("results/digits_*/stitches_res.txt"))
PUBLISHED = (
    "deit_ti_s_b",
    "swin_ti_s_b",
    "resnet18_resnet50",
    "resnet18_swin_ti",
    "levit_192_256",
    "snnetv2_deit3_s_l",
)


@pytest.mark.parametrize("path", [*OURS, *PUBLISHED], ids=lambda path: str(getattr(path, "stem", path)))
def test_the_pick_is_what_reading_every_line_gives(path, request, capsys):
    if isinstance(path, str):
        path = request.getfixturevalue("shared") / f"published/{path}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    budgets = sorted({row["flops"] for row in rows})
    for limit in (budgets[0], budgets[len(budgets) // 2], budgets[-1]):
        best = max((row for row in rows if row["flops"] <= limit), key=lambda row: row["acc1"])
        assert pick_one(read_rows(path), Budget(max_flops=limit))["acc1"] == best["acc1"]
    assert main(["pick", str(path), "--max-flops", str(budgets[-1]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fitting"] == found["stitches"] == len(rows)
    assert found["best"]["acc1"] == max(row["acc1"] for row in rows)
    others = [row["acc1"] for row in found["runners_up"]]
    assert others == sorted((row["acc1"] for row in rows), reverse=True)[1:5]
    assert main(["pick", str(path), "--max-flops", str(budgets[0] - 1)]) == 2
    line = capsys.readouterr().err
    cheapest = [row["cfg_id"] for row in rows if row["flops"] == budgets[0]]
    assert "the nearest miss is cfg_id" in line
    assert int(line.split("cfg_id ")[1].split()[0]) in cheapest


def test_there_are_ledgers_of_every_family():
    assert {path.stem for path in OURS} >= {"digits_swin", "digits_levit", "digits_resnet", "digits_resnet_swin"}


def test_an_accuracy_alone_asks_for_the_cheapest_that_has_it():
    rows = [
        {"cfg_id": 0, "flops": 5, "acc1": 70.0},
        {"cfg_id": 1, "flops": 9, "acc1": 90.0},
        {"cfg_id": 2, "flops": 7, "acc1": 80.0},
    ]
    assert pick_one(rows, Budget(min_acc1=75))["cfg_id"] == 2
    assert pick_one(rows, Budget(min_acc1=75, max_flops=20))["cfg_id"] == 1
    assert pick_one(rows, Budget())["cfg_id"] == 1


def test_of_equal_stitches_the_cheaper_is_picked():
    rows = [{"cfg_id": 0, "flops": 9, "acc1": 80.0}, {"cfg_id": 1, "flops": 7, "acc1": 80.0}]
    assert pick_one(rows, Budget(max_flops=10))["cfg_id"] == 1


def test_the_nearest_miss_is_the_one_whose_worst_limit_is_missed_least():
    rows = [
        {"cfg_id": 0, "flops": 100, "params": 400, "acc1": 70.0},  # three times the parameters too many
        {"cfg_id": 1, "flops": 120, "params": 110, "acc1": 70.0},
        {"cfg_id": 2, "flops": 90, "params": 90, "acc1": 40.0},  # half the accuracy
    ]
    budget = Budget(max_flops=100, max_params=100, min_acc1=80)
    choice = pick(rows, budget)
    assert choice.best is None
    assert choice.nearest_miss["cfg_id"] == 1
    with pytest.raises(stitchkit.InputError, match=r"cfg_id 1 with 120 FLOPs and 110 parameters and 70 % top-1"):
        pick_one(rows, budget)


@pytest.mark.parametrize(("text", "value"), [("5G", 5e9), ("30M", 30e6), ("1.5k", 1500), ("1.3e9", 1.3e9), ("12", 12)])
def test_counts_are_read_with_their_units(text, value):
    assert count(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "5 apples", "-5G", "G", "nan", "inf", "5g", "1e", "0x10"])
def test_text_that_is_not_a_count_is_refused(text, capsys, tmp_path):
    with pytest.raises(stitchkit.InputError, match="is not a positive number, such as 5G"):
        count(text)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-flops", "0"], "--max-flops is 0; give a number above 0"),
        (["--max-flops", "-3"], "'-3' is not a positive number, such as 5G"),
        (["--min-acc1", "nan"], "--min-acc1 is nan"),
        (["--min-acc1", "0.95"], "--min-acc1 is 0.95, less than 1 %; give percent, such as 95, or omit it"),
        (["--max-latency-ms", "3"], "has no 'latency_ms'; give --stitch-config"),
        (["--max-params", "3M"], "has no 'params'; give --stitch-config"),
        (["--num-classes", "3"], "require --stitch-config; add it"),
        (["--max-flop", "3M"], "did you mean '--max-flops'?"),
    ],
)
def test_a_budget_that_cannot_be_used(flags, message, capsys, tmp_path):
    write_rows(tmp_path / "ledger.txt", [{"cfg_id": 0, "flops": 10, "acc1": 50.0}])
    assert main(["pick", str(tmp_path / "ledger.txt"), *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_ledger_of_costs_alone_says_what_is_missing(capsys, tmp_path):
    config = write_config(tmp_path / "pico.json")
    assert main(["profile", "--stitch_config", str(config), "--output", str(tmp_path / "costs.txt")]) == 0
    assert main(["pick", str(tmp_path / "costs.txt"), "--max-flops", "1G"]) == 2
    assert "has no 'acc1'; use a ledger made by --eval" in capsys.readouterr().err
    (tmp_path / "empty.txt").touch()
    assert main(["pick", str(tmp_path / "empty.txt")]) == 2
    assert "has no rows" in capsys.readouterr().err


def test_when_nothing_fits_json_says_so_too(capsys, tmp_path):
    write_rows(tmp_path / "ledger.txt", [{"cfg_id": 3, "flops": 10, "acc1": 50.0}])
    assert main(["pick", str(tmp_path / "ledger.txt"), "--max-flops", "5", "--json"]) == 2
    output = capsys.readouterr()
    assert json.loads(output.out)["best"] is None
    assert json.loads(output.out)["nearest_miss"]["cfg_id"] == 3
    assert "relax the budget" in output.err


def test_the_configuration_adds_what_a_published_ledger_lacks(capsys, tmp_path):
    model, config = pico_snnet(), write_config(tmp_path / "pico.json")
    full = pareto_like(model)
    write_rows(tmp_path / "ledger.txt", [{key: row[key] for key in ("cfg_id", "flops", "acc1")} for row in full])
    flags = ["pick", str(tmp_path / "ledger.txt"), "--stitch_config", str(config), "--json"]
    assert main([*flags, "--max-params", "10k"]) == 0
    best = json.loads(capsys.readouterr().out)["best"]
    assert best == max((row for row in full if row["params"] <= 10_000), key=lambda row: row["acc1"])


def test_latency_is_measured_where_it_is_asked_for(short_timing):
    model = pico_snnet()
    rows = pareto_like(model)
    assert "latency of batches of 1 on cpu" in complete(rows, model, latency=True)
    assert pick_one(rows, Budget(max_latency_ms=1e6))["acc1"] == max(row["acc1"] for row in rows)
    fastest = min(row["latency_ms"] for row in rows)
    assert pick_one(rows, Budget(max_latency_ms=fastest))["latency_ms"] == fastest


def test_figures_that_are_not_finite_win_nothing_and_leave_json_valid(capsys, tmp_path):
    with pytest.raises(stitchkit.InputError, match="cfg_id 3 has acc1 nan, not a finite number"):
        pick([{"cfg_id": 3, "flops": 1, "acc1": float("nan")}], Budget())
    write_rows(tmp_path / "r.txt", [{"cfg_id": 0, "flops": 1, "acc1": 5.0, "loss": float("nan")}])
    assert main(["pick", str(tmp_path / "r.txt"), "--json"]) == 0
    text = capsys.readouterr().out
    assert json.loads(text, parse_constant=pytest.fail)["best"] == {"cfg_id": 0, "flops": 1, "acc1": 5.0, "loss": None}


UNRELIABLE = {"latency_ms": 2.0, "latency_spread_percent": 31.4, "latency_reliable": False}


def test_unreliable_latencies_decide_nothing_unless_allowed(model, capsys, tmp_path):
    ledger = tmp_path / "r.txt"
    write_rows(ledger, [{"cfg_id": 0, "flops": 1, "acc1": 5.0, **UNRELIABLE}])
    assert main(["pick", str(ledger), "--max-latency-ms", "5"]) == 2
    line = capsys.readouterr().err
    assert "the latencies are unreliable: at most ± 31.4 %, and the limit is ± 5 %; measure" in line
    assert "or give --allow-unreliable" in line
    assert main(["pick", str(ledger), "--max-latency-ms", "5", "--allow-unreliable"]) == 0
    assert main(["pick", str(ledger), "--max-flops", "5"]) == 0, "they matter only to those who ask for a latency"
    rows = [row | UNRELIABLE for row in pareto_like(model)]
    with pytest.raises(stitchkit.InputError, match=r"unreliable.*in Python allow_unreliable=True"):
        stitchkit.BudgetedModel(model, rows).choose("5ms")
    assert stitchkit.BudgetedModel(model, rows, allow_unreliable=True).choose("5ms") >= 0


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "cfg_id 2 is the most accurate of 3 stitches"),
        (["--max-flops", "6"], "cfg_id 0 is the only stitch, out of 3, with at most 6 FLOPs"),
        (["--max-flops", "8"], "cfg_id 1 is the most accurate of the 2 stitches, out of 3, with at most 8 FLOPs"),
        (["--min-acc1", "60"], "cfg_id 1 is the cheapest of the 2 stitches, out of 3, with at least 60 % top-1"),
        (
            ["--max-flops", "9"],
            "cfg_id 2 is the most accurate of all 3 stitches; the budget excludes none: each has at most 9 FLOPs",
        ),
    ],
)
def test_the_best_is_named_in_a_sentence(flags, sentence, capsys, tmp_path):
    write_rows(tmp_path / "r.txt", [{"cfg_id": n, "flops": 5 + 2 * n, "acc1": 50.0 + 20 * n} for n in range(3)])
    assert main(["pick", str(tmp_path / "r.txt"), *flags]) == 0
    assert capsys.readouterr().out.splitlines()[0] == sentence


def test_a_ledger_of_one_stitch_has_no_best_one(capsys, tmp_path):
    write_rows(tmp_path / "r.txt", [{"cfg_id": 4, "flops": 5, "acc1": 50.0}])
    for flags, sentence in (
        ([], "cfg_id 4 is the only stitch"),
        (["--max-flops", "9"], "cfg_id 4 is the only stitch, and has at most 9 FLOPs"),
    ):
        assert main(["pick", str(tmp_path / "r.txt"), *flags]) == 0
        assert capsys.readouterr().out.splitlines()[0] == sentence


def test_a_missing_latency_says_how_to_measure_it(capsys, tmp_path):
    write_rows(tmp_path / "r.txt", [{"cfg_id": 0, "flops": 1, "acc1": 5.0}])
    assert main(["pick", str(tmp_path / "r.txt"), "--max-latency-ms", "5"]) == 2
    assert "has no 'latency_ms'; give --stitch-config to measure it here" in capsys.readouterr().err


def test_a_ledger_of_another_network_is_refused(capsys, tmp_path):
    config = write_config(tmp_path / "pico.json")
    rows = pareto_like(pico_snnet())
    for row, message in [
        (rows[3] | {"flops": 17}, "cfg_id 3 has flops 17"),
        (rows[3] | {"cfg_id": 99}, "it has cfg_id 99, this space has 0 to 16"),
    ]:
        write_rows(tmp_path / "ledger.txt", [row])
        assert main(["pick", str(tmp_path / "ledger.txt"), "--stitch_config", str(config)]) == 2
        assert message in capsys.readouterr().err


def test_a_published_ledger_gets_its_names_from_the_configuration(shared, capsys):
    ledger, config = shared / "published/levit_192_256.jsonl", ROOT / "configs/levit_192_256.json"
    assert main(["pick", str(ledger), "--max-params", "15M", "--stitch_config", str(config), "--json"]) == 0
    best = json.loads(capsys.readouterr().out)["best"]
    assert best["stitch"].startswith("levit_192")
    assert best["params"] <= 15e6


@pytest.fixture(scope="module")
def model():
    return pico_snnet()


def test_each_call_runs_the_best_stitch_within_its_budget(model):
    rows = pareto_like(model)
    budgeted = stitchkit.BudgetedModel(model, rows)
    for limit in sorted(row["flops"] for row in rows)[::5]:
        best = max((row for row in rows if row["flops"] <= limit), key=lambda row: row["acc1"])["cfg_id"]
        assert budgeted.choose(limit) == best
        assert budgeted(pico_images(), budget=limit).equal(model(pico_images(), best))
        assert budgeted(pico_images(), budget=f"{limit / 1e3:.6f}k").equal(model(pico_images(), best))


def test_without_a_budget_the_stitch_that_was_set_runs(model):
    budgeted = stitchkit.BudgetedModel(model, pareto_like(model))
    model.reset_stitch_id(5)
    assert budgeted(pico_images()).equal(model(pico_images(), 5))
    model.reset_stitch_id(0)


def test_a_latency_is_a_budget_once_it_was_measured(model, short_timing):
    budgeted = stitchkit.BudgetedModel(model, pareto_like(model))
    with pytest.raises(stitchkit.InputError, match=r"call measure\(\) first"):
        budgeted(pico_images(), budget="8ms")
    assert "batches of 2" in budgeted.measure(batch_size=2)
    limit = sorted(row["latency_ms"] for row in budgeted.rows)[3]
    within = [row for row in budgeted.rows if row["latency_ms"] <= limit]
    assert budgeted.choose(f"{limit!r}ms") == max(within, key=lambda row: row["acc1"])["cfg_id"]
    assert budgeted.choose(" 1e9 ms ") == max(budgeted.rows, key=lambda row: row["acc1"])["cfg_id"]


def test_a_choice_is_kept_until_latencies_are_measured_again(model, monkeypatch):
    budgeted = stitchkit.BudgetedModel(model, pareto_like(model, latency_ms=1.0))
    monkeypatch.setattr("stitchkit.ship.budgeted.add_latencies", lambda *_, **__: "measured")
    for found in (3, 7):
        with monkeypatch.context() as patched:
            patched.setattr("stitchkit.ship.budgeted.pick_one", lambda *_, found=found, **__: {"cfg_id": found})
            assert budgeted.choose("2ms") == found
        assert budgeted.choose("2ms") == found
        assert budgeted.measure() == "measured"


def test_a_budget_below_all_names_the_cheapest(model):
    with pytest.raises(stitchkit.InputError, match="the nearest miss is cfg_id 0"):
        stitchkit.BudgetedModel(model, pareto_like(model))(pico_images(), budget=1)


@pytest.mark.parametrize("budget", ["fast", "ms", "5 apples", "-3ms", 0, -1.0, float("nan")])
def test_what_is_not_a_budget_is_refused(model, budget):
    rows = pareto_like(model, latency_ms=1.0)
    with pytest.raises(stitchkit.InputError):
        stitchkit.BudgetedModel(model, rows).choose(budget)


@pytest.mark.parametrize(
    ("budget", "message"),
    [(0, "budget is 0; give FLOPs above 0"), ("0ms", "budget is 0ms; give"), ("8MS", "write milliseconds as 8ms")],
)
def test_a_wrong_budget_is_answered_in_its_own_words(model, budget, message):
    with pytest.raises(stitchkit.InputError, match=message):
        stitchkit.BudgetedModel(model, pareto_like(model, latency_ms=1.0)).choose(budget)


def test_the_ledger_must_be_of_the_model(model):
    rows = pareto_like(model)
    with pytest.raises(stitchkit.InputError, match="its cfg_id 2 has stitch ti"):
        stitchkit.BudgetedModel(model, [rows[2] | {"stitch": "ti[0:2] > s[2:3]"}])
    with pytest.raises(stitchkit.InputError, match="it has cfg_id 40, this space has 0 to"):
        stitchkit.BudgetedModel(model, [rows[2] | {"cfg_id": 40}])
    with pytest.raises(stitchkit.InputError, match="has no 'acc1'"):
        stitchkit.BudgetedModel(model, [{key: value for key, value in rows[2].items() if key != "acc1"}])
    with pytest.raises(stitchkit.InputError, match="has no rows"):
        stitchkit.BudgetedModel(model, [])
    unnamed = [{"cfg_id": 2, "flops": 304_000_000, "acc1": 78.0}]  # as published rows are
    with pytest.raises(stitchkit.InputError, match="another SN-Net: its cfg_id 2 has flops 304000000, but "):
        stitchkit.BudgetedModel(model, unnamed)
