"""Each benchmark runs, its answers agree with the reference's, and its last line is JSON. No test of speed."""

import importlib
import json
import subprocess
import sys
from datetime import date
from importlib.metadata import version

import pytest
import torch

from benchmarks import gpu
from benchmarks.__main__ import document, kept, machine, main as benchmarks_main, put_gpu
from benchmarks.compose import FIVE
from benchmarks.frame import DIGITS, PRECISIONS, Check, Options, Result, command
from benchmarks.limit import Limit, multiply_adds
from benchmarks.rows import GPU_ROWS, ROWS, Row, line
from stitchkit.measure.profile import Profiler
from stitchkit.model.onepass import OnePass
from stitchkit.networks.mode import unfused_attention
from tests.support import ROOT, mostly_full, pico_images, pico_snnet, write_config

KEYS = {"name", "ratio", "ours_s", "reference_s", "agree", "difference", "tolerance"}


def run(name, capsys, *flags, devices=("cpu",)):
    """Exit status, output and JSON of a benchmark."""
    module = importlib.import_module(f"benchmarks.{name}")
    settings = {"devices": devices, "precisions": PRECISIONS, "arguments": ["--quick", *flags]}
    status = command(module.measure, module.__doc__, **settings)
    output = capsys.readouterr().out
    return status, output, json.loads(output.splitlines()[-1])


@pytest.mark.parametrize("name", ["evaluate", "extract", "features", "initialise", "profile", "train_step"])
@pytest.mark.parametrize("final_norm", mostly_full([True, False], quick=[True]))
def test_ours_agrees_with_the_reference(name, final_norm, capsys, tmp_path):
    config = write_config(tmp_path / "pico.json", stitched_final_norm=final_norm)
    status, output, found = run(name, capsys, "--stitch_config", str(config))
    assert status == 0
    assert found.keys() >= KEYS
    assert found["name"] == name
    assert found["agree"] is True
    assert min(found[key] for key in ("ratio", "ours_s", "reference_s")) > 0
    assert "quick" in output


@pytest.mark.parametrize("name", ["evaluate", "features", "train_step"])
def test_ours_agrees_with_the_reference_in_bfloat16(name, capsys, tmp_path):
    config = write_config(tmp_path / "pico.json")
    status, output, found = run(name, capsys, "--stitch_config", str(config), "--precision", "bfloat16")
    assert status == 0
    assert found["agree"] is True
    assert found["share"] > 0
    assert name == "features" or found["ratio_float32"] > 0
    assert "bfloat16, pico.json" in output


def test_a_benchmark_that_knows_one_precision_refuses_others(capsys):
    with pytest.raises(SystemExit):
        command(lambda _: None, "", arguments=["--precision", "bfloat16"])
    assert "invalid choice: 'bfloat16'" in capsys.readouterr().err


def test_shares_are_rates_over_that_of_the_products():
    limit = Limit(torch.ones(20, 30), torch.ones(50, 30), 4)
    assert limit.multiply_adds == 4 * 20 * 30 * 50
    seconds = {"limit": [1.0, 2.0, 9.0], "ours": [4.0], "reference": [1.0]}
    found = limit.shares(seconds, {"ours": 60_000, "reference": 120_000})
    assert found == {"limit_gmacs": 60_000 / 1e9, "share": 0.25, "reference_share": 2.0}


def test_the_limit_is_the_fastest_product_and_runs_beside_the_work():
    limit = Limit.find(Options(quick=True))
    assert limit.activations.dtype == torch.float32
    assert Limit.find(Options(quick=True, precision="bfloat16")).weights.dtype == torch.bfloat16
    seconds, answers = Options().alternate({"ours": lambda: 1}, rounds=2, limit=limit)
    assert [len(runs) for runs in seconds.values()] == [2, 2]
    assert answers == {"ours": 1}


def test_counted_multiply_adds_are_those_of_fvcore_and_three_times_these_in_training():
    model, images = pico_snnet(), pico_images()
    profiler = Profiler(model)
    costs = {cfg_id: profiler.cost(cfg_id).flops for cfg_id in model.space.ids}
    with unfused_attention(model):
        forward = {cfg_id: multiply_adds(lambda cfg_id=cfg_id: model(images[:1], cfg_id)) for cfg_id in costs}
        step = multiply_adds(lambda: model(images[:1], 0).sum().backward())
        shared = multiply_adds(lambda: OnePass(model).at_once(images[:1]))
    # Norms, which fvcore counts too, are a large share of so narrow blocks.
    assert all(0.85 * costs[cfg_id] < forward[cfg_id] <= costs[cfg_id] for cfg_id in costs)
    assert 2.6 * forward[0] < step < 3 * forward[0]  # images need no gradient
    assert max(forward.values()) < shared < sum(forward.values())


def test_a_grouped_convolution_is_counted_by_its_groups_in_training_too():
    layer, images = torch.nn.Conv2d(8, 8, 3, groups=8, bias=False), torch.ones(1, 8, 6, 6, requires_grad=True)
    forward = 8 * 9 * 4 * 4
    assert multiply_adds(lambda: layer(images)) == forward
    assert multiply_adds(lambda: layer(images).sum().backward()) == 3 * forward


@pytest.mark.full
def test_whole_commands_give_the_same_ledger(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # threads that wait for one another cost most on a busy machine
    status, _, found = run("evaluate_files", capsys, "--stitch_config", DIGITS)
    assert status == 0
    assert found["agree"] is True


@pytest.mark.full
def test_composing_agrees_with_the_plain_search(capsys):
    status, output, found = run("compose", capsys, "--stitch_config", FIVE)
    assert status == 0
    assert found["agree"] is True
    assert found["step_ratio"] > 0
    assert "candidates that stand elsewhere in the order, all rows: 0" in output


def test_answers_that_differ_are_reported(capsys):
    def measure(_):
        seconds = {"ours": [1.0, 3.0, 2.0], "reference": [8.0]}
        return Result("wrong", "nothing", seconds, (Check("logits", float("nan"), 1e-4), Check("costs", 0, 0)))

    assert command(measure, "", arguments=[]) == 1
    output = capsys.readouterr().out
    assert "DIFFER" in output
    found = json.loads(output.splitlines()[-1])
    assert found["agree"] is False
    assert found["ratio"] == 4


def test_ways_run_in_turn_and_the_first_round_does_not_count():
    order = []
    ways = {name: lambda name=name: order.append(name) or len(order) for name in ("ours", "reference")}
    seconds, answers = Options().alternate(ways, rounds=3)
    assert order == ["ours", "reference"] * 4
    assert [len(runs) for runs in seconds.values()] == [3, 3]
    assert answers == {"ours": 1, "reference": 2}


@pytest.mark.parametrize("name", ["extract", "initialise"])
def test_a_reference_for_vits_refuses_others(name, capsys):
    module = importlib.import_module(f"benchmarks.{name}")
    assert command(module.measure, "", arguments=["--quick", "--stitch_config", DIGITS]) == 2
    assert "choose a configuration" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(capsys):
    measure = importlib.import_module("benchmarks.evaluate").measure
    assert command(measure, "", devices=("cpu", "cuda"), arguments=["--device", "cuda"]) == 2
    assert "no GPU" in capsys.readouterr().err


def test_a_benchmark_is_found_behind_each_line_of_the_table():
    for row in (*ROWS, *GPU_ROWS):
        importlib.import_module(row.command.split()[0])


def test_the_table_says_what_was_measured_and_what_not():
    found = {"ratio": 2.5, "slowdown": 1.004, "ours_s": 1.0, "reference_s": 2.5, "agree": True}
    text = document(
        machine(),
        [line(ROWS[0], found, "2026-11-21"), line(Row("it", "x", 1.01, "slowdown"), found), line(ROWS[-1], None)],
        None,
    )
    assert "| ratio >= 2 | ratio 2.500 | 1 s | 2.5 s | agree | 2026-11-21 | `python -m benchmarks.evaluate` |" in text
    assert "| slowdown <= 1.01 | slowdown 1.004 |" in text
    assert "| not measured |" in text
    assert all(line(row, None) in text for row in GPU_ROWS)
    assert "On a GPU: not measured" in text
    assert kept(ROWS[0], text) == line(ROWS[0], found, "2026-11-21")
    assert kept(ROWS[1], text) is None


def test_others_keep_their_figures_and_day_but_not_of_another_machine(tmp_path, monkeypatch, capsys):
    found = {"ratio": 2.5, "share": 0.5, "ratio_float32": 2.0, "ours_s": 1.0, "reference_s": 2.5, "agree": True}
    old = [line(row, found, "2020-01-01") if row.name == "evaluate" else line(row, None) for row in ROWS]
    page, gpu_file = tmp_path / "page.md", tmp_path / "gpu.json"
    monkeypatch.setattr("benchmarks.__main__.GPU_FILE", gpu_file)
    monkeypatch.setattr("benchmarks.__main__._run", lambda *_: found | {"ratio": 7.0})
    monkeypatch.setattr(sys, "argv", ["benchmarks", "profile", "--output", str(page)])
    (new,) = (line(row, found | {"ratio": 7.0}, date.today().isoformat()) for row in ROWS if row.name == "profile")
    page.write_text(document(machine(), old, None))
    benchmarks_main()
    assert [one for one in page.read_text().splitlines() if "2020-01-01" in one or one == new].count(new) == 1
    assert all(one in page.read_text() for one in old if "2020-01-01" in one)
    assert "not kept" not in capsys.readouterr().out

    page.write_text(document("Machine: another.", old, None))
    measured = {GPU_ROWS[0].command: found}
    put_gpu(page, {"machine": "Machine: with a GPU.", "on": "2021-02-03", "parts": {}, "found": measured})
    text = page.read_text()
    assert "Machine: another." in text.splitlines()
    assert all(one in text for one in old)
    assert line(GPU_ROWS[0], found, "2021-02-03") in text

    benchmarks_main()
    assert "so they are not kept: Machine: another." in capsys.readouterr().out
    assert "2020-01-01" not in page.read_text()
    assert new in page.read_text()


def test_options_say_what_the_work_was():
    assert Options(quick=True, stitch_config="configs/a.json").label == "float32, a.json, cpu, quick"


def test_figures_of_a_gpu_come_from_its_file():
    found = {"ratio": 3.25, "share": 0.8125, "ours_s": 1.0, "reference_s": 3.25, "agree": None}
    measured = {"benchmarks.evaluate --device cuda": found}
    text = document(
        "",
        [],
        {"machine": "Machine: that one.", "on": "2021-02-03", "parts": {"pytest": "9 passed"}, "found": measured},
    )
    assert "By `make bench-gpu`: Machine: that one." in text
    assert (
        "| ratio >= 2 | ratio 3.250 | 1 s | 3.25 s | not compared | 2021-02-03 "
        "| `python -m benchmarks.evaluate --device cuda` |" in text
    )
    assert "| share >= 0.9 | share 0.812 |" in text
    assert "- pytest: 9 passed" in text
    assert text.count("not measured") == sum(row.command not in measured for row in GPU_ROWS)


def test_every_figure_of_a_gpu_is_measured_within_nine_minutes():
    commands = [part.command for part in gpu.PARTS]
    assert {row.command for row in GPU_ROWS} <= {*commands}
    assert sum(part.seconds for part in gpu.PARTS) <= gpu._BUDGET < 540


def test_what_a_python_lacks_is_said_at_once(monkeypatch, capsys):
    assert gpu.missing(["torch>=2.8", "numpy>=1.26", "fvcore>=0.1.5.post20221221"]) == []
    lacks = gpu.missing(["torch>=99.1", "no-such-package>=1"])
    assert lacks == [f"torch>=99.1 (there is {version('torch')})", "no-such-package>=1"]
    assert gpu._numbers("2.8.0a0+7f1") == [2, 8, 0]
    monkeypatch.setattr(gpu, "missing", lambda _: lacks)
    with pytest.raises(SystemExit, match=r"lacks torch>=99\.1 .*, no-such-package>=1; nothing is installed here"):
        gpu.check(dry_run=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_said_at_once():
    with pytest.raises(SystemExit, match="torch finds no GPU"):
        gpu.check(dry_run=False)
    gpu.check(dry_run=True)


def test_each_part_is_kept_and_one_that_takes_too_long_is_not_measured(tmp_path, monkeypatch):
    parts = [gpu.TimedCommand("pytest --version", 60), gpu.TimedCommand("http.server 0 --bind 127.0.0.1", 0.1)]
    monkeypatch.setattr(gpu, "PARTS", parts)
    output = tmp_path / "gpu.json"
    assert not gpu.run_all(output, dry_run=True)
    report = json.loads(output.read_text())
    assert report["parts"]["pytest --version"].startswith("pytest ")
    assert report["parts"][parts[1].command].startswith("not measured: stopped after 1 s")
    assert "Dry run" in report["machine"]
    monkeypatch.setattr(gpu, "_BUDGET", 0.5)
    assert not gpu.run_all(output, dry_run=True)
    assert all("were left" in said for said in json.loads(output.read_text())["parts"].values())


def test_a_part_that_warns_at_its_end_or_gives_no_figures_does_not_end_the_others(tmp_path, monkeypatch, capfd):
    """Commands as `python -m` runs them: one ends with warnings on both streams, two without figures."""
    figures = json.dumps({"work": "some work", "agree": None})
    late = f"import sys\nprint('{figures}\\n[late warning]')\nprint('late error', file=sys.stderr)\n"
    scripts = {"ends_late": late, "says_nothing": "", "breaks": "raise ValueError('broken')\n"}
    for name, script in scripts.items():
        (tmp_path / f"benchmarks_{name}.py").write_text(script)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = {name: gpu.run(f"benchmarks_{name}", 60, dry_run=False) for name in scripts}
    assert found["ends_late"] == ("some work", json.loads(figures))
    assert found["says_nothing"] == ("failed with status 0: no figures", None)
    assert found["breaks"] == ("failed with status 1: ValueError: broken", None)
    shown = capfd.readouterr()
    assert "late warning" in shown.out
    assert "late error" in shown.err
    assert "late error" not in shown.out


@pytest.mark.nightly
def test_a_dry_run_goes_through_all_parts(tmp_path):
    output = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(output.read_text())
    assert [*report["parts"]] == [part.command for part in gpu.PARTS]
    text = document("", [], report)
    assert "not measured" not in text
    assert "failed" not in text
