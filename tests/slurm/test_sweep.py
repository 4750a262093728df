"""A sweep through a real Slurm: a job that is preempted resumes from its last finished epoch."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.support import ROOT, write_sweep

SCRIPT = Path(__file__).parent / "cluster.sh"
EPOCHS = 100  # some seconds, more than Slurm takes to kill a job
JOBS = [f"train-pico-gap-1,1-adapter-{name}" for name in ("finetune", "linear_no_downsample")]

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(shutil.which("sbatch") is None, reason="Slurm is not installed; apt-get install slurm-wlm"),
]


@pytest.fixture
def slurm(monkeypatch):
    """A cluster of one node, this machine. Its folder has a short name, as sockets need."""
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    try:
        subprocess.run([SCRIPT, "start", folder], check=True, timeout=60)
        yield folder
    finally:
        subprocess.run(["scancel", "--me"], check=False)
        time.sleep(3)
        subprocess.run([SCRIPT, "stop", folder], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def wait_until(condition, what, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.2)


def job_id(folder):
    return (folder / "result.slurm").read_text()


def start_now(job):
    """Slurm lets a requeued job wait for two minutes; nobody has to."""
    asked = ["squeue", "--noheader", "--jobs", job, "--format=%r"]
    wait_until(
        lambda: subprocess.run(asked, capture_output=True, text=True).stdout.strip() == "BeginTime", "the requeue"
    )
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)


@pytest.mark.parametrize(
    "preempt", [["scontrol", "requeue"], ["scancel", "--signal=USR2"]], ids=["requeued", "signalled"]
)
def test_a_preempted_job_of_a_sweep_resumes(slurm, images, tmp_path, preempt):
    train = {"dataset": str(images), "data_preprocessing": {"image_size": 16}, "epochs": EPOCHS, "batch_size": 8}
    path = write_sweep(tmp_path, images, train_config=train, pretrained=False)
    flags = ["-o", str(tmp_path / "out"), "--cluster", "slurm", "--partition", "main", "--gpus", "0", "--jobs", "2"]
    command = [sys.executable, "-m", "stitchkit", "sweep", "-c", str(path), *flags, "--device", "cpu"]
    first, second = (tmp_path / "out" / name for name in JOBS)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as launcher:
        wait_until((first / "result/checkpoint.pth").exists, "the first epoch")
        subprocess.run([*preempt, job_id(first)], check=True)
        # A person may leave; the jobs continue, and the next command watches them.
        launcher.terminate()
    assert not (first / "result.pkl").exists()
    start_now(job_id(first))
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, env=dict(os.environ))
    assert again.returncode == 0, again.stdout + again.stderr
    for folder in (first, second):
        assert list(pd.read_csv(folder / "result.csv")["Epoch"]) == list(range(EPOCHS + 1))
        assert not (folder / "result").exists()  # nobody asked to keep them
    log = (first / "log.txt").read_text()
    assert log.count(f"{EPOCHS} epochs of 8 steps") == 2  # it started twice
    assert log.count(f"epoch 1/{EPOCHS}  step 8/8") == 1  # and did its first epoch once
    assert (second / "log.txt").read_text().count(f"{EPOCHS} epochs of 8 steps") == 1
