"""Law 8 within an epoch: a run that stops after any step and goes on equals an unbroken one, bit by bit."""

import os
import signal

import pytest
import torch

from stitchkit.cli import main
from stitchkit.engine.loop import Trainer
from tests.distributed.forks import end, start
from tests.distributed.test_resume import BUSY
from tests.support import FLAGS, write_config

STATES = ("state_dict", "state_dict_ema", "optimizer", "history")


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path / "pico.json")


def content(folder, name="last"):
    return torch.load(folder / f"{name}.pth.tar", weights_only=True)


def equal(one, other):
    """Whether two nested states are the same, bit by bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def assert_same_end(one, other):
    first, second = content(one), content(other)
    for name in STATES:
        assert name not in first or equal(first[name], second[name]), name
    assert (one / "summary.csv").read_text() == (other / "summary.csv").read_text()
    if first["stitch_config"] is not None:
        assert (one / "losses.csv").read_text() == (other / "losses.csv").read_text()


class SignalAt:
    """Sends this process a signal in the midst of its n-th step."""

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


SETTINGS = {
    "prefetched": (["-j", "0"], [1, 8, 11]),
    "loader processes": (["-j", "1", "--val-interval", "9"], [5]),
    "mixed on the device": (["-j", "0", "--no-prefetcher"], [3]),
    "accumulated": (["-j", "1", "--grad-accum-steps", "2", "--val-interval", "9"], [3]),
    "plain model": (["-j", "0", "--model", "vit_tiny_patch16_224"], [6]),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_law_8_stopped_within_an_epoch(name, images, config, tmp_path, monkeypatch, capsys, caplog):
    caplog.set_level("INFO")
    flags, stops = SETTINGS[name]
    subject = ["--stitch_config", config]
    if "--model" in flags:
        subject = ["--model-kwargs", "img_size=16", "patch_size=8", "embed_dim=8", "depth=2", "num_heads=2"]
    common = ["train", images, *subject, *FLAGS, *BUSY, *flags, "--log-interval", "3", "--output", tmp_path]

    def run(experiment, *more):
        return main([*map(str, [*common, "--experiment", experiment, *more])])

    assert run("whole") == 0
    for stop in stops:
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_step", SignalAt(stop))
            assert run(f"at{stop}", "--resume", "auto") == 143
        done = content(tmp_path / f"at{stop}")["within"]["ranks"][0]["position"]["done"]
        per_epoch = 4 if name == "accumulated" else 8
        assert done == (stop - 1) % per_epoch + 1
        assert f"step {done} of epoch {(stop - 1) // per_epoch + 1} is saved" in capsys.readouterr().err
        caplog.clear()
        assert run(f"at{stop}", "--resume", "auto") == 0
        again = 64 // per_epoch * done
        said = f"resuming after step {done}: {again} images read once more in"
        assert (said in caplog.text) == (done < per_epoch), "the next epoch begins with nothing to skip"
        assert_same_end(tmp_path / "whole", tmp_path / f"at{stop}")


def test_checkpoints_within_an_epoch(images, config, tmp_path, monkeypatch):
    """Saving changes nothing; each of the files is a place to go on from; a signal in a validation stops that."""
    common = [images, "--stitch_config", config, *FLAGS, *BUSY, "--output", tmp_path]

    def run(experiment, *more):
        return main(["train", *map(str, [*common, "--experiment", experiment, *more])])

    assert run("whole") == 0
    assert run("often", "--checkpoint-interval", "3") == 0
    assert_same_end(tmp_path / "whole", tmp_path / "often")
    previous = content(tmp_path / "often", "previous")
    assert (previous["epoch"], previous["within"]["ranks"][0]["position"]["done"]) == (0, 6)
    assert run("from", "--resume", tmp_path / "often/previous.pth.tar") == 0
    state = [content(tmp_path / name)["state_dict"] for name in ("whole", "from")]
    assert equal(*state)

    from stitchkit.train import training

    inner = training.evaluate_stitch

    def stopped(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return inner(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate_stitch", stopped)
        assert run("validation") == 130
    assert content(tmp_path / "validation")["within"]["ranks"][0]["position"]["done"] == 8
    assert run("validation", "--resume", "auto") == 0
    assert_same_end(tmp_path / "whole", tmp_path / "validation")


def test_steps_of_another_size_are_refused(images, config, tmp_path, monkeypatch, capsys):
    common = [images, "--stitch_config", config, *FLAGS, "--output", tmp_path]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", SignalAt(3))
        assert main(["train", *map(str, common)]) == 143
    assert main(["train", *map(str, [*common, "--resume", "auto", "-b", "4"])]) == 2
    line = capsys.readouterr().err
    assert "its steps are other ones here: batch_size was 8 and is 4, steps_per_epoch was 8 and is 16" in line


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


def test_law_8_two_ranks_agree_on_the_step(images, config, tmp_path):
    common = ["train", images, "--stitch_config", config, *FLAGS, *BUSY, "--epochs", "3", "--output", tmp_path]
    stopped = [*common, "--experiment", "stopped", "--resume", "auto"]

    assert end(start(stopped, ranks=2, first=_let_rank_1_get_a_signal)) == [143, 143]
    assert content(tmp_path / "stopped")["within"]["ranks"][1]["position"]["done"] == 4
    assert end(start(stopped, ranks=2)) == [0, 0]
    assert end(start([*common, "--experiment", "whole"], ranks=2)) == [0, 0]
    assert_same_end(tmp_path / "whole", tmp_path / "stopped")
