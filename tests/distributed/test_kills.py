"""Law 8 against SIGKILL: at any moment, one rank or all; what is on the disk is enough to end bitwise equal."""

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

import stitchkit.engine.checkpoint_files as checkpoint
import stitchkit.measure.evaluate as evaluate
from stitchkit.engine.loop import Trainer
from tests.distributed.forks import end, start
from tests.distributed.test_resume import BUSY
from tests.distributed.test_resume_within import assert_same_end
from tests.support import FLAGS, ROOT, write_config

EPOCHS = ("--epochs", "3")


@pytest.fixture(scope="module")
def command(images, tmp_path_factory):
    """A run in which everything that is random or has a state is on, and which saves within its epochs."""
    folder = tmp_path_factory.mktemp("kills")
    config = write_config(folder / "pico.json")
    flags = [*FLAGS, *BUSY, *EPOCHS, "--checkpoint-interval", "3", "--output", folder, "--resume", "auto"]
    return ["train", images, "--stitch_config", config, *flags]


@pytest.fixture(scope="module")
def whole(command):
    """The folders of unbroken runs on one rank and on two."""
    for ranks in (1, 2):
        assert end(start([*command, "--experiment", f"whole{ranks}"], ranks=ranks)) == [0] * ranks
    return {ranks: command[-3] / f"whole{ranks}" for ranks in (1, 2)}


def to_checkpoint(arguments):
    """Whether a call is about a checkpoint of the run; torch's own exchange of objects saves too."""
    return all(str(getattr(place, "name", place)).endswith(".tmp") for place in arguments[1:])


def kill_myself(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def save_half(state, file):
    """A checkpoint of which half reaches the disk."""
    torch.save(state, file)
    file.flush()
    os.truncate(file.fileno(), file.tell() // 2)
    kill_myself()


PLACES = {
    # where, its name, what happens there at last, how often it is passed in the run
    "step": (Trainer, "_step", kill_myself, 24),
    "validation": (evaluate.Tally, "add", kill_myself, 54),
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


def die_and_go_on(command, whole, seed, ranks):
    """A run that is killed three times at places and moments of a seed, then ends."""
    chance, folder = random.Random(seed), whole[ranks].parent / f"killed{ranks}-{seed}"
    run = [*command, "--experiment", folder.name]
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
    assert_same_end(whole[ranks], folder)
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole[ranks].iterdir()}
    return died


@pytest.mark.parametrize(("seed", "ranks"), [(0, 1), (1, 1), (2, 2)])
def test_law_8_killed_at_random(command, whole, seed, ranks):
    assert die_and_go_on(command, whole, seed, ranks)


@pytest.mark.nightly
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("seed", range(100, 120))
def test_law_8_killed_at_many_random_moments(command, whole, seed, ranks):
    die_and_go_on(command, whole, seed, ranks)


@pytest.mark.parametrize("place", PLACES)
def test_law_8_killed_at_each_place(command, whole, place):
    """The second time that the run comes there, so that a checkpoint is in the way or gone."""
    folder = whole[1].parent / f"place-{place}"
    run = [*command, "--experiment", folder.name]
    assert end(start(run, first=partial(kill_at, place=place, number=2 if place != "validation" else 5))) == [
        -signal.SIGKILL
    ]
    assert end(start(run)) == [0]
    assert_same_end(whole[1], folder)


def test_torchrun_starts_a_killed_rank_again_where_it_stood(command, whole):
    """By itself: the command does not say --resume."""
    folder = whole[2].parent / "restarted"
    run = [*command[1:-2], "--experiment", folder.name, "--val-interval", "9"]
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
    one, two = (torch.load(place / "last.pth.tar", weights_only=True) for place in (whole[2], folder))
    assert all(torch.equal(value, two["state_dict"][name]) for name, value in one["state_dict"].items())


def test_a_refused_run_is_not_gone_on_from_though_torchrun_starts_it_again(command, whole):
    """What another run left in the folder is not this launcher's."""
    before = {path.name: path.read_bytes() for path in whole[1].iterdir()}
    environment = {**os.environ, "PET_MAX_RESTARTS": "1", "PYTHON": sys.executable}
    call = [str(ROOT / "distributed_train.sh"), "1", *map(str, command[1:-2]), "--experiment", whole[1].name]
    done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "already holds a run" in done.stderr
    assert {path.name: path.read_bytes() for path in whole[1].iterdir()} == before
