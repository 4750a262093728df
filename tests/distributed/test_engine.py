"""Laws 8 and 9 at the engine: a run that stops after any step ends as an unbroken one; two ranks are one of twice the
batch.

`test_resume_within`, `test_kills` and others run whole commands; what their options add has a test of its state.
"""

import os
import signal

import pytest
import torch
import torch.distributed as dist

from stitchkit.distributed import World
from stitchkit.errors import Stopped
from tests.distributed.pico_task import EPOCHS, STEPS, Training, on_disk
from tests.distributed.ranks import in_two_processes
from tests.distributed.subjects import equal

CASES = {
    "plain": {},
    "read ahead": {"ahead": True},
    "averaged": {"settings": {"model_ema": True, "model_ema_decay": 0.9, "model_ema_warmup": True}},
    "accumulated": {"ahead": True, "settings": {"grad_accum_steps": 3, "clip_grad": 0.5}},
    "scaled": {"scale": True, "settings": {"clip_grad": 0.1, "clip_mode": "agc"}},
    "limited": {"settings": {"max_steps": 8, "log_interval": 50}},
}


def steps_of(case):
    settings = case.get("settings", {})
    return settings.get("max_steps", EPOCHS * -(-STEPS // settings.get("grad_accum_steps", 1)))


@pytest.mark.parametrize("name", CASES)
def test_law_8_every_step_is_a_place_to_resume_from(name):
    """With all states of a process lost: weights, optimizer, averages, scale, counters, random numbers, tables."""
    case = CASES[name]
    whole, saved = Training(**case).run(), []
    often = Training(**{**case, "settings": {**case.get("settings", {}), "checkpoint_interval": 1}})
    assert equal(often.run(saved=saved), whole), "saving changes nothing"
    assert len(saved) == steps_of(case)
    for number, content in enumerate(saved[:-1]):
        assert not equal(content["state_dict"], whole["state_dict"])
        assert equal(Training(**case).run(content), whole), f"resumed after step {number}"
    assert ("amp_scaler" in whole) == (name == "scaled")
    assert name != "scaled" or whole["amp_scaler"]["scale"] > saved[0]["amp_scaler"]["scale"]


@pytest.mark.parametrize("number", [0, 4, 8])
def test_law_8_a_signal_saves_the_step_in_which_it_comes(number):
    saved = []

    def step(current):
        if current == number:
            os.kill(os.getpid(), signal.SIGTERM)

    training = Training(settings={"model_ema": True})
    with pytest.raises(Stopped, match=f"step {number % STEPS + 1} of epoch {number // STEPS + 1} is saved") as stopped:
        training.run(step=step, saved=saved)
    assert stopped.value.number == signal.SIGTERM
    [content] = saved
    assert equal(training.run(content), training.run())


def signal_on_rank_1(rank, number):
    """Send rank 1 a signal in this step."""

    def step(current):
        if (rank, current) == (1, number):
            os.kill(os.getpid(), signal.SIGTERM)

    return step


def two_ranks(rank, folder):
    """A rank of two: exact trainings for law 9; for law 8 one that is stopped on the other rank, and resumed."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    world, ends = World(rank, 2, torch.device("cpu")), {}
    for way in ("reducer", "torch"):
        for accumulated in (1, 3):
            exact = Training(world=world, busy=False, way=way, size=2, settings={"grad_accum_steps": accumulated})
            ends[way, accumulated] = exact.run()
        busy = Training(world=world, way=way, settings={"model_ema": True, "dist_bn": "reduce"})
        ends[way, "whole"], saved = busy.run(), []
        try:
            busy.run(step=signal_on_rank_1(rank, 2), saved=saved)
        except Stopped as stopped:
            ends[way, "stopped"] = str(stopped)
        shared = [saved[0] if rank == 0 else None]
        dist.broadcast_object_list(shared)
        ends[way, "resumed"] = busy.run(on_disk(shared[0]))
    torch.save(ends, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What both ranks end with, by way and training."""
    folder = tmp_path_factory.mktemp("ranks")
    in_two_processes(two_ranks, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


WAYS = pytest.mark.parametrize("way", ["reducer", "torch"])


@WAYS
@pytest.mark.parametrize("accumulated", [1, 3])
def test_law_9_two_ranks_equal_one_with_twice_the_batch(way, accumulated, ranks):
    one, other = (ends[way, accumulated] for ends in ranks)
    alone = Training(busy=False, settings={"grad_accum_steps": accumulated}).run()
    assert equal(one, other)
    torch.testing.assert_close(one["state_dict"], alone["state_dict"], rtol=1e-5, atol=1e-6)
    assert one["means"][0] == pytest.approx(alone["means"][0], rel=1e-5)


@WAYS
def test_law_8_two_ranks_stop_at_one_step_and_resume(way, ranks):
    for ends in ranks:
        assert ends[way, "stopped"].startswith("step 4 of epoch 1 is saved in ")
        assert equal(ends[way, "resumed"], ends[way, "whole"])
    one, other = (ends[way, "whole"] for ends in ranks)
    assert equal(one["state_dict"], other["state_dict"])
