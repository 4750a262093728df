"""`--eval` of networks without classes: every stitch judged by its feature, from one pass over the images."""

import json
import math
from shutil import copytree

import pytest
import torch
import torch.distributed as dist

from stitchkit.cli import main
from stitchkit.data.unreadable import CheckedImages
from stitchkit.distributed import init_world
from stitchkit.measure.features import Halved, in_order, judge
from stitchkit.measure.ledger import Ledger, read_rows
from stitchkit.model.onepass import OnePass
from stitchkit.settings.by_name import make_recipe
from stitchkit.training.data import create_bank_loader, create_loaders, open_datasets
from tests.distributed.ranks import run_on_two_ranks
from tests.support import FAMILIES, FLAGS, family_snnet

FIGURES = ("cosine", "cka", "knn", "linear")


def command(folder, images, family="headless vit", **changes):
    """The command that evaluates an SN-Net of random weights, without the name of the evaluation."""
    config, weights = folder / "net.json", folder / "net.pth"
    config.write_text(json.dumps({**FAMILIES[family], **changes}))
    torch.save({"state_dict": family_snnet(family).state_dict()}, weights)
    flags = ["--stitch_config", config, "--resume", weights, *FLAGS, "-b", "3", "--num-classes", "0"]
    return [*map(str, ["train", images, *flags, "--eval", "--output", folder, "--experiment"])]


@pytest.fixture(scope="module")
def evaluated(images, tmp_path_factory):
    """A folder with the evaluation `whole`, and the command of another one."""
    folder = tmp_path_factory.mktemp("features")
    evaluate = command(folder, images)
    assert main([*evaluate, "whole"]) == 0
    return folder, evaluate


def rows(folder, name):
    return read_rows(folder / name / "stitches_res.txt")


def splits(folder, model):
    """Images and labels of the validation and the training split."""
    recipe = make_recipe({"data_dir": str(folder), "batch_size": 7, "workers": 0, "eval": True, "model": "any"})
    world, about = init_world("cpu"), {"input_size": (3, 16, 16), "model_config": model.pretrained_cfg}
    judged = create_loaders(open_datasets(recipe), recipe, world, num_classes=0, **about).validation
    loaders = judged, create_bank_loader(recipe, world, **about)
    found = [[torch.cat(parts) for parts in zip(*loader, strict=True)] for loader in loaders]
    dist.destroy_process_group()
    return found


@torch.no_grad()
def test_law_7_the_ledger_is_that_of_one_pass_a_stitch(evaluated, images):
    model = family_snnet("headless vit")
    (queries, labels), (bank, classes) = splits(images, model)
    assert (len(labels), len(classes), labels.tolist()) == (20, 64, sorted(labels.tolist()))
    assert len(rows(evaluated[0], "whole")) == len(model.space) == 17
    for row in rows(evaluated[0], "whole"):
        cfg_id = row["cfg_id"]
        end = [*model.views].index(model.space[cfg_id].segments[-1].anchor)
        found = judge(model(queries, cfg_id), model(queries, end), labels, model(bank, cfg_id), classes)
        assert (row["knn"], row["linear"], row["images"]) == (found.knn, found.linear, 20)
        assert (row["cosine"], row["cka"]) == pytest.approx((found.cosine, found.cka), abs=0.01)
        if model.space[cfg_id].is_anchor:
            assert (row["cosine"], row["cka"]) == pytest.approx((100, 100), abs=1e-9)
    assert len({row["knn"] for row in rows(evaluated[0], "whole")}) > 2


@pytest.mark.full
def test_images_are_read_once_for_all_stitches_and_the_seed_chooses_the_bank(evaluated, monkeypatch):
    folder, evaluate = evaluated
    read = []
    get = CheckedImages.__getitem__
    monkeypatch.setattr(
        CheckedImages, "__getitem__", lambda self, index: read.append((self.split, index)) or get(self, index)
    )
    assert main([*evaluate, "counted"]) == 0
    assert sorted(read) == [("train", number) for number in range(64)] + [
        ("validation", number) for number in range(20)
    ]
    assert rows(folder, "counted") == rows(folder, "whole")
    banks = []
    for name, seed in {"ten": "1", "again": "1", "other": "2"}.items():
        read.clear()
        few = [] if name == "ten" else ["--eval-stitches", "1"]
        assert main([*evaluate, name, "--bank-images", "10", "--seed", seed, *few]) == 0
        banks.append([index for split, index in read if split == "train"])
    assert [len(set(bank)) for bank in banks] == [10, 10, 10]
    assert banks[0] == banks[1] != banks[2]
    size = 10 + 20
    widths = [row["stitch"].split(" > ")[-1].split("[")[0] for row in rows(folder, "ten")]
    total = sum(size * (2 * {"ti": 8, "s": 16, "b": 32}[label] + 4) for label in widths)
    said = f"features of 17 stitches on 20 images and 10 to compare with take {total / 2**20:,.1f} MiB"
    assert said in (folder / "ten/log.txt").read_text()


def test_law_8_a_stopped_evaluation_repeats_only_what_is_not_in_the_ledger(evaluated, monkeypatch):
    folder, evaluate = evaluated
    append, ran = Ledger.append, []

    def stop(self, cfg_id, figures):
        if len(self.rows) == 5:
            raise KeyboardInterrupt
        append(self, cfg_id, figures)

    monkeypatch.setattr(Ledger, "append", stop)
    assert main([*evaluate, "stopped"]) != 0
    assert len(rows(folder, "stopped")) == 5
    monkeypatch.setattr(Ledger, "append", append)
    create = OnePass.__init__
    monkeypatch.setattr(
        OnePass, "__init__", lambda self, model, ids, **more: ran.append([*ids]) or create(self, model, ids, **more)
    )
    assert main([*evaluate, "stopped"]) == 0
    assert ran == [[1, 2, *range(5, 17)], [*range(5, 17)]], "the anchors in which they end, and what is missing"
    for found, whole in zip(rows(folder, "stopped"), rows(folder, "whole"), strict=True):
        assert found == whole | {key: pytest.approx(whole[key], rel=1e-5) for key in ("cosine", "cka")}
    ran.clear()
    assert main([*evaluate, "stopped"]) == 0
    assert ran == [], "nothing is missing"


@pytest.mark.full
def test_law_9_two_ranks_judge_as_one(evaluated):
    """Odd batches: the ranks have different numbers of images."""
    folder, evaluate = evaluated
    assert main([*evaluate, "one"]) == 0
    run_on_two_ranks([[*evaluate, "two"]])
    assert len(rows(folder, "two")) == 17
    for one, two in zip(rows(folder, "one"), rows(folder, "two"), strict=True):
        assert two == one | {key: pytest.approx(one[key], rel=1e-4) for key in ("cosine", "cka") if key in one}


def test_other_labelled_images_make_another_ledger(evaluated, capsys):
    _, evaluate = evaluated
    assert main([*evaluate, "bank", "--bank-images", "10", "--eval-stitches", "3"]) == 0
    assert main([*evaluate, "bank", "--bank-images", "20"]) == 2
    assert "was measured with bank_images 10, now 20; choose another --experiment" in capsys.readouterr().err


def test_without_a_training_split_there_is_agreement_alone(evaluated, images, tmp_path):
    folder, evaluate = evaluated
    copytree(images / "validation", tmp_path / "validation")
    assert main(["train", str(tmp_path), *evaluate[2:], "alone"]) == 0
    for found, whole in zip(rows(folder, "alone"), rows(folder, "whole"), strict=True):
        assert found == {key: value for key, value in whole.items() if key not in ("knn", "linear")}
    said = (folder / "alone/log.txt").read_text()
    assert "no labelled training images, so k-NN and linear probe are left out: data folder" in said


@pytest.mark.full
def test_stitches_with_statistics_of_their_own_are_judged_with_these(images, tmp_path):
    evaluate = command(tmp_path, images, "headless resnet to swin")
    for name, number in {"own": "2", "again": "2", "shared": "0"}.items():
        assert main([*evaluate, name, "--recalibrate-bn", number]) == 0
    own, again, shared = (rows(tmp_path, name) for name in ("own", "again", "shared"))
    assert own == again
    assert [row.get("recalibrate_bn") for row in own] == [None, None] + [2] * (len(own) - 2)
    for one, other in zip(own, shared, strict=True):
        assert (one["cosine"] == pytest.approx(other["cosine"], rel=1e-5)) == ("recalibrate_bn" not in one)
        assert set(FIGURES) <= one.keys()


def test_what_is_for_features_is_refused_with_classes(images, tmp_path, capsys):
    config = tmp_path / "vit.json"
    config.write_text(json.dumps(FAMILIES["vit"]))
    torch.save({"state_dict": family_snnet("vit").state_dict()}, tmp_path / "net.pth")
    flags = ["train", images, "--stitch_config", config, *FLAGS, "--output", tmp_path]
    given = ["--bank-images", "5"]
    evaluation = [*flags, "--eval", "--resume", tmp_path / "net.pth", *given]
    assert main([*map(str, evaluation)]) == 2
    assert "--bank-images requires networks without classes" in capsys.readouterr().err
    assert main([*map(str, [*flags, *given])]) == 2
    assert "--bank-images has no effect on its own; add --eval" in capsys.readouterr().err


def test_images_without_a_class_count_only_if_none_has_one():
    x = torch.eye(4)[[0, 1, 2, 0, 1, 2]]
    y = torch.cat([x[:3], -x[3:]])
    known = torch.tensor([1, 0, 1, -1, -1, -1])
    found = judge(x, y, known, x, known)
    assert (found.images, found.knn, found.linear is None) == (3, 100, False)
    assert found.cosine == pytest.approx(100)
    none = judge(x, y, torch.full((6,), -1), x, known)
    assert (none.images, none.knn, none.linear) == (6, None, None)
    assert none.cosine == pytest.approx(0)
    assert judge(x, y, known, x, torch.full((6,), -1)).figures.keys() == {"cosine", "cka", "images"}


def test_features_survive_half_precision():
    x = torch.randn(9, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-25, 25, 9)[:, None]
    x[4, 3] = math.nan
    kept = Halved.of(x)
    assert kept.directions.dtype == torch.float16
    found = kept.whole(torch.device("cpu"))
    assert found[4].tolist() == [0] * 64
    for number in {*range(9)} - {4}:
        exact = x[number].double()
        assert (found[number].double() - exact).norm() < 1e-3 * exact.norm()


def test_images_of_ranks_come_back_in_order():
    images = torch.arange(11)
    for ranks in (1, 2, 3, 4):
        assert in_order([images[rank::ranks] for rank in range(ranks)]).tolist() == images.tolist()
