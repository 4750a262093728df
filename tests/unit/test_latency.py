"""Latency: of networks in turns, with a verdict on whether it can be trusted."""

import itertools
import re
import time

import pytest
import torch
from torch import nn

import stitchkit
from stitchkit.cli import main
from stitchkit.measure import latency
from stitchkit.measure.latency import add_latencies, latencies
from stitchkit.measure.latency_verdict import latency_note, without_unreliable
from stitchkit.measure.ledger import read_rows, write_rows
from stitchkit.ship.report import read_ledgers
from tests.support import pico_anchor, pico_config, pico_images, pico_snnet, write_config


class Sleep(nn.Module):
    """Takes as long as a test says: a time in seconds, or one for each call."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = itertools.repeat(seconds) if isinstance(seconds, float) else itertools.chain(seconds)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        time.sleep(next(self.seconds))
        return x


def test_a_latency_is_that_of_one_pass_after_a_warm_up(monkeypatch):
    monkeypatch.setattr(latency, "_SECONDS", 0.1)
    module = Sleep(0.01)
    (found,) = latencies([module], torch.zeros(1), limit_s=1)
    assert 10 <= found.ms < 20, "a busy machine sleeps longer"
    assert module.calls >= 2 * 7
    assert module.training, "the mode is kept"


def test_networks_take_turns_so_that_a_slow_while_is_slow_for_all(monkeypatch):
    monkeypatch.setattr(latency, "_SECONDS", 0.0)
    order = []
    modules = [Sleep(0.001), Sleep(0.001)]
    for number, module in enumerate(modules):
        module.register_forward_hook(lambda *_, number=number: order.append(number))
    latencies(modules, torch.zeros(1), limit_s=0.0)
    assert order == 7 * [0, 0, 1, 1]


@pytest.mark.parametrize(
    "seconds",
    [itertools.cycle([0.001, 0.001, 0.02, 0.02]), itertools.chain([0.001] * 20, itertools.repeat(0.01))],
    ids=["two speeds", "slower after a while"],
)
def test_what_does_not_settle_is_unreliable(seconds):
    found = latencies([Sleep(seconds), Sleep(0.001)], torch.zeros(1), limit_s=0.4)
    assert not found[0].reliable
    assert f" {found[0].spread_percent:.1f} %, and the limit is 5 %)" in found[0].doubt


def test_a_long_measurement_shows_its_progress_and_a_short_one_nothing(monkeypatch, caplog, capsys):
    caplog.set_level("INFO")
    for seconds, lines in ((60.0, []), (1e-9, [f"{number}/7 rounds" for number in range(1, 7)])):
        monkeypatch.setattr("stitchkit.progress._SECONDS", seconds)
        latencies([Sleep(0.002)], torch.zeros(1), limit_s=0.0)
        assert re.findall(r"latency  (\d/7 rounds)", caplog.text) == lines
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("later", "spread"), [(1.04, 3.9), (1.08, 7.7)])
def test_a_machine_that_becomes_slower_is_unreliable_however_many_the_rounds(later, spread, monkeypatch):
    times = iter([1.0, 1.0001] * 100 + [later, later + 0.0001] * 100)
    monkeypatch.setattr(latency, "_ROUNDS", 400)
    monkeypatch.setattr(latency, "_milliseconds", lambda *_: next(times))
    (found,) = latencies([nn.Identity()], torch.zeros(1), limit_s=0.0)
    assert found.spread_percent == pytest.approx(spread, abs=0.1)
    assert found.reliable is (spread < 5)
    doubt = f" (unreliable: its two halves differ by {spread} %, and the limit is 5 %)"
    assert found.doubt == ("" if found.reliable else doubt)


def test_rounds_are_repeated_until_the_medians_are_stable(monkeypatch):
    monkeypatch.setattr(latency, "_SECONDS", 0.0)
    monkeypatch.setattr(latency, "LIMIT_PERCENT", 20.0)
    module = Sleep(itertools.chain(8 * [0.05], itertools.repeat(0.001)))
    (found,) = latencies([module], torch.zeros(1), limit_s=30)
    assert found.reliable
    assert module.calls > 2 * 7


def test_rows_get_latencies_and_how_they_were_measured(short_timing):
    rows = [{"cfg_id": 2}, {"cfg_id": 5}]
    said = add_latencies(rows, pico_snnet(), batch_size=4)
    assert all(row["images_per_s"] == pytest.approx(4000 / row["latency_ms"]) for row in rows)
    for row in rows:
        assert row["latency_device"].startswith("cpu (")
        assert (row["latency_threads"], row["latency_batch_size"], row["latency_precision"]) == (1, 4, "float32")
        assert row["latency_spread_percent"] >= 0
        assert row["latency_reliable"] is True
    assert said == latency_note(rows)
    assert "batches of 4 on cpu (" in said
    assert "1 CPU thread, float32: medians, at most ±" in said


def test_networks_for_dense_prediction_have_latencies(short_timing):
    """What runs is the route with the model's own weights: copies for each route would fill the memory."""
    vits = [pico_anchor("s", 8), pico_anchor("b", 16)]
    config = pico_config(anchors=vits, rule="two_way", lora_r=2)
    model = stitchkit.create_snnet(config, dense={"task": "segmentation", "head": "setr"}, num_classes=5).eval()
    rows, x = [{"cfg_id": cfg_id} for cfg_id in (1, model.space.ids[-1])], pico_images()
    add_latencies(rows, model, batch_size=2)
    own = {id(parameter) for parameter in model.parameters()}
    for row in rows:
        assert row["latency_ms"] > 0
        route = model.route(row["cfg_id"]).eval()
        assert torch.equal(route(x), model(x, row["cfg_id"]))
        assert {id(parameter) for parameter in route.parameters()} <= own


def test_latencies_without_a_verdict_get_a_note():
    """As those of other tools."""
    assert latency_note([{"cfg_id": 0, "latency_ms": 1.0}]).startswith("latencies measured under unknown conditions")
    assert not latency_note([{"cfg_id": 0}])


def test_one_disturbed_stitch_makes_all_latencies_unreliable(monkeypatch):
    monkeypatch.setattr(latency, "_LIMIT_SECONDS", 0.3)
    model, rows = pico_snnet(), [{"cfg_id": 0}, {"cfg_id": 2}]
    pause = itertools.cycle([0.0, 0.0, 0.02, 0.02])
    model.views["b"].model.blocks[2].register_forward_hook(lambda *_: time.sleep(next(pause)))
    assert add_latencies(rows, model, batch_size=1).endswith("; unreliable, since the limit is ± 5 %")
    assert [row["latency_reliable"] for row in rows] == [False, False]
    assert rows[1]["latency_spread_percent"] > 5
    assert not any("latency_ms" in row for row in without_unreliable(rows))
    assert "latency_ms" in rows[0]


def test_a_report_leaves_unreliable_latencies_out_unless_allowed(tmp_path):
    row = {"cfg_id": 0, "flops": 1, "acc1": 5.0, "latency_ms": 2.0, "latency_reliable": False}
    write_rows(tmp_path / "r.txt", [row])
    for allowed in (False, True):
        (content,) = read_ledgers([tmp_path / "r.txt"], allow_unreliable=allowed)
        assert ("latency_ms" in content["rows"][0]) is allowed


def test_a_model_card_says_how_latencies_were_measured(short_timing):
    model = stitchkit.HubSNNet(pico_config())
    model.ledger = [{"cfg_id": 0, "flops": 1, "acc1": 5.0}]
    said = add_latencies(model.ledger, model, batch_size=2)
    assert f"How latencies were measured: {said}.\n" in str(model.generate_model_card())
    model.ledger[0]["latency_reliable"] = False
    card = str(model.generate_model_card())
    assert "latenc" not in card.split("## Pareto front")[1]


@pytest.mark.parametrize("changes", [{}, {"dense": {"task": "depth", "head": "linear"}}], ids=["classes", "depth"])
def test_the_command(changes, tmp_path, short_timing, capsys):
    config, out = write_config(tmp_path / "pico.json", **changes), tmp_path / "costs.txt"
    command = ["profile", "--stitch_config", str(config), "--latency", "--device", "cpu"]
    assert main([*command, "-b", "2", "--output", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "latency_ms" in printed
    assert re.search(r"17 stitches, [\d.]+[kMG] to [\d.]+[kMG] FLOPs; \* marks anchors", printed)
    assert all(row["latency_ms"] > 0 for row in read_rows(out))
    assert main([*command, "-b", "0"]) == 2
    assert "--batch-size is 0" in capsys.readouterr().err
    assert main([*command, "--device", "abacus"]) == 2
    assert "device 'abacus' is not supported" in capsys.readouterr().err
    assert main([*command, "--output", str(tmp_path / "no/where.txt")]) == 2
    assert "does not exist" in capsys.readouterr().err
