"""`--eval` of networks with classes on images without labels: answers are compared with those of the end anchors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stitchkit.cli import main
from stitchkit.data.open_dataset import open_dataset
from stitchkit.data.source import Source
from stitchkit.measure.answers import SURE, AnswerAgreement
from stitchkit.measure.formulas import accuracy_interval
from stitchkit.measure.ledger import read_rows
from stitchkit.measure.metric import compared
from stitchkit.measure.per_image import PerImage
from stitchkit.networks.timm_model import classifier_layers
from tests.distributed.ranks import run_on_two_ranks
from tests.support import FAMILIES, FLAGS, family_snnet, mostly_full

CROP = ["--crop-pct", "1.0", "--mean", "0.5", "--std", "0.25"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images without labels, 30 of which are held out."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(600):
        pixels = random.integers(0, 60, (16, 16, 3)) + random.integers(0, 190, 3)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return folder


def snnet(family="vit"):
    """An SN-Net whose anchors are sure of some images."""
    model = family_snnet(family)
    with torch.no_grad():
        for layer in (layer for anchor in model.anchors for layer in classifier_layers(anchor)):
            layer.weight.mul_(4)
    return model


def command(folder, data, family="vit"):
    """The command that evaluates an SN-Net of random weights, without the name of the evaluation."""
    config, weights = folder / "net.json", folder / "net.pth"
    config.write_text(json.dumps(FAMILIES[family]))
    torch.save({"state_dict": snnet(family).state_dict()}, weights)
    flags = ["--stitch_config", config, "--resume", weights, *FLAGS, "-b", "7", *CROP]
    return [*map(str, ["train", data, *flags, "--eval", "--output", folder, "--experiment"])]


@pytest.fixture(scope="module")
def evaluated(photos, tmp_path_factory):
    """A folder with the evaluation `whole`, and the command of another one."""
    folder = tmp_path_factory.mktemp("agreement")
    evaluate = command(folder, photos)
    assert main([*evaluate, "whole"]) == 0
    return folder, evaluate


def held_out(photos):
    source = Source("", photos, needs_labels=False)
    images = open_dataset(source, "validation")
    pixels = [np.asarray(image) / 255 for image, _ in images]
    return (torch.tensor(np.stack(pixels)).float().permute(0, 3, 1, 2) - 0.5) / 0.25


@torch.no_grad()
def test_law_7_the_figures_are_those_of_each_stitch_and_its_end_alone(evaluated, photos):
    model, images = snnet(), held_out(photos)
    rows = read_rows(evaluated[0] / "whole/stitches_res.txt")
    hits = PerImage.read(evaluated[0] / "whole/stitches_res.hits")
    assert (len(images), len(rows), hits.score.metric) == (30, len(model.space), "agree")
    assert {row["images"] for row in rows} == {30}
    for row in rows:
        end = [*model.views].index(model.space[row["cfg_id"]].end)
        ours, theirs = (model(images, cfg_id).softmax(1) for cfg_id in (row["cfg_id"], end))
        equal, sure = ours.argmax(1) == theirs.argmax(1), theirs.amax(1) >= SURE
        assert row["agree"] == pytest.approx(100 * equal.double().mean().item())
        assert row["sure_images"] == sure.sum()
        assert 0 < row["sure_images"] < 30
        assert row["agree_sure"] == pytest.approx(100 * equal[sure].double().mean().item())
        assert row["kl"] == pytest.approx((theirs * (theirs / ours).log()).sum(1).mean().item(), abs=1e-5)
        assert hits.of([row["cfg_id"]]).own[0][:, 0].tolist() == equal.tolist()
        low, high = accuracy_interval(int(equal.sum()), 30)
        assert (row["agree_low"], row["agree_high"]) == (round(low, 4), round(high, 4))
        if model.space[row["cfg_id"]].is_anchor:
            assert (row["agree"], row["agree_sure"], row["kl"]) == (100, 100, 0)
    assert len({row["agree"] for row in rows}) > 3
    same_end = {row["cfg_id"] for row in compared(rows, "agree")}
    assert {row["cfg_id"] for row in rows if "p_front" in row} == same_end, "other ends have other right answers"


def test_the_log_says_by_what_answers_are_judged(evaluated):
    said = (evaluated[0] / "whole/log.txt").read_text()
    assert "the images have no labels, so each stitch's answers are compared with those of its end anchor" in said


def test_an_interrupted_evaluation_and_a_repeated_one_go_on(evaluated):
    folder, evaluate = evaluated
    assert main([*evaluate, "half", "--eval-stitches", "0-5"]) == 0
    assert main([*evaluate, "half"]) == 0
    for half, whole in zip(
        *(read_rows(folder / f"{name}/stitches_res.txt") for name in ("half", "whole")), strict=True
    ):
        assert half == whole | {"kl": pytest.approx(whole["kl"], abs=1e-5)}


@pytest.mark.full
def test_law_9_two_ranks_judge_as_one(evaluated):
    folder, evaluate = evaluated
    run_on_two_ranks([[*evaluate, "two"]])
    for two, one in zip(*(read_rows(folder / f"{name}/stitches_res.txt") for name in ("two", "whole")), strict=True):
        assert two == one | {"kl": pytest.approx(one["kl"], abs=1e-5)}


@pytest.mark.full
def test_routes_with_statistics_of_their_own_are_compared_with_the_given_anchors(photos, tmp_path):
    evaluate = command(tmp_path, photos, "resnet to swin")
    assert main([*evaluate, "own", "--recalibrate-bn", "2"]) == 0
    rows = read_rows(tmp_path / "own/stitches_res.txt")
    assert any("recalibrate_bn" in row for row in rows)
    assert all(row["agree"] == 100 for row in rows[:2])


def test_the_commands_that_choose_work_by_it(evaluated, capsys):
    folder, _ = evaluated
    ledger, out = folder / "whole/stitches_res.txt", folder
    best = max(compared(rows := read_rows(ledger), "agree"), key=lambda row: (row["agree"], -row["flops"]))
    capsys.readouterr()
    for flags in ([], ["--metric", "agree_sure"], ["--metric", "agree"]):
        assert main(["pareto", str(ledger), *flags, "--plot", str(out / "front.png")]) == 0
        said = capsys.readouterr().out
        assert f"only the {len(compared(rows, 'agree'))} of {len(rows)} that end in b are compared" in said
        assert "answers equal to the end anchor's" in said
    assert main(["pick", str(ledger), "--max-flops", "10G", "--confident"]) == 0
    assert f"cfg_id {best['cfg_id']} is the best by answers equal to the end anchor's" in capsys.readouterr().out
    assert main(["report", str(ledger), "-o", str(out / "report.html")]) == 0
    assert "equal to the end anchor" in Path(out / "report.html").read_text()


@pytest.mark.full
def test_export_takes_the_best_by_it(evaluated):
    folder, _ = evaluated
    ledger, out = folder / "whole/stitches_res.txt", folder
    settings = ["-c", str(folder / "whole/eval_args.yaml"), "--ledger", str(ledger), "--max-flops", "10G"]
    assert main(["export", *settings, "-o", str(out / "net.onnx")]) == 0


@pytest.mark.parametrize("family", mostly_full(["vit", "resnet"], quick=["vit"]))
def test_labels_of_other_classes_do_not_judge(family, images, tmp_path, caplog):
    """A run by `--loss features` over anchors with four classes, on images of five.

    Nor do they choose batch-norm statistics.
    """
    caplog.set_level("INFO")
    five = tmp_path / "five"
    for split in ("train", "validation"):
        for name in ("a", "b", "c", "d", "e"):
            place = five / split / name
            place.mkdir(parents=True)
            for path in (images / split / "class0").glob("*.png"):
                Image.open(path).save(place / path.name)
    (five / "validation/b/broken.png").write_bytes(b"no image")
    assert main([*command(tmp_path, five, family), "x", "--loss", "features"]) == 0
    assert "the labels are of 5 classes, and the anchors know 4, so each stitch" in caplog.text
    rows = read_rows(tmp_path / "x/stitches_res.txt")
    assert all("agree" in row and "acc1" not in row for row in rows)
    assert {row["images"] for row in rows} == {25}, "one cannot be read"
    assert not any("bn_loss" in row for row in rows)


def test_a_ledger_by_labels_is_not_continued_by_agreement(images, photos, tmp_path, capsys):
    assert main([*command(tmp_path, images), "x"]) == 0
    origin = tmp_path / "x/stitches_res.yaml"
    origin.write_text(origin.read_text().replace(str(images), str(photos)))  # as if labels had been removed there
    (tmp_path / "x/stitches_res.hits").unlink()
    assert main([*command(tmp_path, photos), "x"]) == 2
    assert "was measured with by_agreement False, now True" in capsys.readouterr().err


def test_an_image_that_does_not_count_adds_nothing():
    ours, theirs = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, -1, 0, 0, -1, 0])
    sums = AnswerAgreement().of_batch((ours, theirs), labels)
    few = AnswerAgreement().of_batch((ours[labels == 0], theirs[labels == 0]), labels[labels == 0])
    assert torch.allclose(sums.totals, few.totals)
    assert torch.equal(sums.own[labels == 0], few.own)
    assert not sums.own[labels < 0].any()
