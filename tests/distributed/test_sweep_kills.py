"""A sweep that is killed at every place, and run again each time, ends like an unbroken one, bit for bit."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from stitchkit.assembly.sweep.report.tables import sweep_report
from stitchkit.assembly.sweep.worker import SweepJob
from stitchkit.cli import main
from tests.distributed.subjects import equal
from tests.support import ROOT, write_sweep

pytestmark = pytest.mark.full  # each job is a process that loads torch
EPOCHS = 40  # some seconds, so that a job can be killed more than once
FIRST, SECOND = (f"train-pico-gap-1,1-adapter-{name}" for name in ("linear_no_downsample", "finetune"))


@pytest.fixture(scope="module")
def sweep(images, tmp_path_factory):
    """The file of a sweep of two jobs, which keep their checkpoints."""
    place = tmp_path_factory.mktemp("sweep")
    train = {"dataset": str(images), "data_preprocessing": {"image_size": 16}, "epochs": EPOCHS, "batch_size": 8}
    return write_sweep(
        place, images, train_config={**train, "seed": 3}, pretrained=False,
        stitchers=["linear_no_downsample", "finetune"], save_checkpoints=True, checkpoint_interval=3,
    )  # fmt: skip


def command(sweep: Path, out: Path) -> list[str]:
    return ["sweep", "-c", str(sweep), "-o", str(out), "--device", "cpu"]


class Launched:
    """The command as a person runs it: a process group of its own, as in a terminal."""

    def __init__(self, sweep: Path, out: Path):
        self.printed = sweep.with_name("printed.txt")  # not a pipe: jobs that outlive the command hold it open
        with self.printed.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stitchkit", *command(sweep, out)],
                cwd=ROOT, stdout=file, stderr=file, start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip

    def worker(self) -> int:
        """submitit's process, which starts the job's own."""
        return child_of(self.process.pid)

    def end(self) -> tuple[int, str]:
        return self.process.wait(timeout=240), self.printed.read_text()


def child_of(parent: int) -> int:
    [child] = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return int(child)


def wait_for(condition, what: str):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, f"waited for {what}"
        time.sleep(0.01)


def trained_more(folder: SweepJob):
    """Whether a job has saved another checkpoint since now."""
    file = folder.checkpoints / "checkpoint.pth"
    before = file.stat().st_mtime_ns if file.exists() else 0
    return lambda: file.exists() and file.stat().st_mtime_ns > before


def figures(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [
            {key: value for key, value in row.items() if not key.startswith(("Time/", "Proc "))}
            for row in csv.DictReader(file)
        ]


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "submitit" not in path.parts}


def assert_same_end(one: Path, other: Path) -> None:
    sweep_report(one)
    sweep_report(other)
    assert files_of(one) == files_of(other)
    assert (one / "results.csv").read_bytes() == (other / "results.csv").read_bytes()
    assert pd.read_parquet(one / "results.parquet").equals(pd.read_parquet(other / "results.parquet"))
    for name in (FIRST, SECOND):
        assert figures(one / name / "result-3.csv") == figures(other / name / "result-3.csv")
        assert (one / name / "config.yml").read_bytes() == (other / name / "config.yml").read_bytes()
        assert (one / name / "metadata.yml").read_bytes() == (other / name / "metadata.yml").read_bytes()
        states = [torch.load(place / name / "result-3/checkpoint.pth", weights_only=True) for place in (one, other)]
        for key in ("state_dict", "optimizer", "epoch", "step"):
            assert equal(states[0][key], states[1][key]), key


@pytest.mark.skipif(sys.platform != "linux", reason="it finds processes in /proc")
def test_a_sweep_killed_at_every_place_ends_like_an_unbroken_one(sweep, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(command(sweep, whole)) == 0
    first, second = SweepJob(out / FIRST, 3), SweepJob(out / SECOND, 3)

    launched = Launched(sweep, out)  # the command is killed; its job, which still loads torch, lives on
    wait_for(lambda: list(first.path.glob("submitit/*/*_submitted.pkl")), "the first job")
    launched.process.kill()
    launched.end()
    assert first.state == "running"
    assert not any(first.checkpoints.iterdir())

    launched = Launched(sweep, out)  # killed while it waits for that job
    wait_for(trained_more(first), "the first job")
    launched.process.kill()
    launched.end()
    assert first.is_running

    launched = Launched(sweep, out)  # waits for that job, and loses the next one
    wait_for(trained_more(second), "the second job")
    assert first.result.exists()
    assert len(list((first.path / "submitit").iterdir())) == 1  # it was never started a second time
    assert first.log.read_text().count(f"{EPOCHS} epochs of 8 steps") == 1
    os.kill(child_of(launched.worker()), signal.SIGKILL)
    status, printed = launched.end()
    assert status == 2
    assert f"interrupted: {SECOND}" in printed
    assert "1 job interrupted" in printed

    launched = Launched(sweep, out)  # Ctrl-C reaches all of its processes
    wait_for(trained_more(second), "the second job again")
    os.killpg(launched.process.pid, signal.SIGINT)
    status, printed = launched.end()
    assert status == 130
    assert "Traceback" not in printed
    wait_for(lambda: "stopped by a signal; step " in second.log.read_text(), "its last checkpoint")
    assert "2 jobs: 1 done, 0 running, 0 failed, 1 waiting" in printed
    assert f"1/1 {SECOND}" not in printed
    assert "stopped by a signal; jobs that were running save their state and end;" in printed

    launched = Launched(sweep, out)  # submitit's process is killed; the job lives on, and is waited for
    wait_for(trained_more(second), "the second job once more")
    os.kill(launched.worker(), signal.SIGKILL)
    assert launched.end()[0] == 0
    assert_same_end(whole, out)


def test_a_folder_of_other_settings_is_refused_and_left_alone(sweep, tmp_path, capsys):
    place = tmp_path / "out" / FIRST
    quick = [*command(sweep, tmp_path / "out"), "--epochs", "1"]
    assert main([*quick, "--jobs", "2"]) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    capsys.readouterr()
    assert main([*quick, "-m", "2"]) == 2
    assert capsys.readouterr().err == (
        f"stitchkit: error: '{place}' was trained with other settings (train_config.max_batches unset -> 2); the "
        "sweeps in a folder share their settings, so use the same, choose another -o, or remove the folder\n"
    )
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
