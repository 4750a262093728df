"""A miniature sweep on this machine, from its file to its pictures; jobs are real processes."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from stitchkit.cli import main
from tests.support import ROOT, skip_uncut_job, write_sweep

pytestmark = pytest.mark.full  # each job is a process that loads torch
STITCHED = "train-pico-gap-1,1-adapter-linear_no_downsample"


@pytest.fixture(scope="module")
def swept(images, tmp_path_factory):
    """The folder of a sweep of one job and the uncut network, and the command that made it."""
    place = tmp_path_factory.mktemp("sweep")
    path = write_sweep(place, images, stitchers=["linear_no_downsample"], save_checkpoints=True)
    command = ["sweep", "-c", str(path), "-o", str(place / "out"), "--jobs", "2", "--device", "cpu"]
    assert main(command) == 0
    return place / "out", command


def test_each_job_leaves_its_files(swept):
    folder, _ = swept
    job = folder / STITCHED
    rows = pd.read_csv(job / "result-3.csv")
    assert list(rows["Epoch"]) == [0, 1, 2]
    about = yaml.safe_load((job / "metadata.yml").read_text())
    assert about["adapter"] == "linear_no_downsample"
    assert 0 < about["num_trainable_params"] < about["num_params"]
    assert "done; the result is" in (job / "log-3.txt").read_text()
    assert (folder / "test-pico-uncut-source/result-3.pkl").exists()


def test_a_second_start_runs_nothing(swept, caplog):
    _, command = swept
    caplog.set_level("INFO")
    assert main(command) == 0
    assert "2 jobs: 2 done, 0 running, 0 failed, 0 waiting" in caplog.text


def test_an_interrupted_job_resumes_from_its_last_epoch(swept):
    folder, command = swept
    job = folder / STITCHED
    before = pd.read_csv(job / "result-3.csv")
    for file in job.glob("result-3.*"):
        file.unlink()
    shutil.copy(job / "result-3/model-8.pth", job / "result-3/checkpoint.pth")
    assert main(command) == 0
    after = pd.read_csv(job / "result-3.csv")
    assert list(after["Epoch"]) == [0, 1, 2]
    assert after["Time/Per Epoch"][1] == before["Time/Per Epoch"][1]  # the first epoch was not run again
    assert after["Time/Per Epoch"][2] != before["Time/Per Epoch"][2]
    assert after["Overall/Train Loss"][2] == pytest.approx(before["Overall/Train Loss"][2])


def test_a_job_that_fails_is_listed_with_its_reason(images, tmp_path, caplog, capsys):
    caplog.set_level("INFO")
    path = write_sweep(tmp_path, images, stitchers=["linear_no_downsample"])
    content = yaml.safe_load(path.read_text())
    content["train_config"]["optimizer_args"] = {"lr": 1e30}
    path.write_text(yaml.safe_dump(content))
    skip_uncut_job(path, tmp_path / "out")
    assert main(["sweep", "-c", str(path), "-o", str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert "1 job failed, listed above" in capsys.readouterr().err
    assert f"log: {tmp_path / 'out' / STITCHED / 'log-3.txt'}" in caplog.text
    assert "\n  the loss is nan at step 1" in caplog.text


def test_the_report(swept, capsys):
    folder, _ = swept
    assert main(["sweep", "--report", str(folder)]) == 0
    table = pd.read_parquet(folder / "results.parquet")
    assert set(table["job"]) == {STITCHED, "test-pico-uncut-source"}
    assert capsys.readouterr().out.splitlines()[-1] == str(folder / "pico-curves.png")


def test_the_sample_sweeps_search_and_cross_what_the_search_trained(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "configs/sweeps", tmp_path / "configs/sweeps")
    monkeypatch.chdir(tmp_path)
    for name, flags in {"search": ["--only", "1", "3", "--epochs", "1"], "heads-by-encoders": []}.items():
        out = ["-o", f"outputs/sweep_{name.partition('-')[0]}", "--jobs", "2", "--device", "cpu"]
        assert main(["sweep", "-c", f"configs/sweeps/{name}.yml", *out, *flags]) == 0
    assert Path("outputs/sweep_heads/heads-by-encoders-heatmap.png").stat().st_size > 10_000
    table = pd.read_csv("outputs/sweep_heads/summary.csv")
    found = table.pivot_table(index="head_dataset", columns="encoder_dataset", values="test_accuracy")
    assert found.shape == (2, 3)
    for number, trial in ((1, 0), (2, 2)):
        trained = pd.read_csv(f"outputs/sweep_search/trial-{trial}-datasets-digits/result.csv")
        last = 100 * trained["Overall/digits/Test Accuracy"].iloc[-1]
        assert found.loc[f"digits-{number}", f"digits-{number}"] == pytest.approx(last, abs=1e-4)
