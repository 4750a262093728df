"""Every family trains on two ranks, goes on from a checkpoint and is measured: the shipped digits configurations."""

import pytest
import torch

import stitchkit
from stitchkit.cli import main
from stitchkit.measure.ledger import read_rows
from tests.support import ROOT, launch, weights

CONFIGS = ["digits_swin", "digits_resnet", "digits_resnet_swin", "digits_levit"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The digits folder, with a part of its images so that every family takes seconds."""
    whole = tmp_path_factory.mktemp("data") / "digits"
    assert main(["demo-data", str(whole)]) == 0
    folder = whole.with_name("some")
    for split, count in (("train", 16), ("validation", 5)):
        for label in sorted((whole / split).iterdir()):
            (folder / split / label.name).mkdir(parents=True)
            for image in sorted(label.iterdir())[:count]:
                (folder / split / label.name / image.name).symlink_to(image)
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_a_family_trains_goes_on_and_is_measured(name, digits, tmp_path):
    config = ROOT / f"configs/{name}.json"
    common = [digits, "--stitch_config", config, "--output", tmp_path, "--device", "cpu", "--epochs", "2"]
    result = launch(2, *common)
    assert result.returncode == 0, result.stderr
    last = tmp_path / name / "last.pth.tar"
    unbroken = weights(last)

    resumed = launch(2, *common, "--experiment", "resumed", "--resume", tmp_path / name / "checkpoint-0.pth.tar")
    assert resumed.returncode == 0, resumed.stderr
    again = weights(tmp_path / "resumed/last.pth.tar")
    assert all(torch.equal(value, again[key]) for key, value in unbroken.items()), "law 8"

    assert main(["train", *map(str, common), "--eval", "--resume", str(last)]) == 0
    rows = read_rows(tmp_path / name / "stitches_res.txt")
    model = stitchkit.create_snnet(config)
    assert [row["stitch"] for row in rows] == [stitch.name for stitch in model.space]
    assert {row["images"] for row in rows} == {50}
    assert len({row["loss"] for row in rows}) == len(rows), "each stitch is a network of its own"
