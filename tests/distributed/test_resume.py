"""Law 8, the resume law: a run that stops at an epoch's end and resumes equals an unbroken one, bit by bit."""

import json
import logging
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml

from stitchkit.cli import main
from stitchkit.data.loader_processes import usable_cores
from stitchkit.distributed import World
from stitchkit.engine.recovery import newest_checkpoint
from stitchkit.errors import InputError
from stitchkit.settings.by_name import make_recipe
from stitchkit.training.checkpoint import Checkpoints
from stitchkit.training.summary import cut_summaries, read_summary
from stitchkit.training.train import _say_changes
from tests.distributed.subjects import BUSY
from tests.support import FLAGS, mostly_full, weights, write_config


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path / "pico.json")


@pytest.fixture(scope="module")
def ended(images, tmp_path_factory):
    """The folder of a run that ended."""
    folder = tmp_path_factory.mktemp("ended")
    run(images, "--stitch_config", write_config(folder / "pico.json"), *FLAGS, "--output", folder)
    return folder / "pico"


@pytest.fixture
def finished(ended, tmp_path):
    """A copy of it."""
    return shutil.copytree(ended, tmp_path / "pico")


def run(*arguments):
    assert main(["train", *map(str, arguments)]) == 0


@pytest.mark.parametrize("workers", mostly_full(["0", "1"], quick=["0"]))
def test_law_8_a_resumed_run_equals_an_unbroken_one(images, config, tmp_path, workers):
    common = [images, "--stitch_config", config, *FLAGS, *BUSY, "--epochs", "3", "-j", workers, "--output", tmp_path]
    run(*common, "--experiment", "unbroken", "--checkpoint-hist", "9")
    # The state after the second epoch, as a run that was killed there leaves it.
    second = tmp_path / "unbroken/checkpoint-1.pth.tar"
    run(*common, "--experiment", "resumed", "--resume", second)
    for key in ("state_dict", "state_dict_ema"):
        unbroken, resumed = (
            torch.load(tmp_path / name / "last.pth.tar", weights_only=True)[key] for name in ("unbroken", "resumed")
        )
        assert same(unbroken, resumed)
    assert not same(weights(second), weights(tmp_path / "unbroken/last.pth.tar"))


def test_resuming_a_finished_run_changes_nothing(images, config, finished, tmp_path, caplog):
    common = [images, "--stitch_config", config, *FLAGS, "--output", tmp_path]
    last, settings = finished / "last.pth.tar", finished / "args.yaml"
    before = last.read_bytes(), settings.read_bytes()
    with caplog.at_level("INFO"):
        run(*common, "--resume", last, "--lr", "9")
    assert (last.read_bytes(), settings.read_bytes()) == before
    assert "nothing is left to train" in caplog.text


@pytest.mark.full
def test_more_loader_processes_than_cores_are_not_warned_of(images, config, tmp_path):
    """torch's warning would be an error here."""
    run(images, "--stitch_config", config, *FLAGS, "--output", tmp_path, "-j", usable_cores() + 1, "--epochs", "1")


def test_weights_alone_can_be_resumed(images, config, ended, tmp_path):
    common = [images, "--stitch_config", config, *FLAGS, "--output", tmp_path, "--experiment", "again"]
    run(*common, "--resume", ended / "last.pth.tar", "--no-resume-opt", "--opt", "sgd")
    assert torch.load(tmp_path / "again/last.pth.tar", weights_only=True)["epoch"] == 1


@pytest.mark.parametrize(
    ("flags", "name"),
    mostly_full(
        [
            (("--sched", "none"), "last"),
            (("--sched", "none", "--base-lr-scale", "0.5", "--opt", "lookahead_adamw"), "previous"),
            (("--sched", "step", "--decay-epochs", "1"), "last"),
            (("--sched", "cosine", "--sched-on-updates"), "previous"),
        ],
        quick=[(("--sched", "none"), "last")],
    ),
)
def test_a_rate_given_to_a_resumed_run_is_used(flags, name, images, config, tmp_path):
    """Of every schedule, after an epoch and within one: the rates are those of a run that began with it."""
    common = [images, "--stitch_config", config, *FLAGS, "--checkpoint-interval", "5", *flags, "--output", tmp_path]
    run(*common, "--experiment", "slow", "--epochs", "1")
    run(*common, "--experiment", "both", "--lr", "5e-3", "--resume", tmp_path / "slow" / f"{name}.pth.tar")
    both = read_summary(tmp_path / "both")[-1]["lr"]
    if flags == ("--sched", "none"):
        assert both == 5e-3
        return
    run(*common, "--experiment", "fast", "--lr", "5e-3")
    assert both == pytest.approx(read_summary(tmp_path / "fast")[-1]["lr"], rel=1e-9)
    assert flags[1] != "none" or both == 5e-3


def test_checkpoints_keep_the_best_epochs(tmp_path):
    saved = Checkpoints(tmp_path, keep=2)
    for epoch, metric in enumerate((3.0, 1.0, 4.0, 2.0, 2.0)):
        saved.save({}, epoch=epoch, metric=metric)
    names = ("checkpoint-0", "checkpoint-2", "last", "model_best", "previous")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.pth.tar" for name in names]
    assert (tmp_path / "model_best.pth.tar").samefile(tmp_path / "checkpoint-2.pth.tar")


def test_a_run_killed_between_two_names_leaves_no_third(tmp_path):
    """`previous` is then another name of `last` already, and a file system does not rename one onto the other."""
    saved = Checkpoints(tmp_path, keep=2)
    saved.save({}, epoch=0, metric=1.0)
    os.link(saved.last, tmp_path / "previous.pth.tar")
    saved.save({}, epoch=1, metric=2.0)
    names = ("checkpoint-0", "checkpoint-1", "last", "model_best", "previous")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.pth.tar" for name in names]


@pytest.mark.parametrize("missing", [["model_best"], ["model_best", "last"], ["checkpoint-1"]])
def test_names_that_a_killed_run_did_not_give_are_given(tmp_path, missing):
    saved = Checkpoints(tmp_path, keep=2)
    saved.save({}, epoch=0, metric=1.0)
    saved.save({}, epoch=1, metric=2.0)
    names = {path.name: path.read_bytes() for path in tmp_path.glob("*.pth.tar")}
    for name in missing:
        (tmp_path / f"{name}.pth.tar").unlink()
    if "model_best" in missing:  # as the epoch before left it
        os.link(tmp_path / "checkpoint-0.pth.tar", tmp_path / "model_best.pth.tar")
    saved_last = Checkpoints(tmp_path, keep=1)
    path = newest_checkpoint(saved_last) if "last" not in missing else tmp_path / "checkpoint-1.pth.tar"
    again = Checkpoints(tmp_path, keep=2)
    again.resumed(path, {"history": saved.history, "epoch": 1})
    again.clear()
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.pth.tar")} == names


def test_going_back_takes_no_name_of_a_later_epoch(tmp_path):
    saved = Checkpoints(tmp_path, keep=2)
    saved.save({}, epoch=0, metric=1.0)
    saved.save({}, epoch=1, metric=2.0)
    os.utime(tmp_path / "checkpoint-0.pth.tar", (1, 1))
    again = Checkpoints(tmp_path, keep=2)
    again.resumed(tmp_path / "checkpoint-0.pth.tar", {"history": {0: 1.0}, "epoch": 0})
    again.clear()
    assert (tmp_path / "model_best.pth.tar").samefile(tmp_path / "checkpoint-1.pth.tar")


def test_a_resumed_run_gives_the_names(images, config, finished, tmp_path):
    last = finished / "last.pth.tar"
    history = torch.load(last, weights_only=True)["history"]
    lost = finished / "checkpoint-1.pth.tar"
    lost.unlink()
    (finished / "model_best.pth.tar").unlink()
    run(images, "--stitch_config", config, *FLAGS, "--output", tmp_path, "--resume", "auto")
    assert lost.samefile(last)
    assert (tmp_path / "pico/model_best.pth.tar").exists() == (history[1] > history[0])


@pytest.mark.parametrize("line", ["", "killed,", "\x00\udcff", "-1,3"])
def test_odd_lines_of_a_summary_are_dropped(tmp_path, line):
    path = tmp_path / "summary.csv"
    path.write_text(f"epoch,train_loss\n0,1.0\n{line}\n1,0.5\n", errors="surrogateescape")
    cut_summaries(tmp_path, 1)
    assert path.read_text().split() == ["epoch,train_loss", "0,1.0"]
    assert [path.name for path in tmp_path.iterdir()] == ["summary.csv"]


@pytest.mark.parametrize(("text", "kept"), [("epoch,loss\n0,1.0\n1,0.", ["epoch,loss", "0,1.0"]), ("epoch,lo", None)])
def test_an_unfinished_last_line_of_a_summary_is_dropped(text, kept, tmp_path, caplog):
    """Its figure may be cut off, as 0.5 to 0., and the checkpoint after it complete."""
    path = tmp_path / "summary.csv"
    path.write_text(text)
    assert len(read_summary(tmp_path)) == len((kept or [])[1:]), "nor is it shown before a run resumes"
    cut_summaries(tmp_path, 2)
    assert (path.read_text().split() if path.exists() else None) == kept
    assert f"the last line of '{path}' is dropped" in caplog.text


def test_a_summary_with_a_column_twice_is_refused(tmp_path):
    (tmp_path / "summary.csv").write_text("epoch,lr,lr\n0,1.0,2.0\n")
    with pytest.raises(InputError, match=r"summary\.csv' has the column 'lr' twice; remove one"):
        read_summary(tmp_path)


def test_a_full_disk_keeps_the_summary(tmp_path, monkeypatch):
    path = tmp_path / "summary.csv"
    path.write_text("epoch,train_loss\n0,1.0\n")
    monkeypatch.setattr(
        "stitchkit.training.summary.csv.writer", lambda *_, **__: (_ for _ in ()).throw(OSError("full"))
    )
    with pytest.raises(OSError, match="full"):
        cut_summaries(tmp_path, 1)
    assert path.read_text() == "epoch,train_loss\n0,1.0\n"


def test_a_summary_that_was_killed_before_its_first_line_is_begun_again(tmp_path):
    (tmp_path / "summary.csv").write_text("")
    cut_summaries(tmp_path, 0)
    assert not (tmp_path / "summary.csv").exists()
    (tmp_path / "summary.csv").write_text("epoch,train_loss\n0,1.0\n1,0.5\n")
    cut_summaries(tmp_path, 1)
    assert (tmp_path / "summary.csv").read_text().split() == ["epoch,train_loss", "0,1.0"]


def changes(caplog, before, after, folder):
    """What a run says that resumes with settings `after`, in a folder with those of `before`."""
    (folder / "args.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(make_recipe(before).for_files()))))
    caplog.clear()
    session = SimpleNamespace(recipe=make_recipe(after), world=World(0, 1, torch.device("cpu")))
    _say_changes(session, folder / "last.pth.tar")
    return caplog.messages


def test_settings_that_changed_are_said_in_one_line(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    before = {"stitch_config": "pico.json", "epochs": 1, "lr": 1e-3}
    machine = {"workers": 1, "log_interval": 1, "checkpoint_hist": 3, "resume": "auto"}
    [line] = changes(caplog, before, {**before, **machine, "epochs": 2, "lr": 1e-2, "clip_grad": 1.0}, tmp_path)
    assert line.endswith("resumes with other settings: clip_grad None -> 1.0, epochs 1 -> 2, lr 0.001 -> 0.01")
    [line] = changes(caplog, before, {**before, "epochs": 2}, tmp_path)
    assert line.endswith("settings: epochs 1 -> 2")
    assert changes(caplog, before, {**before, **machine}, tmp_path) == []


def test_a_resumed_run_says_what_changed(images, config, finished, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    common = [images, "--stitch_config", config, *FLAGS, "--output", tmp_path, "--clip-grad", "1"]
    run(*common, "--resume", "auto")
    assert sum(" -> " in line for line in caplog.messages) == 1
    (finished / "last.pth.tar").rename(tmp_path / "lone.pth.tar")
    run(*common, "--experiment", "on", "--resume", tmp_path / "lone.pth.tar")
    assert "args.yaml' with the settings of the first start is missing, so changes are unknown" in caplog.text
