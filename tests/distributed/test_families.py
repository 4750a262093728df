"""Every family trains and is measured, by the shipped digits configurations; one does so on two ranks, and resumes."""

import pytest
import torch

import stitchkit
from stitchkit.cli import main
from stitchkit.measure.ledger import read_rows
from tests.distributed.ranks import run_on_two_ranks
from tests.support import ROOT, mostly_full, weights

QUICK = "digits_resnet"
CONFIGS = mostly_full(["digits_swin", "digits_resnet", "digits_resnet_swin", "digits_levit"], quick=[QUICK])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The digits folder, with a part of its images so that every family takes seconds."""
    whole = tmp_path_factory.mktemp("data") / "digits"
    assert main(["demo-data", "digits", str(whole)]) == 0
    folder = whole.with_name("some")
    for split, count in (("train", 16), ("validation", 5)):
        for label in sorted((whole / split).iterdir()):
            (folder / split / label.name).mkdir(parents=True)
            for image in sorted(label.iterdir())[:count]:
                (folder / split / label.name / image.name).symlink_to(image)
    return folder


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """Gives the folder of trained families; the quick one trains on two ranks, and again from its first epoch."""
    folder = tmp_path_factory.mktemp("families")

    def train(name):
        if not (folder / name).exists() and name != QUICK:
            assert main([*map(str, training(name, digits, folder))]) == 0
        elif not (folder / name).exists():
            again = ["--experiment", f"{name}-resumed", "--resume", folder / name / "checkpoint-0.pth.tar"]
            run_on_two_ranks([training(name, digits, folder), [*training(name, digits, folder), *again]])
        return folder

    return train


def training(name, digits, folder):
    config = ROOT / f"configs/{name}.json"
    return ["train", digits, "--stitch_config", config, "--output", folder, "--device", "cpu", "--epochs", "2"]


@pytest.mark.full
def test_law_8_a_family_resumes_as_if_unbroken(trained):
    folder = trained(QUICK)
    unbroken, resumed = (weights(folder / run / "last.pth.tar") for run in (QUICK, f"{QUICK}-resumed"))
    start = weights(folder / QUICK / "checkpoint-0.pth.tar")
    assert all(torch.equal(value, resumed[key]) for key, value in unbroken.items())
    assert not all(torch.equal(value, start[key]) for key, value in unbroken.items())


@pytest.mark.full
@pytest.mark.parametrize("name", CONFIGS)
def test_a_family_is_measured(name, digits, trained):
    folder = trained(name)
    command = [*training(name, digits, folder), "--eval", "--resume", folder / name / "last.pth.tar"]
    assert main([*map(str, command)]) == 0
    rows = read_rows(folder / name / "stitches_res.txt")
    model = stitchkit.create_snnet(ROOT / f"configs/{name}.json")
    assert [row["stitch"] for row in rows] == [stitch.name for stitch in model.space]
    assert {row["images"] for row in rows} == {50}
    assert len({row["loss"] for row in rows}) == len(rows), "each stitch is a network of its own"


@pytest.mark.full
def test_statistics_do_not_depend_on_the_number_of_ranks(digits, trained):
    """Nor does the choice among them."""
    folder = trained("digits_resnet")
    common = [*training("digits_resnet", digits, folder), "--eval", "--resume", folder / "digits_resnet/last.pth.tar"]
    common += ["--recalibrate-bn", "1", "--eval-stitches", "0,3", "--experiment"]
    run_on_two_ranks([[*common, "two"]])
    assert main([*map(str, common), "one"]) == 0
    two, one = (read_rows(folder / name / "stitches_res.txt") for name in ("two", "one"))
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-5)
