"""Law 8 within an epoch: a run that stops after any step and resumes equals an unbroken one, bit by bit."""

import os
import signal
from functools import partial

import pytest

from stitchkit.assembly.train import testing
from stitchkit.cli import main
from stitchkit.engine.loop import Trainer
from stitchkit.training import judging
from tests.distributed.forks import end, start
from tests.distributed.subjects import SUBJECTS
from tests.support import mostly_full


class SignalAt:
    """Sends this process a signal in the middle of its n-th step."""

    def __init__(self, step, number=signal.SIGTERM):
        self.step, self.number, self.count = step, number, 0
        self.inner = Trainer._step

    def __call__(self, trainer, *arguments):
        self.count += 1
        if self.count == self.step:
            os.kill(os.getpid(), self.number)
        return self.inner(trainer, *arguments)

    def __get__(self, trainer, _=None):
        return lambda *arguments: self(trainer, *arguments)


# Flags of runs, and the step that stops them; test_engine stops after each step.
SETTINGS = {
    ("SN-Net", "prefetched"): ([], 11),
    ("SN-Net", "loader processes"): (["-j", "1", "--val-interval", "9"], 5),
    ("SN-Net", "mixed on the device"): (["-j", "0", "--no-prefetcher"], 3),
    ("SN-Net", "accumulated"): (["-j", "1", "--grad-accum-steps", "3", "--val-interval", "9"], 3),
    ("job", "loader processes"): (["-j", "1"], 5),
    ("job", "accumulated"): (["-j", "0", "--grad-accum-steps", "3", "--amp"], 2),
}


def stop_and_resume(subject, trained, folder, flags, stop, whole, monkeypatch, capsys, caplog):
    """Stop a run in the middle of a step; check what it says, and that it resumes and ends like an unbroken one."""
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", SignalAt(stop))
        assert trained(f"at{stop}", *flags, "--resume", "auto") == 143
    done = subject.content(folder / f"at{stop}")["within"]["ranks"][0]["position"]["done"]
    batches = 3 if "--grad-accum-steps" in flags else 1
    per_epoch = -(-8 // batches)
    assert done == (stop - 1) % per_epoch + 1
    assert f"step {done} of epoch {(stop - 1) // per_epoch + 1} is saved" in capsys.readouterr().err
    caplog.clear()
    assert trained(f"at{stop}", *flags, "--resume", "auto") == 0
    said = f"resuming after step {done}: {8 * batches * done} images read again in"
    assert (said in caplog.text) == (done < per_epoch), "the next epoch begins with nothing to skip"
    subject.assert_same_end(whole, folder / f"at{stop}")


@pytest.mark.parametrize(
    ("subject", "name"),
    mostly_full(SETTINGS, quick=[("SN-Net", "prefetched")]),
    indirect=["subject"],
)
def test_law_8_stopped_within_an_epoch(subject, name, trained, unbroken, tmp_path, monkeypatch, capsys, caplog):
    caplog.set_level("INFO")
    flags, stop = SETTINGS["job" if subject.name == "job" else "SN-Net", name]
    flags = [*flags, *(["--print-freq", "3"] if subject.name == "job" else [])]
    stop_and_resume(subject, trained, tmp_path, flags, stop, unbroken(subject, *flags), monkeypatch, capsys, caplog)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A `scontrol` that writes down what it is asked for, and refuses job 13; gives what it wrote."""
    script = tmp_path / "bin/scontrol"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\necho "$@" >>"{tmp_path}/asked"\n[ "$2" != 13 ] || {{ echo no such job >&2; exit 1; }}\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    return lambda: (tmp_path / "asked").read_text().splitlines() if (tmp_path / "asked").exists() else []


@pytest.mark.full
@pytest.mark.parametrize("subject", SUBJECTS, indirect=True)
def test_law_8_before_the_limit_of_slurm(subject, trained, unbroken, cluster, tmp_path, monkeypatch, capsys):
    """SIGUSR1, as `--signal=USR1@60` sends it, saves as SIGTERM does, and asks Slurm to start the job again."""
    ends = {
        "7": (["requeue 7"], "Slurm starts job 7 again, and a command with --resume auto continues"),
        "13": (["requeue 13"], "Slurm does not start job 13 again: no such job"),
        "": ([], "it is not a job of Slurm, which could start it again"),
    }
    for number, (asked, line) in ends.items():
        monkeypatch.setenv("SLURM_JOB_ID", number)
        before = len(cluster())
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_step", SignalAt(3, signal.SIGUSR1))
            assert trained(f"job{number}") == 128 + signal.SIGUSR1
        assert line in capsys.readouterr().err
        assert cluster()[before:] == asked
    assert trained("job7", "--resume", "auto") == 0
    subject.assert_same_end(unbroken(subject), tmp_path / "job7")


@pytest.mark.parametrize("subject", ["job"], indirect=True)
def test_slurm_is_asked_only_by_the_signal_before_its_limit(trained, cluster, monkeypatch):
    """It sends SIGTERM to preempt or to cancel, and then decides itself."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(Trainer, "_step", SignalAt(1))
    assert trained("preempted") == 143
    assert cluster() == []


def test_law_8_a_plain_model_stopped_within_an_epoch(images, tmp_path, monkeypatch, capsys, caplog):
    caplog.set_level("INFO")
    subject, plain = SUBJECTS["SN-Net"], ["--model", "vit_tiny_patch16_224"]
    plain += ["--model-kwargs", "img_size=16", "patch_size=8", "embed_dim=8", "depth=2", "num_heads=2"]
    command, images, _, _, *flags = subject.start(images, tmp_path)

    def trained(name, *more):
        return main([*map(str, [command, images, *plain, *flags, *subject.place(tmp_path, name), *more])])

    assert trained("whole") == 0
    stop_and_resume(subject, trained, tmp_path, [], 6, tmp_path / "whole", monkeypatch, capsys, caplog)


@pytest.mark.full
@pytest.mark.parametrize("subject", SUBJECTS, indirect=True)
def test_a_signal_in_a_validation_stops_it(subject, trained, unbroken, tmp_path, monkeypatch):
    """The epoch's last step is saved; a resumed run repeats the validation."""

    def stopped(inner, *arguments, **options):
        # Before it has files, an SN-Net measures its anchors alone, when there is nothing to save.
        if inner is means or (tmp_path / "validation/args.yaml").exists():
            os.kill(os.getpid(), signal.SIGINT)
        return inner(*arguments, **options)

    means = testing._of_images
    with monkeypatch.context() as patch:
        patch.setattr(judging, "evaluate", partial(stopped, judging.evaluate))
        patch.setattr(testing, "_of_images", lambda *arguments: stopped(means, *arguments))
        assert trained("validation") == 130
    assert subject.content(tmp_path / "validation")["within"]["ranks"][0]["position"]["done"] == 8
    assert trained("validation", "--resume", "auto") == 0
    subject.assert_same_end(unbroken(subject), tmp_path / "validation")


@pytest.mark.parametrize("subject", mostly_full(SUBJECTS, quick=["job"]), indirect=True)
def test_steps_of_another_size_are_refused(trained, subject, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", SignalAt(3))
        assert trained("cut") == 143
    assert trained("cut", "--resume", "auto", "-b", "4") == 2
    line = capsys.readouterr().err
    if subject.name == "job":
        assert "was trained with train_config.batch_size 8, not 4" in line
    else:
        assert "its steps differ here: batch_size was 8 and is 4, steps_per_epoch was 8 and is 16" in line


def _signal_on_rank_1(trainer, *arguments):
    """One of two ranks gets the signal, in its third step."""
    _signal_on_rank_1.count += 1
    if trainer.world.rank == 1 and _signal_on_rank_1.count == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    return _step(trainer, *arguments)


_signal_on_rank_1.count = 0
_step = Trainer._step


def _let_rank_1_get_a_signal(_):
    Trainer._step = _signal_on_rank_1


@pytest.mark.full  # test_engine has a quick one
@pytest.mark.parametrize("subject", ["job"], indirect=True)
def test_law_8_two_ranks_agree_on_the_step(subject, images, unbroken, tmp_path):
    flags = ("--epochs", "3", "--checkpoint-interval", "3")
    stopped = [*subject.start(images, tmp_path), *flags, *subject.place(tmp_path, "stopped"), "--resume", "auto"]
    assert end(start(stopped, ranks=2, first=_let_rank_1_get_a_signal)) == [143, 143]
    assert subject.content(tmp_path / "stopped")["within"]["ranks"][1]["position"]["done"] == 4
    assert end(start(stopped, ranks=2)) == [0, 0]
    subject.assert_same_end(unbroken(subject, *flags, ranks=2), tmp_path / "stopped")
