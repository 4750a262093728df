"""Sweeps on Slurm, whose commands are played by scripts; tests/slurm runs the real ones."""

import signal
import subprocess

import pytest
import yaml
from submitit.core.utils import DelayedSubmission

from stitchkit.assembly.sweep import cluster
from stitchkit.assembly.sweep.cluster import create_cluster
from stitchkit.assembly.sweep.kinds.gaps import plan_gaps
from stitchkit.assembly.sweep.launch import write_folders
from stitchkit.assembly.sweep.settings import Resources
from stitchkit.cli import main
from stitchkit.errors import InputError
from tests.clusters import ScriptedSlurm, between_polls
from tests.commands import refused
from tests.support import write_sweep

OPTIONS = {
    "jobs": 2, "gpus": 2, "partition": "big", "cpus": 4, "mem_gb": 8, "hours": 1.5, "sbatch": ["qos=low", "exclusive"]
}  # fmt: skip


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    return ScriptedSlurm(tmp_path / "slurm", monkeypatch)


@pytest.fixture
def sweep(images, tmp_path):
    return write_sweep(tmp_path, images)


@pytest.fixture(scope="module")
def jobs(images, tmp_path_factory):
    """The plan of the sweep."""
    return plan_gaps(write_sweep(tmp_path_factory.mktemp("sweep"), images)).jobs


@pytest.fixture
def folders(jobs, tmp_path):
    return write_folders(jobs, tmp_path / "out", [3])


@pytest.fixture
def command(sweep, tmp_path):
    return ["sweep", "-c", str(sweep), "-o", str(tmp_path / "out"), "--device", "cpu", "--cluster", "slurm"]


def test_slurm_gets_an_array_and_the_parameters(monkeypatch, folders, slurm, tmp_path):
    slurm.queue(n12_0="R", n12_1="PD", n99="R")
    between_polls(monkeypatch, slurm.queue, lambda: None)
    assert [*create_cluster("slurm", folder=tmp_path / "out", **OPTIONS).run(folders)] == folders  # gone twice
    sent = slurm.script()
    asked = "array=0-2%2 partition=big gpus-per-node=2 ntasks-per-node=2 cpus-per-task=4 mem=8192MB time=90 requeue"
    for line in (*asked.split(), "qos=low", "exclusive", "signal=USR2@90"):
        assert f"#SBATCH --{line}\n" in sent
    assert "wckey" not in sent  # clusters that check such keys refuse one that nobody asked for
    submitted = sorted((tmp_path / "out/submitit").glob("*/*_submitted.pkl"))
    assert len(submitted) == 3
    assert all(DelayedSubmission.load(file)._timeout_countdown > 10_000 for file in submitted)  # times it may resume


def test_a_second_launcher_finds_the_jobs_in_the_queue_and_sends_nothing(monkeypatch, folders, slurm, tmp_path):
    place = create_cluster("slurm", folder=tmp_path / "out", **OPTIONS)
    place.submit(folders)
    assert slurm.script()

    def end_two():
        folders[0].result.touch()
        slurm.queue(n12_2="R")

    slurm.queue(n12_0="R", n12_1="R", n12_2="R", n99="R")
    between_polls(monkeypatch, end_two, lambda: None)
    ended = place.run(folders)
    assert [next(ended), next(ended)] == folders[:2]  # the second is gone twice, and without a result
    assert not slurm.script()


def test_the_file_says_what_each_job_gets_and_flags_say_otherwise(sweep, slurm, tmp_path):
    content = yaml.safe_load(sweep.read_text())
    content["slurm"] = {
        "partition": "big",
        "hours": 2,
        "mem_gb": 16,
        "gpus": 0,
        "modules": ["cuda/12.4", "python/3.11"],
    }
    sweep.write_text(yaml.safe_dump(content))
    config = plan_gaps(sweep)
    assert "slurm" not in config.jobs[0].config
    script = create_cluster(
        "slurm", folder=tmp_path, resources=config.resources, partition="small", setup=["source venv/bin/activate"]
    ).script(3)
    assert "#SBATCH --partition=small\n" in script
    assert "#SBATCH --time=120\n" in script
    assert "#SBATCH --mem=16384MB\n" in script
    assert "gpus" not in script
    before, after = script.index("module load cuda/12.4\nmodule load python/3.11\nsource venv/bin/activate\n"), "srun"
    assert before < script.index(after)


def test_some_jobs_get_other_resources(command, slurm, caplog):
    """Together, two commands submit each job once."""
    caplog.set_level("INFO")
    assert main([*command, "--detach", "--only", "*finetune", "--hours", "12", "--mem-gb", "64"]) == 0
    script = slurm.script()
    assert "#SBATCH --time=720\n" in script
    assert "#SBATCH --mem=65536MB\n" in script
    slurm.queue(n12="PD")
    assert main([*command, "--detach"]) == 0
    script = slurm.script()
    assert "#SBATCH --array=0-1%2\n" in script
    assert "#SBATCH --time=1440\n" in script
    assert "--mem" not in script


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("partition", "big\ntouch evil"),
        ("modules", ["cuda; touch evil"]),
        ("modules", ["../cuda"]),
        ("modules", ["-x"]),
    ],
)
def test_nothing_in_a_file_reaches_the_shell_of_a_node(sweep, key, value):
    content = yaml.safe_load(sweep.read_text())
    sweep.write_text(yaml.safe_dump({**content, "slurm": {key: value}}))
    with pytest.raises(InputError, match=rf"slurm\.{key}.*only letters, digits and \. \+ , - / may be in it"):
        plan_gaps(sweep)
    with pytest.raises(InputError, match="may be in it"):
        Resources(**{key: value})


def test_a_dry_run_shows_the_script_that_is_sent(command, slurm, tmp_path, capsys):
    flags = [*command, "--modules", "cuda", "--setup", "ulimit -n 4096", "--mem-gb", "3"]
    assert main([*flags, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert not slurm.script()
    assert main([*flags, "--detach"]) == 0
    [folder] = (tmp_path / "out/submitit").iterdir()
    script = slurm.script()
    assert "\nmodule load cuda\nulimit -n 4096\n" in script
    assert shown.endswith(f"\n\n{script.replace(folder.name, 'NEW').rstrip()}\n\n")


def test_a_detached_sweep_returns_and_says_how_far_it_is(command, slurm, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    folders = [tmp_path / "out" / name for name in ("test-pico-uncut-source", "train-pico-gap-1,1-adapter-finetune")]
    assert main([*command, "--detach"]) == 0
    assert "submitted 3 jobs as 12; to cancel: scancel 12" in caplog.text
    assert "#SBATCH --array=0-2%3\n" in slurm.script()
    slurm.queue(n12_0="R", n12_1="PD")  # the third was cancelled
    caplog.clear()
    assert main([*command, "--detach"]) == 0
    assert "3 jobs: 0 done, 1 running, 0 failed, 2 waiting" in caplog.text
    assert "submitted 1 job as 13;" in caplog.text
    assert "--array" not in slurm.script()
    slurm.queue(n12_1="R", n13="R")
    (folders[0] / "result-3.pkl").touch()
    (folders[1] / "result-3.failed").write_text("out of luck\n")
    caplog.clear()
    assert "1 job failed, listed above with the logs" in refused(capsys, *command, "--detach")
    assert "3 jobs: 1 done, 1 running, 1 failed, 0 waiting" in caplog.text
    assert "\n  out of luck\n" in caplog.text
    assert not slurm.script()


def test_ctrl_c_leaves_the_jobs_in_slurm_and_says_how_to_cancel_them(command, slurm, monkeypatch, capsys):
    between_polls(monkeypatch, lambda: signal.raise_signal(signal.SIGINT))
    assert main(command) == 130
    said = capsys.readouterr().err
    assert "stopped by a signal; the jobs continue in Slurm; to cancel them: scancel 12;" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cluster", "slurm", "--poll", "5"], "--poll is 5.0; it must be at least 30"),
        (["--cluster", "slurm", "--poll", "nan"], "--poll is nan; it must be finite"),
        (["--cluster", "slurm", "--mem-gb", "0"], "--mem-gb is 0.0; it must be at least 0.1"),
        (["--seed", "4", "--seeds", "1", "2"], "--seeds: not allowed with argument --seed"),
        (["--cluster", "slurm", "--hours", "0"], "--hours is 0.0; it must be at least 0.1"),
        (["--cluster", "slurm", "--partition", "a b"], "partition: it is 'a b'; only letters"),
        (["--detach"], "--detach requires Slurm; add --cluster slurm"),
        (["--modules", "cuda"], "--modules requires Slurm; add --cluster slurm"),
        (["--hours", "3"], "--hours requires Slurm; add --cluster slurm"),
        (["--detach", "--dry-run"], "--dry-run: not allowed with argument --detach"),
    ],
)
def test_flags_of_slurm_that_are_refused(sweep, tmp_path, capsys, flags, message):
    assert message in refused(capsys, "sweep", "-c", sweep, "-o", tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_where_there_is_no_slurm(monkeypatch, folders, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="this machine has no Slurm"):
        next(create_cluster("slurm", folder=tmp_path, jobs=1, gpus=0).run(folders))


def test_a_sweep_where_there_is_no_slurm_writes_nothing(monkeypatch, sweep, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    line = refused(capsys, "sweep", "-c", sweep, "-o", tmp_path / "out", "--cluster", "slurm", "--no-pretrained")
    assert "this machine has no Slurm" in line
    assert not (tmp_path / "out").exists()


def test_slurm_that_does_not_answer(monkeypatch):
    def fail(command, **_):
        raise subprocess.CalledProcessError(1, command, stderr="slurm_load_jobs error\n")

    monkeypatch.setattr(cluster.subprocess, "run", fail)
    with pytest.raises(InputError, match="Slurm does not answer: slurm_load_jobs error; check it with squeue"):
        cluster._queue()
