"""Running a sweep: what is skipped, listed, retried; where jobs are sent. No job trains here."""

import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml

from stitchkit.assembly.sweep import launch as launching
from stitchkit.assembly.sweep.cluster import LocalPool, create_cluster
from stitchkit.assembly.sweep.kinds.gaps import plan_gaps
from stitchkit.assembly.sweep.launch import launch, run_sweep, write_folders
from stitchkit.assembly.sweep.worker import SweepJob
from stitchkit.errors import InputError, Stopped
from tests.clusters import between_polls
from tests.distributed.forks import hold_lock
from tests.support import sweep_jobs, write_sweep


class FakeCluster:
    """Jobs that end as a test says."""

    on_nodes = is_detached = False
    when_stopped = LocalPool.when_stopped

    def __init__(self, ends, limit=1):
        self.ends, self.limit, self.started, self.is_closed = ends, limit, [], False

    def run(self, jobs):
        self.started = [job.path.name for job in jobs]
        try:
            for job in jobs:
                self.ends.get(job.path.name, lambda job: job.result.touch())(job)
                yield job
        finally:
            self.is_closed = True


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return write_sweep(folder, folder)


@pytest.fixture(scope="module")
def jobs(sweep):
    """The plan of the sweep."""
    return plan_gaps(sweep).jobs


@pytest.fixture
def folders(jobs, tmp_path):
    return write_folders(jobs, tmp_path / "out", [3])


def run(folders, ends=None, **options):
    fake = FakeCluster(ends or {})
    try:
        run_sweep(folders, fake, **options)
    finally:
        assert fake.is_closed or not fake.started
    return fake.started


def states(folders):
    return [folder.state for folder in folders]


NAMES = [
    "test-pico-uncut-source",
    "train-pico-gap-1,1-adapter-finetune",
    "train-pico-gap-1,1-adapter-linear_no_downsample",
]


def test_each_job_has_its_folder(folders):
    assert [folder.path.name for folder in folders] == NAMES
    assert all((folder.path / "config.yml").exists() and (folder.path / "metadata.yml").exists() for folder in folders)
    assert {folder.result.name for folder in folders} == {"result-3.pkl"}


def test_jobs_that_have_their_result_are_skipped(folders):
    folders[1].result.touch()
    assert run(folders) == [NAMES[0], NAMES[2]]
    assert run(folders) == []


def test_failed_jobs_are_listed_with_their_logs_and_retried_on_request(folders, caplog):
    caplog.set_level("INFO")
    ends = {NAMES[1]: lambda folder: folder.fail("out of luck"), NAMES[2]: lambda folder: folder.fail("out of luck")}
    with pytest.raises(InputError, match="2 jobs failed, listed above with the logs"):
        run(folders, ends)
    assert states(folders) == ["done", "failed", "failed"]
    assert caplog.text.count("\n  out of luck\n") == 2
    assert f"log: {folders[1].log}" in caplog.text
    with pytest.raises(InputError, match="--retry-failed"):
        assert run(folders) == []
    assert run(folders, retry_failed=True) == NAMES[1:]
    assert states(folders) == ["done"] * 3


@pytest.mark.parametrize(
    ("limit", "left"),
    [(1, ["20:00", "05:00", "00:00"]), (2, ["10:00", "02:00", "00:00"]), (None, ["05:00", "02:00", "00:00"])],
)  # fmt: skip
def test_jobs_that_run_now_count_as_half_done(folders, monkeypatch, caplog, limit, left):
    caplog.set_level("INFO")
    seconds = iter([0, 600, 600, 600])
    monkeypatch.setattr(launching, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    run_sweep(folders, FakeCluster({}, limit))
    said = [record.message.partition("about 0:")[2] for record in caplog.records[1:]]
    assert said == [f"{each} left" for each in left]


def test_a_sweep_says_when_each_job_ended_and_how_long_the_rest_takes(folders, sweep, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    seconds = iter([0, 100, 4000])
    monkeypatch.setattr(launching, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    monkeypatch.setattr(launching, "check_inputs", lambda *_, **__: None)
    folders[1].result.touch()
    out, plan = tmp_path / "out", plan_gaps(sweep)
    once = {"only": None, "retry_failed": False}
    launch(plan, out, FakeCluster({}), **once)
    lines = [
        "3 jobs: 1 done, 0 running, 0 failed, 2 waiting",
        f"1/2 {NAMES[0]}, seed 3: done; 0:01:40 so far, about 0:01:40 left",
        f"2/2 {NAMES[2]}, seed 3: done; 1:06:40 so far, about 0:00:00 left",
    ]
    assert [record.message for record in caplog.records] == lines
    clock = r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d  "
    assert re.fullmatch("".join(f"{clock}{re.escape(line)}\n" for line in lines), (out / "log.txt").read_text())
    launch(plan, out, FakeCluster({}), **once)
    assert (out / "log.txt").read_text().endswith("  3 jobs: 3 done, 0 running, 0 failed, 0 waiting\n")


@pytest.mark.parametrize("before", [signal.SIG_IGN, signal.default_int_handler], ids=["ignored", "as usual"])
def test_ctrl_c_starts_no_further_job(folders, before):
    """A shell lets the background commands of a script ignore it, but their jobs end with it."""
    at_first = signal.signal(signal.SIGINT, before)
    try:
        with pytest.raises(Stopped, match="jobs that were running save their state and end") as stop:
            run(folders, {NAMES[0]: lambda _: signal.raise_signal(signal.SIGINT)})
        assert signal.getsignal(signal.SIGINT) == before
    finally:
        signal.signal(signal.SIGINT, at_first)
    assert stop.value.number == signal.SIGINT
    assert states(folders) == ["waiting"] * 3


def test_a_job_that_was_killed_runs_again_unasked(folders, caplog):
    caplog.set_level("INFO")
    with pytest.raises(InputError, match="1 job interrupted, listed above with the logs"):
        run(folders, {NAMES[2]: lambda folder: None})
    reason = "killed, cancelled or out of memory"
    assert f"interrupted: {NAMES[2]}, seed 3\n  {reason}\n  log: {folders[2].log}" in caplog.text
    assert run(folders) == [NAMES[2]]


def test_checkpoints_that_a_killed_sweep_left_beside_a_result_are_removed(folders, sweep, tmp_path):
    assert all(folder.checkpoints.exists() for folder in folders[:2])
    folders[0].result.touch()
    sweep_jobs(sweep, tmp_path / "out")
    assert [folder.checkpoints.exists() for folder in folders[:2]] == [False, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 5}, "other settings (train_config.epochs 2 -> 5); the sweeps in a folder share their settings"),
        ({"pretrained": False}, "other settings (pretrained True -> False)"),
        ({"workers": 3, "data_path": "x", "seed": 4, "device": "cpu"}, None),
    ],
)
def test_settings_of_a_sweep_that_has_begun(folders, sweep, tmp_path, changes, message):
    """Those that results depend on are refused before anything is written."""
    folders[1].result.touch()
    if message is None:
        sweep_jobs(sweep, tmp_path / "out", **changes)
        return
    with pytest.raises(InputError) as error:
        sweep_jobs(sweep, tmp_path / "out", **changes)
    assert f"'{folders[1].path}' was trained with {message}" in str(error.value)
    assert yaml.safe_load((folders[0].path / "config.yml").read_text())["train_config"]["epochs"] == 2
    folders[1].result.unlink()  # nothing has begun, so the settings may be others
    sweep_jobs(sweep, tmp_path / "out", **changes)


def test_results_of_unknown_settings_are_refused(folders, sweep, tmp_path):
    """No other settings take the place of those that a job ran with."""
    folders[1].result.touch()
    settings = folders[1].path / "config.yml"
    settings.unlink()
    with pytest.raises(InputError, match=r"no config\.yml with their settings; put it"):
        sweep_jobs(sweep, tmp_path / "out", epochs=5)
    assert not settings.exists()


def test_another_seed_is_another_run_in_the_same_folder(folders, sweep, tmp_path):
    folders[1].result.touch()
    folders[2].fail("out of luck")
    others = sweep_jobs(sweep, tmp_path / "out", seed=4)
    assert [other.path for other in others] == [folder.path for folder in folders]
    assert states(others) == ["waiting"] * 3
    places = [(run.result, run.checkpoints, run.submission) for run in (folders[1], others[1])]
    assert not {*places[0]} & {*places[1]}


def test_the_configuration_of_a_job_that_is_done_stays_as_it_ran(folders, sweep, tmp_path):
    for folder in folders[:2]:
        ran = (folder.path / "config.yml").read_text() + "# as it ran"
        (folder.path / "config.yml").write_text(ran)
    folders[0].result.touch()
    sweep_jobs(sweep, tmp_path / "out")
    assert (folders[0].path / "config.yml").read_text().endswith("# as it ran")
    assert not (folders[1].path / "config.yml").read_text().endswith("# as it ran")


def test_a_job_that_outlived_its_sweep_is_waited_for_and_started_once_it_is_killed(folders, monkeypatch):
    started, process = [], SimpleNamespace(done=lambda: len(started) == 2)
    monkeypatch.setattr(LocalPool, "_submit", lambda _, folder, slot: started.append((folder, slot)) or process)
    outlived = hold_lock(folders[0].checkpoints / ".train.lock")

    def kill():
        assert started == [(folders[1], 1)]
        outlived.kill()
        outlived.communicate()

    between_polls(monkeypatch, kill, lambda: None)
    assert [*LocalPool(limit=2).run(folders[:2])] == [folders[1], folders[0]]
    assert started == [(folders[1], 1), (folders[0], 0)]


def test_a_job_that_is_starting_is_waited_for(folders, sweep, tmp_path):
    """It loads torch for seconds before it takes its lock; a sweep that is killed meanwhile must not start it again."""
    here = folders[0].path / "submitit/result-3.x1y2"
    here.mkdir(parents=True)
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", str(here)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        (here / f"{process.pid}_submitted.pkl").touch()
        assert states(folders) == ["running", "waiting", "waiting"]
        assert SweepJob(folders[0].path, 4).state == "waiting"  # a run with another seed
        with pytest.raises(InputError, match=r"train_config\.epochs 2 -> 5"):
            sweep_jobs(sweep, tmp_path / "out", epochs=5)
        process.kill()
    assert states(folders) == ["waiting"] * 3
    (here / f"{os.getpid()}_submitted.pkl").touch()  # a number that belongs to another process by now
    assert states(folders) == ["waiting"] * 3


def test_a_pool_that_is_left_stops_its_jobs(monkeypatch, tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    with subprocess.Popen(["sleep", "60"]) as process:
        job = SimpleNamespace(done=lambda: process.poll() is not None, job_id=str(process.pid))
        monkeypatch.setattr(LocalPool, "_submit", lambda *_: job)
        between_polls(monkeypatch, interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(LocalPool(limit=1).run([SweepJob(tmp_path)]))
        assert process.wait(10) == -signal.SIGTERM


def test_a_preempted_job_is_started_again_as_it_was(tmp_path):
    job = SweepJob(tmp_path)
    assert job.checkpoint().function == job


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 0}, "--jobs is 0"),
        ({"gpus": -1}, "--gpus is -1"),
        ({"gpus": 9}, "--gpus is 9, but this machine has 2; lower it, or use --cluster slurm"),
        ({"partition": "big"}, "--partition requires Slurm; add --cluster slurm"),
    ],
)
def test_a_pool_that_cannot_be(monkeypatch, tmp_path, options, message):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with pytest.raises(InputError, match=message):
        create_cluster("local", folder=tmp_path, **options)


def test_jobs_of_a_pool_take_turns_on_the_gpus(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    chosen = []

    class Executor:
        def __init__(self, folder):
            pass

        def update_parameters(self, **parameters):
            chosen.append(parameters["visible_gpus"])

        def submit(self, job):
            return FinishedJob()

    class FinishedJob:
        def done(self):
            return True

    import submitit

    monkeypatch.setattr(submitit, "LocalExecutor", Executor)
    pool = create_cluster("local", folder=tmp_path, jobs=3)
    jobs = [SweepJob(tmp_path / str(number)) for number in range(4)]
    between_polls(monkeypatch, lambda: chosen.append("polled"), lambda: None)
    assert [*pool.run(jobs)] == jobs
    assert chosen == [[3], [5], [3], "polled", [3]]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-9a")
    with pytest.raises(InputError, match="name GPUs by their numbers"):
        create_cluster("local", folder=tmp_path, jobs=1)


def test_without_submitit(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match=r"pip install 'stitchkit\[jobs\]'"):
        create_cluster("local", folder=tmp_path, jobs=1, gpus=0)
