"""Latency, composed of steps and measured as a whole."""

import time

import pytest
import torch
from torch import nn

from stitchkit.cli import main
from stitchkit.measure import latency
from stitchkit.measure.latency import add_latencies, latency_ms
from stitchkit.measure.ledger import read_rows
from stitchkit.measure.profile import RouteCosts
from tests.support import pico_snnet, write_config


class Sleep(nn.Module):
    """Takes as long as a test says."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        time.sleep(self.seconds)
        return x


def test_a_latency_is_that_of_one_pass_after_a_warm_up():
    module = Sleep(0.01)
    assert latency_ms(module, torch.zeros(1)) == pytest.approx(10, rel=0.3)
    assert module.calls >= 2 + 10
    assert module.training, "the mode is kept"


def test_a_stitch_takes_what_its_steps_take(monkeypatch):
    model = pico_snnet()
    meter = RouteCosts(model, latency_ms, batch_size=3)
    seen = []
    monkeypatch.setattr(meter, "_measure", lambda step, x: seen.append(len(x)) or float(len(seen)))
    stitch = model.space[5]
    steps = model.steps(stitch)
    assert meter.cost(stitch) == sum(range(1, len(steps) + 1))
    assert set(seen) == {3}
    assert meter.cost(stitch) == sum(range(1, len(steps) + 1)), "a step is measured once"
    assert len(seen) == len(steps)


def test_rows_get_latency_and_throughput(monkeypatch):
    monkeypatch.setattr(latency, "_SECONDS", 0.01)
    rows = [{"cfg_id": 2}, {"cfg_id": 5}]
    said = add_latencies(rows, pico_snnet(), batch_size=4)
    assert all(row["images_per_s"] == pytest.approx(4000 / row["latency_ms"]) for row in rows)
    assert "batches of 4 on cpu" in said
    assert "2 stitches measured as a whole differ by" in said


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(latency, "_SECONDS", 0.001)
    config, out = write_config(tmp_path / "pico.json"), tmp_path / "costs.txt"
    command = ["profile", "--stitch_config", str(config), "--latency", "--device", "cpu"]
    assert main([*command, "-b", "2", "--output", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "latency_ms" in printed
    assert "17 stitches; * marks anchors" in printed
    assert all(row["latency_ms"] > 0 for row in read_rows(out))
    assert main([*command, "-b", "0"]) == 2
    assert "--batch-size is 0" in capsys.readouterr().err
    assert main([*command, "--device", "abacus"]) == 2
    assert "device 'abacus' is not supported" in capsys.readouterr().err
    assert main([*command, "--output", str(tmp_path / "no/where.txt")]) == 2
    assert "does not exist" in capsys.readouterr().err
