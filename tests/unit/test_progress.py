"""What a run says while it works: lines without a terminal, their speed and time, and the log in its folder."""

import logging
import re
import time

import pytest
import torch

from stitchkit import progress as module
from stitchkit.cli import main
from stitchkit.distributed import World
from stitchkit.progress import progress
from tests.support import FLAGS, write_config

LEFT = r"\d+:\d\d(:\d\d)? left"


@pytest.mark.parametrize(("rank", "lines"), [(0, 4), (1, 0)])
def test_without_a_terminal_progress_is_a_line_now_and_then(rank, lines, monkeypatch, caplog, capsys):
    monkeypatch.setattr(module, "_SECONDS", 0.01)
    with caplog.at_level(logging.INFO):
        for _ in progress(range(4), World(rank, 2, torch.device("cpu")), "35 stitches", unit="batches", images=8):
            time.sleep(0.06)
    assert len(caplog.messages) == lines
    assert caplog.messages[:1] in ([], ["35 stitches  1/4 batches"]), "the first also waits for the loader"
    for line in caplog.messages[1:]:
        assert re.fullmatch(rf"35 stitches  \d/4 batches  \d+ images/s  {LEFT}", line)
    assert capsys.readouterr().err == ""


def test_more_than_was_expected_has_no_time_left(monkeypatch, caplog):
    monkeypatch.setattr(module, "_SECONDS", 0.01)
    with caplog.at_level(logging.INFO):
        for _ in progress(range(4), World(0, 1, torch.device("cpu")), "latency", unit="passes", total=2):
            time.sleep(0.06)
    assert re.fullmatch(rf"latency  2/2 passes  {LEFT}", caplog.messages[1])
    assert caplog.messages[2:] == ["latency  3/? passes", "latency  4/? passes"]


def test_a_run_has_a_log_with_times_speed_and_what_ended_it(images, tmp_path, caplog):
    caplog.set_level(logging.INFO)  # as the command line does
    config = write_config(tmp_path / "pico.json")
    flags = ["train", images, "--stitch_config", config, *FLAGS, "--output", tmp_path]
    assert main([*map(str, flags), "--epochs", "1"]) == 0
    log = tmp_path / "pico/log.txt"
    first = log.read_text()
    lines = first.splitlines()
    assert all(re.match(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d  \S", line) for line in lines)
    assert re.search(rf"epoch 1/1  step 8/8  loss \S+  lr \S+  \d+ images/s  {LEFT} in total$", first, re.M)
    assert "stitching layers fitted" in first
    assert "next, measure every stitch" in lines[-1]

    assert main([*map(str, flags), "--epochs", "1"]) == 2
    assert log.read_text() == first, "a run that is refused leaves the folder alone"

    assert main([*map(str, flags), "--resume", "auto", "--lr", "1e30"]) == 2
    again = log.read_text()
    assert again.startswith(first)
    assert re.search(r"  stopped: the loss is", again.splitlines()[-1])
