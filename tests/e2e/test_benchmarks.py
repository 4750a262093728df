"""Each benchmark runs, its answers agree with the reference's, and its last line is JSON. No test of speed."""

import importlib
import json

import pytest
import torch

from benchmarks.__main__ import ROWS, Row, document, kept, line
from benchmarks.compose import FIVE
from benchmarks.frame import DIGITS, Check, Options, Result, command
from tests.support import write_config

KEYS = {"name", "ratio", "ours_s", "reference_s", "agree", "difference", "tolerance"}


def run(name, capsys, *flags, devices=("cpu",)):
    """Exit status, output and JSON of a benchmark."""
    module = importlib.import_module(f"benchmarks.{name}")
    status = command(module.measure, module.__doc__, devices=devices, arguments=["--quick", *flags])
    output = capsys.readouterr().out
    return status, output, json.loads(output.splitlines()[-1])


@pytest.mark.parametrize("name", ["evaluate", "extract", "features", "initialise", "profile", "train_step"])
@pytest.mark.parametrize("final_norm", [True, False])
def test_ours_agrees_with_the_reference(name, final_norm, capsys, tmp_path):
    config = write_config(tmp_path / "pico.json", stitched_final_norm=final_norm)
    status, output, found = run(name, capsys, "--stitch_config", str(config))
    assert status == 0
    assert found.keys() >= KEYS
    assert found["name"] == name
    assert found["agree"] is True
    assert min(found[key] for key in ("ratio", "ours_s", "reference_s")) > 0
    assert "quick" in output


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
    for row in ROWS:
        importlib.import_module(row.command.split()[0])


def test_the_table_says_what_was_measured_and_what_not():
    found = {"ratio": 2.5, "slowdown": 1.004, "ours_s": 1.0, "reference_s": 2.5, "agree": True}
    text = document([line(ROWS[0], found), line(Row("it", "x", 1.01, "slowdown"), found), line(ROWS[-1], None)])
    assert "| ratio >= 2 | ratio 2.500 | 1 s | 2.5 s | agree | `python -m benchmarks.evaluate` |" in text
    assert "| slowdown <= 1.01 | slowdown 1.004 |" in text
    assert "| not measured |" in text
    assert kept(ROWS[0], text) == line(ROWS[0], found)
    assert kept(ROWS[1], text) is None
    assert kept(ROWS[0], text.replace("Machine: ", "Machine: another, ")) is None


def test_options_say_what_the_work_was():
    assert Options(quick=True, stitch_config="configs/a.json").label == "a.json, cpu, quick"
