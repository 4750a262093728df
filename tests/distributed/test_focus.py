"""Laws 7, 8 and 9 for a training that drops stitches: what it judges, and what is left."""

import itertools
import json
import re

import numpy as np
import pytest
import torch

from stitchkit.cli import main
from stitchkit.networks.mode import judging
from stitchkit.training import focus
from stitchkit.training.samplers import SAMPLERS
from tests.distributed.forks import end, kill_once_there
from tests.distributed.ranks import run_on_two_ranks
from tests.distributed.subjects import BUSY, equal
from tests.support import FAMILIES, FLAGS, mostly_full, write_config

STATES = ("state_dict", "state_dict_ema", "optimizer", "task", "epoch")


def content(folder, file="last"):
    return torch.load(folder / f"{file}.pth.tar", weights_only=True)


def command(images, folder, name, *flags):
    config = write_config(folder / "pico.json")
    common = [images, "--stitch_config", config, *FLAGS, "--output", folder, "--sampler", name, "--focus", "1"]
    return ["train", *map(str, [*common, "--epochs", "3", *flags])]


def assert_same_end(one, other):
    first, second = content(one), content(other)
    for name in STATES:
        assert name not in first or equal(first[name], second[name]), name


@pytest.mark.parametrize("name", mostly_full(SAMPLERS, quick=["importance"]))
def test_law_8_a_focused_training_resumes(name, images, tmp_path, caplog):
    """From the end of an epoch, and from within the one after stitches were dropped."""
    caplog.set_level("INFO")
    busy = [*BUSY, "--checkpoint-interval", "3"]
    assert main([*command(images, tmp_path, name, *busy), "--experiment", "whole"]) == 0
    told = re.findall(r"(\d+) of \d+ stitches dropped, (\d+) clearly .* and (\d+) with .* on all 6:", caplog.text)
    assert len(told) == 2, "not after the last of three epochs"
    left = content(tmp_path / "whole")["task"]["left"]
    assert len(left) - left.sum() == sum(int(dropped) for dropped, *_ in told) > 0
    assert all(int(dropped) == int(behind) + int(rare) for dropped, behind, rare in told)
    assert left[:2].all(), "anchors stay"
    for file in ("checkpoint-0", "previous"):
        resume = ["--experiment", file, "--resume", str(tmp_path / f"whole/{file}.pth.tar")]
        assert main([*command(images, tmp_path, name, *busy), *resume]) == 0
        assert_same_end(tmp_path / "whole", tmp_path / file)


@pytest.mark.full
@pytest.mark.parametrize("name", ["cost_bins", "importance"])
def test_law_8_a_focused_training_killed(name, images, tmp_path):
    """By `kill -9` on two ranks, within the epoch after stitches were dropped."""
    flags = ["--checkpoint-interval", "1", "--resume", "auto", *BUSY]
    run_on_two_ranks([command(images, tmp_path, name, *flags, "--experiment", "whole")])
    killed = command(images, tmp_path, name, *flags, "--experiment", "killed")
    assert end(kill_once_there(killed, tmp_path / "killed/checkpoint-0.pth.tar", ranks=2)) == [-9, -9]
    run_on_two_ranks([killed])
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.full
def test_law_9_two_ranks_drop_what_one_with_twice_the_batch_drops(images, tmp_path):
    exact = ["--no-aug", "--smoothing", "0", "--sampling", "shared", "--opt", "sgd", "--lr", "0.05", "--sched", "none"]
    assert main([*command(images, tmp_path, "uniform", *exact, "-b", "16"), "--experiment", "one"]) == 0
    run_on_two_ranks([[*command(images, tmp_path, "uniform", *exact, "-b", "8"), "--experiment", "two"]])
    one, two = (content(tmp_path / count) for count in ("one", "two"))
    assert 0 < one["task"]["left"].sum() < len(one["task"]["left"])
    assert equal(one["task"], two["task"])
    for key, value in one["state_dict"].items():
        torch.testing.assert_close(value, two["state_dict"][key], rtol=1e-4, atol=1e-5)


def test_a_checkpoint_that_leaves_nothing_is_damaged(images, tmp_path, capsys):
    assert main([*command(images, tmp_path, "uniform")]) == 0
    saved = content(tmp_path / "pico")
    saved["task"]["left"][:] = False
    torch.save(saved, tmp_path / "damaged.pth.tar")
    capsys.readouterr()
    resume = ["--resume", str(tmp_path / "damaged.pth.tar"), "--epochs", "4", "--experiment", "more"]
    assert main([*command(images, tmp_path, "uniform"), *resume]) == 2
    assert "is damaged: it leaves no stitch to train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (["--focus", "0"], [], "--focus 0, not 1"),
        ([], ["--focus", "0"], "--focus 1, not 0"),
        (["--focus-images", "5"], [], "--focus-images 5, not 2000"),
    ],
)
def test_a_run_resumes_only_with_the_focus_that_it_had(before, now, said, images, tmp_path, capsys):
    """Other images would be held out, which had been trained on."""
    assert main([*command(images, tmp_path, "uniform", "--epochs", "2"), *before]) == 0
    capsys.readouterr()
    resume = ["--resume", str(tmp_path / "pico/last.pth.tar")]
    assert main([*command(images, tmp_path, "uniform"), *now, *resume]) == 2
    assert f"was trained with {said}; use the same" in capsys.readouterr().err


@pytest.mark.parametrize("family", mostly_full(["vit", "resnet"], quick=["vit"]))
def test_law_7_stitches_are_judged_as_one_by_one(family, images, tmp_path, monkeypatch):
    """On all held-out images; without a trace in the network; frozen anchors are judged, too."""
    judge, asked = focus._judge, []

    def watched(network, costs, first, rest, autocast):
        before = {key: value.clone() for key, value in network.state_dict().items()}
        modes = [part.training for part in network.modules()]
        batches = [*first], [*rest]
        judged, right, part = judge(network, costs, *batches, autocast)
        assert equal(before, dict(network.state_dict()))
        assert modes == [part.training for part in network.modules()]
        with torch.no_grad(), judging(network) as by_batch:
            # The first part is one image, which has no statistics of a batch.
            assert by_batch == (part == 0) == (family == "resnet")
            assert judged[: network.space.num_anchors] == [*range(network.space.num_anchors)]
            for place, cfg_id in enumerate(judged):
                hits = torch.cat([network(x, cfg_id).argmax(1) == labels for x, labels in itertools.chain(*batches)])
                assert np.array_equal(right[place], hits.numpy()[int(by_batch) :])
        asked.extend(costs)
        return judged, right, part

    monkeypatch.setattr(focus, "_judge", watched)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(FAMILIES[family]))
    preserve = "frozen" if family == "vit" else "none"
    flags = ["--epochs", "2", "--stitch_config", config, "--preserve", preserve, "--experiment", "judged"]
    assert main(command(images, tmp_path, "cost_bins", *flags)) == 0
    trained = content(tmp_path / "judged")["task"]["left"]
    assert len(asked) == len(trained) + (3 if preserve == "frozen" else 0)
