"""Law 8 against SIGKILL: at any moment, one rank or all; what is on the disk is enough to end bitwise equal."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

import stitchkit.engine.checkpoint_files as checkpoint
from stitchkit.engine.loop import Trainer
from stitchkit.networks.weights import damage
from tests.distributed.forks import end, start
from tests.distributed.subjects import SUBJECTS, Subject, equal
from tests.support import ROOT, mostly_full


@dataclass(frozen=True)
class Runs:
    """Runs of a subject in which everything that is random or has a state is on, and which save within their epochs.

    Args:
        subject: What trains.
        folder: Of all of them.
        command: Of one, but for its name.
        whole: Gives the folder of an unbroken one on so many ranks.
    """

    subject: Subject
    folder: Path
    command: list[object]
    whole: Callable[[int], Path]

    def named(self, name: str) -> list[object]:
        """The command of a run, which resumes where there is something to resume from."""
        return [*self.command, *self.subject.place(self.folder, name), "--resume", "auto"]


@pytest.fixture(scope="module", params=SUBJECTS)
def runs(request, images, unbroken, tmp_path_factory):
    subject, folder = SUBJECTS[request.param], tmp_path_factory.mktemp("kills")
    flags = ("--epochs", "3", "--checkpoint-interval", "3")
    command = [*subject.start(images, folder), *flags]
    return Runs(subject, folder, command, lambda ranks: unbroken(subject, *flags, ranks=ranks))


def to_checkpoint(arguments):
    """Whether a call is about a checkpoint of the run; torch's own exchange of objects saves too."""
    return all(str(getattr(place, "name", place)).endswith(".tmp") for place in arguments[1:])


def kill_myself(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def save_half(state, file):
    """Half of a checkpoint reaches the disk."""
    torch.save(state, file)
    file.flush()
    os.truncate(file.fileno(), file.tell() // 2)
    kill_myself()


PLACES = {
    # where, its name, what happens there at last, how often it is passed in the run
    "step": (Trainer, "_step", kill_myself, 24),
    "validation": (torch.Tensor, "topk", kill_myself, 54),  # by which both count hits
    "save": (checkpoint.torch, "save", save_half, 9),
    "sync": (checkpoint.os, "fsync", kill_myself, 18),
    "rename": (checkpoint.os, "replace", kill_myself, 9),
    "link": (checkpoint.os, "link", kill_myself, 14),
}


def kill_at(rank, place, number, victims=(0,)):
    """Let this process, if it is a victim, die at the n-th time that it comes to a place."""
    if rank not in victims:
        return
    owner, name, last, _ = PLACES[place]
    inner, count = getattr(owner, name), [0]

    def counted(*arguments, **options):
        count[0] += place != "save" or to_checkpoint(arguments)
        if count[0] == number:
            setattr(owner, name, inner)
            last(*arguments, **options)
        return inner(*arguments, **options)

    setattr(owner, name, counted)


def die_and_resume(runs, seed, ranks):
    """A run that is killed three times at places and moments of a seed, then ends."""
    chance, folder = random.Random(seed), runs.folder / f"killed{ranks}-{seed}"
    run = runs.named(folder.name)
    died = 0
    for _ in range(3):
        victims = chance.choice([[0], list(range(ranks)), [ranks - 1]])
        place = chance.choice(list(PLACES) if 0 in victims else ["step", "validation"])
        number = chance.randint(1, PLACES[place][3] // ranks)
        first = partial(kill_at, place=place, number=number, victims=victims)
        statuses = end(start(run, ranks=ranks, first=first))
        died += -signal.SIGKILL in statuses
    processes = start(run, ranks=ranks)
    time.sleep(chance.random())
    for process in processes:
        process.kill()
    end(processes)
    assert end(start(run, ranks=ranks)) == [0] * ranks
    whole = runs.whole(ranks)
    runs.subject.assert_same_end(whole, folder)
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}
    return died


AT_RANDOM = [("SN-Net", 0, 1), ("SN-Net", 2, 2), ("job", 1, 1), ("job", 2, 2)]


@pytest.mark.full
@pytest.mark.parametrize(("runs", "seed", "ranks"), AT_RANDOM, indirect=["runs"])
def test_law_8_killed_at_random(runs, seed, ranks):
    assert die_and_resume(runs, seed, ranks), "the seed points behind the end of the run"


# The files of both are written by the same code.
AT_PLACES = [*(("SN-Net", place) for place in PLACES), ("job", "validation"), ("job", "rename")]
QUICK = [("SN-Net", "save")]


@pytest.mark.parametrize(("runs", "place"), mostly_full(AT_PLACES, quick=QUICK), indirect=["runs"])
def test_law_8_killed_at_each_place(runs, place):
    """The second time that the run comes there, so that a checkpoint is in the way or gone."""
    folder = runs.folder / f"place-{place}"
    run = runs.named(folder.name)
    assert end(start(run, first=partial(kill_at, place=place, number=2 if place != "validation" else 5))) == [
        -signal.SIGKILL
    ]
    for path in folder.glob("model-*.pth"):
        assert not damage(path), "complete after any kill"
    assert end(start(run)) == [0]
    runs.subject.assert_same_end(runs.whole(1), folder)


SN_NET = pytest.mark.parametrize("runs", ["SN-Net"], indirect=True)
"""`distributed_train.sh` trains nothing else."""


@pytest.mark.full
@SN_NET
def test_torchrun_restarts_a_killed_rank_where_it_stood(runs):
    """By itself: the command does not say --resume."""
    folder = runs.folder / "restarted"
    run = [*runs.command[1:], "--experiment", folder.name, "--val-interval", "9"]
    environment = {**os.environ, "PET_MAX_RESTARTS": "1", "PYTHON": sys.executable}
    call = [str(ROOT / "distributed_train.sh"), "2", *map(str, run)]
    with subprocess.Popen(call, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as launcher:
        deadline = time.monotonic() + 60
        while not (folder / "last.pth.tar").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        ranks = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True).stdout.split()
        os.kill(int(ranks[1]), signal.SIGKILL)
        said = launcher.communicate(timeout=60)[0]
    assert launcher.returncode == 0, said
    assert said.count("resuming from") == 1
    one, two = (runs.subject.content(place)["state_dict"] for place in (runs.whole(2), folder))
    assert equal(one, two)


@pytest.mark.full
@SN_NET
def test_the_launcher_hands_its_ranks_the_signal_before_the_limit_of_slurm(runs):
    """As `--signal=B:USR1@60` sends it to a script that ends with `exec ./distributed_train.sh`."""
    folder = runs.folder / "limited"
    call = [str(ROOT / "distributed_train.sh"), "2", *map(str, runs.command[1:]), "--experiment", folder.name]
    call += ["--checkpoint-interval", "1", "--epochs", "99"]
    environment = {**os.environ, "PYTHON": sys.executable}
    with subprocess.Popen(call, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as launcher:
        deadline = time.monotonic() + 60
        while not (folder / "last.pth.tar").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        launcher.send_signal(signal.SIGUSR1)
        said = launcher.communicate(timeout=60)[1]
    assert launcher.returncode == 128 + signal.SIGUSR1, said
    assert "is saved in" in said
    assert "Traceback" not in said


@pytest.mark.full
@SN_NET
def test_a_refused_run_is_not_resumed_although_torchrun_restarts_it(runs):
    """What another run left in the folder is not this launcher's."""
    folder = runs.folder / "refused"
    shutil.copytree(runs.whole(1), folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    environment = {**os.environ, "PET_MAX_RESTARTS": "1", "PYTHON": sys.executable}
    call = [str(ROOT / "distributed_train.sh"), "1", *map(str, runs.command[1:]), "--experiment", folder.name]
    done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "already contains a run" in done.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
