"""Laws 8 and 9 for each way to keep the anchors."""

import pytest
import torch

from stitchkit.cli import main
from stitchkit.engine.epochs import check_finite
from stitchkit.errors import Stopped
from tests.distributed.ranks import run_on_two_ranks
from tests.support import FAMILIES, FLAGS, family_snnet, mostly_full, weights, write_config

MODES = ("frozen", "lora")
"""Anchors stay as they are under each, to the last bit."""


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path / "pico.json")


def common_flags(images, config, tmp_path, mode):
    return ["train", images, "--stitch_config", config, *FLAGS, "--preserve", mode, "--output", tmp_path]


def assert_same(one, other, *, start):
    """Two runs end the same, after they have trained something."""
    contents = [torch.load(folder / "last.pth.tar", weights_only=True) for folder in (one, other)]
    for part in ("state_dict", "copies"):
        assert (part in contents[0]) == (part in contents[1])
        for key, value in contents[0].get(part, {}).items():
            assert torch.equal(value, contents[1][part][key]), key
    assert contents[0]["alone"] == contents[1]["alone"]
    assert any(not torch.equal(value, start[key]) for key, value in contents[0]["state_dict"].items())


@pytest.mark.parametrize("mode", mostly_full(MODES, quick=["lora"]))
def test_law_8_a_resumed_run_equals_an_unbroken_one(mode, images, config, tmp_path):
    common = [*map(str, common_flags(images, config, tmp_path, mode)), "--mixup", "0.8"]
    assert main([*common, "--experiment", "whole"]) == 0
    first = tmp_path / "whole/checkpoint-0.pth.tar"
    assert main([*common, "--experiment", "resumed", "--resume", str(first)]) == 0
    assert_same(tmp_path / "whole", tmp_path / "resumed", start=weights(first))


@pytest.mark.full
@pytest.mark.parametrize("mode", MODES)
def test_law_8_a_run_stopped_within_an_epoch_equals_an_unbroken_one(mode, images, config, tmp_path, monkeypatch):
    common = [*map(str, common_flags(images, config, tmp_path, mode)), "--recovery-interval", "3"]
    assert main([*common, "--experiment", "whole"]) == 0
    seen = []

    def stop(*arguments):
        check_finite(*arguments)
        seen.append(arguments)
        if len(seen) == 2:
            raise Stopped(15, "here")

    with monkeypatch.context() as patch:
        patch.setattr("stitchkit.engine.epochs.check_finite", stop)
        assert main([*common, "--experiment", "stopped"]) != 0
    place = tmp_path / "stopped/last.pth.tar"
    assert "within" in torch.load(place, weights_only=True)
    start = weights(place)
    assert main([*common, "--experiment", "stopped", "--resume", "auto"]) == 0
    assert_same(tmp_path / "whole", tmp_path / "stopped", start=start)
    tables = [(tmp_path / run / "summary.csv").read_text() for run in ("whole", "stopped")]
    assert tables[0] == tables[1]


@pytest.mark.full
@pytest.mark.parametrize("mode", MODES)
def test_law_9_two_ranks_equal_one_with_twice_the_batch(mode, images, config, tmp_path):
    flags = ["--no-aug", "--smoothing", "0", "--sampling", "shared", "--opt", "sgd", "--lr", "0.05", "--sched", "none"]
    common = [*common_flags(images, config, tmp_path, mode), *flags]
    run_on_two_ranks([[*common, "-b", "8", "--experiment", "ranks2"]])
    assert main([*map(str, common), "-b", "16", "--experiment", "ranks1"]) == 0
    one, two = (weights(tmp_path / f"ranks{ranks}/last.pth.tar") for ranks in (1, 2))
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-5)
        assert not key.startswith("anchors") or torch.equal(one[key], two[key])


@pytest.mark.full
@pytest.mark.parametrize("mode", MODES)
def test_ranks_with_stitches_of_their_own_stay_equal(mode, images, config, tmp_path):
    common = common_flags(images, config, tmp_path, mode)
    run_on_two_ranks([[*common, "--torchcompile", "eager", "--grad-checkpointing", "--experiment", "own"]])
    content = torch.load(tmp_path / "own/last.pth.tar", weights_only=True)
    assert set(content["alone"]) == {"ti", "s", "b"}


@pytest.fixture
def norms(tmp_path):
    """The weights and statistics of anchors with batch norms and linear layers, to which `norms.json` gives them."""
    model, anchors = family_snnet("levit"), []
    for number, anchor in enumerate(FAMILIES["levit"]["anchors"]):
        file = tmp_path / f"{number}.pth"
        torch.save(model.anchors[number].state_dict(), file)
        anchors.append({**anchor, "checkpoint": str(file)})
    write_config(tmp_path / "norms.json", anchors=anchors)
    return {f"anchors.{name}": value for name, value in model.anchors.state_dict().items()}


def flags_of_norms(images, tmp_path, mode):
    return [*common_flags(images, tmp_path / "norms.json", tmp_path, mode), "--lr", "1e-2", "--experiment", "norms"]


def assert_kept(path, given, mode):
    """Everything of the anchors is as it was given, and something else has learned in the second epoch."""
    first, last = (weights(path / f"checkpoint-{epoch}.pth.tar") for epoch in (0, 1))
    assert any(name.endswith("running_var") for name in given)
    assert {name for name in last if name.startswith("anchors.")} == given.keys()
    assert not [name for name, value in given.items() if not torch.equal(last[name], value)]
    learned = {name.partition(".")[0] for name, value in last.items() if not torch.equal(value, first[name])}
    assert learned == {"stitch_layers"} | ({"updates"} if mode == "lora" else set())


@pytest.mark.full
@pytest.mark.parametrize("mode", MODES)
def test_batch_norms_of_anchors_keep_their_statistics(mode, images, norms, tmp_path):
    assert main([*map(str, flags_of_norms(images, tmp_path, mode))]) == 0
    assert_kept(tmp_path / "norms", norms, mode)


@pytest.mark.full
@pytest.mark.parametrize("mode", ["lora"])
def test_batch_norms_of_anchors_keep_their_statistics_on_two_ranks(mode, images, norms, tmp_path):
    run_on_two_ranks([flags_of_norms(images, tmp_path, mode)])
    assert_kept(tmp_path / "norms", norms, mode)
