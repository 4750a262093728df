"""What a sweep finds out before it starts jobs: their data, their weights, and whether they run at all."""

from functools import partial
from unittest.mock import Mock

import pytest
import timm
import yaml

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.sweep import launch as inputs
from stitchkit.assembly.sweep.config import load_sweep
from stitchkit.assembly.sweep.kinds.gaps import plan_gaps
from stitchkit.assembly.sweep.launch import check_inputs, launch
from stitchkit.assembly.train.run import run_job
from stitchkit.cli import main
from tests.clusters import ScriptedSlurm
from tests.commands import refused
from tests.jobs import job_config, resnet, write_job
from tests.support import write_sweep


@pytest.fixture
def sweep(images, tmp_path):
    return write_sweep(tmp_path, images)


def command(sweep, tmp_path, *flags):
    return ["sweep", "-c", str(sweep), "-o", str(tmp_path / "out"), "--device", "cpu", *flags]


def jobs_of(sweep, **changes):
    return plan_gaps(sweep, **changes).jobs


def change(sweep, **train):
    content = yaml.safe_load(sweep.read_text())
    content["train_config"] |= train
    sweep.write_text(yaml.safe_dump(content))


def test_missing_data_are_found_before_any_job_starts(sweep, tmp_path, capsys, monkeypatch, caplog):
    change(sweep, dataset="./nowhere")
    assert "data folder 'nowhere' does not exist" in refused(capsys, *command(sweep, tmp_path))
    assert not [*(tmp_path / "out").glob("*/log.txt"), *(tmp_path / "out").rglob("submitit")]
    # The nodes of a cluster may have disks of their own.
    ScriptedSlurm(tmp_path / "slurm", monkeypatch)
    assert main(command(sweep, tmp_path, "--cluster", "slurm", "--detach")) == 0
    assert "the jobs fail unless the nodes have it" in caplog.text
    # Other mistakes are the same there.
    change(sweep, dataset="unknown")
    flags = ["--cluster", "slurm", "--detach", "-o", str(tmp_path / "other")]
    assert "unknown data set 'unknown'" in refused(capsys, *command(sweep, tmp_path, *flags))


def test_missing_weights_are_found_before_any_job_starts(sweep, tmp_path, capsys):
    (tmp_path / "vit.pth").unlink()
    assert "vit.pth' " in refused(capsys, *command(sweep, tmp_path))
    assert not [*(tmp_path / "out").glob("*/log.txt"), *(tmp_path / "out").rglob("submitit")]


def test_each_part_and_data_set_is_read_once(sweep, monkeypatch, caplog):
    caplog.set_level("INFO")
    opened = Mock(side_effect=inputs.open_data)
    monkeypatch.setattr(inputs, "open_data", opened)
    check_inputs(jobs_of(sweep), on_nodes=False)
    assert opened.call_count == 1  # the uncut network gets its own normalisation
    assert "loading the weights of 4 parts" in caplog.text  # of twelve


class Runs:
    """A cluster that runs no job."""

    limit, on_nodes, is_detached = 1, False, False

    def run(self, jobs):
        for job in jobs:
            job.result.touch()
            yield job


@pytest.mark.parametrize("key", ["ckp_path", "load_from"])
def test_a_sweep_accepts_the_checkpoints_that_its_jobs_accept(tmp_path, images, monkeypatch, key):
    """They may be a job's, or replace weights that cannot be downloaded."""
    content = {**job_config(str(images), epochs=1), "save_checkpoints": True}
    run_job(JobConfig.parse({**content, "pretrained": False, "save_dir": str(tmp_path / "first")}))
    checkpoint = str(tmp_path / "first/checkpoint.pth")
    if key == "ckp_path":
        content["assembly"][0]["Subnet"]["ckp_path"] = checkpoint
    else:
        monkeypatch.setattr("timm.create_model", partial(offline, timm.create_model))
        content["load_from"] = checkpoint
    del content["train_config"]["dataset"]
    plan = load_sweep(write_job(tmp_path, {**content, "datasets": [str(images)]}))
    launch(plan, tmp_path / "out", Runs(), only=None, retry_failed=False)


def offline(create, name, pretrained=False, **arguments):
    assert not pretrained
    return create(name, **arguments)


@pytest.fixture
def smoke(sweep, tmp_path, caplog, monkeypatch):
    """What a smoke run says of each job; it must leave no file."""
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)

    def run(*flags):
        before = {*tmp_path.rglob("*")}
        status = main(command(sweep, tmp_path, *flags))
        assert {*tmp_path.rglob("*")} == before
        assert not [record for record in caplog.records if "epoch" in record.message]  # not the lines of each job
        lines = [record.message for record in caplog.records if record.name.endswith("launch")]
        return status, lines

    return run


def test_one_step_leaves_nothing_that_counts_as_a_result(smoke, sweep):
    assert smoke("--st", "--only", "2", "--seed", "5") == (0, [f"1/1 {jobs_of(sweep)[1].name}: runs"])


@pytest.mark.full
def test_one_step_of_every_job_shows_which_fail(smoke, sweep, capsys):
    change(sweep, optimizer_args={"lr": 1e38})
    status, lines = smoke("--smoke")
    names = [job.name for job in jobs_of(sweep)]
    assert (status, lines[0]) == (2, f"1/3 {names[0]}: runs")  # it only tests
    for number in (2, 3):
        assert lines[number - 1].startswith(f"{number}/3 {names[number - 1]}: FAILED, RuntimeError: value cannot be")
    assert "2 of 3 jobs failed for the reasons above" in capsys.readouterr().err


def test_nested_parts_have_weights_too(sweep):
    content = yaml.safe_load(sweep.read_text())
    first = content["stages"][0]
    network = {"Assembly": {"parts": [first, {"ParallelPart": {"parts": [*content["stages"][1:2]], "agg": "avg"}}]}}
    job = inputs.JobConfig.parse({"assembly": [network], "train_config": content["train_config"]})
    assert len([*inputs._pretrained_parts(job)]) == 2
    random = inputs.JobConfig.parse(
        {"model": {"Net": {"model_name": "resnet18"}}, "pretrained": False, "train_config": content["train_config"]}
    )
    assert not [*inputs._pretrained_parts(random)]


def test_slices_of_one_model_are_one_download(sweep):
    train = yaml.safe_load(sweep.read_text())["train_config"]
    slices = [resnet("x", "layer2"), resnet("layer3", "fc", out_format="vector")]
    job = inputs.JobConfig.parse({"assembly": slices, "train_config": train})
    assert len({repr(part) for part in inputs._pretrained_parts(job)}) == 1
