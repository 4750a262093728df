"""Laws 8 and 9 under flags that are random, that change the optimizer, or that feed images in another way."""

import pytest
import torch

from stitchkit.cli import main
from tests.distributed.ranks import run_on_two_ranks
from tests.support import FLAGS, mostly_full, weights, write_config

UNUSUAL = {
    "direct": ["--no-prefetcher", "--mixup", "0.8", "--cutmix", "1", "--reprob", "0.3", "--lr-noise", "0.1", "0.9"],
    "splits": ["--aug-splits", "2", "--jsd-loss", "--aa", "rand-m5", "--reprob", "0.3", "--resplit"],
    "rates": ["--layer-decay", "0.7", "--base-lr-scale", "0.1", "--sched", "none", "--drop-path", "0.2"],
    "cycles": ["--epochs", "2", "--lr-cycle-limit", "2", "--model-dtype", "bfloat16", "--bce-loss", "--mixup", "0.2"],
}


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path / "pico.json")


@pytest.mark.parametrize("name", mostly_full(UNUSUAL, quick=["direct"]))
def test_law_8_a_resumed_run_equals_an_unbroken_one(name, images, config, tmp_path):
    common = [images, "--stitch_config", config, *FLAGS, *UNUSUAL[name], "--output", tmp_path]
    common = ["train", *map(str, common)]
    assert main([*common, "--experiment", "whole"]) == 0
    first = tmp_path / "whole/checkpoint-0.pth.tar"
    assert main([*common, "--experiment", "resumed", "--resume", str(first)]) == 0
    contents = [torch.load(tmp_path / run / "last.pth.tar", weights_only=True) for run in ("whole", "resumed")]
    whole, resumed = (content["state_dict"] for content in contents)
    assert contents[0]["epoch"] == contents[1]["epoch"] == (3 if name == "cycles" else 1)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    start = weights(first)
    assert any(not torch.equal(whole[key], start[key]) for key in whole)


@pytest.mark.full  # test_engine and test_two_ranks have quick ones
def test_law_9_two_ranks_equal_one_with_twice_the_batch(images, config, tmp_path):
    flags = ["--no-aug", "--smoothing", "0", "--sampling", "shared", "--opt", "sgd", "--lr", "0.05", "--sched", "none"]
    flags += ["--no-prefetcher", "--layer-decay", "0.8", "--stitch-lr-scale", "0.5", "--eval-metric", "loss"]
    common = ["train", images, "--stitch_config", config, *FLAGS, *flags, "--output", tmp_path]
    run_on_two_ranks([[*common, "-b", "8", "--experiment", "ranks2"]])
    assert main([*map(str, common), "-b", "16", "--experiment", "ranks1"]) == 0
    contents = [torch.load(tmp_path / f"ranks{ranks}/last.pth.tar", weights_only=True) for ranks in (1, 2)]
    one, two = (content["state_dict"] for content in contents)
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-5)
    assert contents[0]["metric"] == pytest.approx(contents[1]["metric"], rel=1e-4)
    assert contents[0]["metric"] < 0
