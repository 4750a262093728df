"""`--eval` in one pass: images are read once, a killed pass resumes, some stitches can be chosen."""

import csv
import shutil
import signal
import time
from shutil import copyfile

import numpy as np
import pytest
import torch.distributed as dist
from safetensors import safe_open

import stitchkit
from stitchkit.cli import main
from stitchkit.data.batches import without_padding
from stitchkit.data.unreadable import CheckedImages
from stitchkit.distributed import init_world
from stitchkit.errors import InputError
from stitchkit.measure.evaluate import Unfinished
from stitchkit.measure.ledger import read_rows
from stitchkit.measure.per_image import PerImage
from stitchkit.measure.scores import AccuracyScore
from stitchkit.settings.by_name import make_recipe
from stitchkit.training.data import create_loaders, open_datasets
from tests.commands import refused
from tests.distributed.forks import end, kill_once_there, start
from tests.results import answers_of
from tests.support import FLAGS, mostly_full, pico_config, pico_snnet, write_config


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """A trained SN-Net, and the command that evaluates it."""
    folder = tmp_path_factory.mktemp("one-pass")
    config = write_config(folder / "pico.json", anchors=pico_config()["anchors"][:2])
    common = [str(images), "--stitch_config", str(config), *FLAGS, "--output", str(folder)]
    assert main(["train", *common, "--epochs", "1"]) == 0
    evaluate = [*common, "-b", "3", "--eval", "--resume", str(folder / "pico/last.pth.tar"), "--experiment"]
    assert main(["train", *evaluate, "whole"]) == 0
    return folder, evaluate


def rows(folder, name):
    return read_rows(folder / name / "stitches_res.txt")


def images_in(part):
    with safe_open(part, framework="pt") as file:
        return len(file.get_tensor("labels"))


def hits(folder, name):
    return PerImage.beside(folder / name / "stitches_res.txt", "acc1")


def hits_bytes(folder, name):
    return (folder / name / "stitches_res.hits").read_bytes()


def class_accuracies(folder, name):
    with (folder / name / "per_class.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_law_7_the_ledger_is_that_of_one_pass_a_stitch(trained, images):
    folder, _ = trained
    model = stitchkit.create_snnet(folder / "pico.json")
    stitchkit.load_checkpoint(model, folder / "pico/last.pth.tar")
    recipe = make_recipe({"data_dir": str(images), "batch_size": 3, "workers": 0, "eval": True, "model": "any"})
    world = init_world("cpu")
    loaders = create_loaders(
        open_datasets(recipe), recipe, world, input_size=(3, 16, 16), model_config=model.pretrained_cfg, num_classes=4
    )
    for row in rows(folder, "whole"):
        batches = without_padding(loaders.validation, world)
        score = answers_of(model, row["cfg_id"], batches).figures(row["cfg_id"])
        assert (row["acc1"], row["acc5"], row["images"]) == (score["acc1"], score["acc5"], 20)
        assert row["loss"] == pytest.approx(score["loss"], rel=1e-6)
        labels, predicted = [], []
        for batch, numbers in without_padding(loaders.validation, world):
            labels += numbers.tolist()
            predicted += model(batch, row["cfg_id"]).argmax(1).tolist()
        shares = [
            100 * sum(p == label == one for p, label in zip(predicted, labels, strict=True)) / labels.count(one)
            for one in range(4)
        ]
        assert row["balanced_acc1"] == pytest.approx(sum(shares) / 4)
        kept = hits(folder, "whole").of([row["cfg_id"]])
        assert kept.truth[:, 0].tolist() == labels
        assert kept.own[0][:, 0].tolist() == [p == label for p, label in zip(predicted, labels, strict=True)]
        assert kept.seen.all()
        lines = class_accuracies(folder, "whole")
        assert [line["class"] for line in lines] == [f"class{number}" for number in range(4)]
        assert [int(line["images"]) for line in lines] == [5] * 4
        assert [float(line[str(row["cfg_id"])]) for line in lines] == pytest.approx(shares)
    dist.destroy_process_group()


def test_hits_add_up_to_the_accuracies_and_are_in_the_order_of_the_images(trained, images):
    folder, _ = trained
    kept = hits(folder, "whole")
    assert kept.names == tuple(f"class{label}/{number}.png" for label in range(4) for number in range(5))
    assert kept.truth[:, 0].tolist() == [int(name[len("class")]) for name in kept.names]
    assert {100 * right.sum() / 20 for right in kept.own} != {25.0}, "all stitches guess"
    for row in rows(folder, "whole"):
        own = kept.of([row["cfg_id"]])
        assert 100 * own.own[0].sum() / own.seen.sum() == row["acc1"]
        assert own.seen.sum() == row["images"]


@pytest.fixture(autouse=True)
def _saved_after_every_batch(monkeypatch):
    monkeypatch.setattr("stitchkit.measure.evaluate.SAVE_EVERY", 0.0)


def test_images_are_read_once_for_all_stitches(trained, monkeypatch):
    _, evaluate = trained
    read = []
    get = CheckedImages.__getitem__
    monkeypatch.setattr(CheckedImages, "__getitem__", lambda self, index: read.append(index) or get(self, index))
    assert main(["train", *evaluate, "counted"]) == 0
    assert sorted(read) == list(range(20))


@pytest.mark.full
def test_a_killed_pass_resumes_and_ends_with_the_same_numbers(trained):
    folder, evaluate = trained
    assert main(["train", *evaluate, "single", "-b", "1"]) == 0
    part = folder / "killed/stitches_res.txt.part0"
    assert end(kill_once_there(["train", *evaluate, "killed", "-b", "1"], part)) == [-signal.SIGKILL]
    stopped_at = images_in(part)
    assert 0 < stopped_at < 20
    assert not (folder / "killed/stitches_res.txt").exists()
    assert main(["train", *evaluate, "killed", "-b", "1"]) == 0
    assert rows(folder, "killed") == rows(folder, "single")
    assert hits_bytes(folder, "killed") == hits_bytes(folder, "single")
    assert class_accuracies(folder, "killed") == class_accuracies(folder, "single")
    assert not part.exists()


def test_a_resumed_pass_computes_only_what_is_missing(trained, monkeypatch):
    """Sums of all images are believed, so that none of them may count again."""
    folder, evaluate = trained
    saved = []
    save = Unfinished.save
    monkeypatch.setattr(Unfinished, "save", lambda self, found: saved.append(len(found.truth)) or save(self, found))
    monkeypatch.setattr(Unfinished, "remove", lambda self: None)
    monkeypatch.setattr("stitchkit.training.evaluation.remove_progress", lambda folder: None)
    assert main(["train", *evaluate, "first"]) == 0
    assert saved == [3, 6, 9, 12, 15, 18, 20]
    assert images_in(folder / "first/stitches_res.txt.part0") == 20
    (folder / "second").mkdir()
    copyfile(folder / "first/stitches_res.txt.part0", folder / "second/stitches_res.txt.part0")
    saved.clear()
    assert main(["train", *evaluate, "second"]) == 0
    assert saved == []
    assert rows(folder, "second") == rows(folder, "first")


def test_sums_of_other_weights_are_not_taken_up(trained, tmp_path):
    folder, evaluate = trained
    whole = rows(folder, "whole")
    (tmp_path / "fresh").mkdir()
    other = Unfinished(tmp_path / "fresh/stitches_res.txt.part0", {"weights_sha256": "of others"})
    nothing, totals = np.zeros((len(whole), 5, 1), bool), np.zeros((len(whole), 2))
    other.save(PerImage.of_all(range(len(whole)), AccuracyScore(), nothing, np.zeros((5, 1), int), totals))
    assert main(["train", *evaluate, "fresh", "--output", str(tmp_path)]) == 0
    assert rows(tmp_path, "fresh") == whole


def test_a_ledger_is_not_continued_on_changed_images(trained, images, tmp_path, capsys):
    """They are under the same names; a copy of the data set, in whose place it may be, is the same."""
    _, (_, *evaluate) = trained
    data = shutil.copytree(images, tmp_path / "images")
    command = ["train", data, *evaluate, "changed", "--output", tmp_path]
    assert main([*map(str, command), "--eval-stitches", "3"]) == 0
    shutil.rmtree(data)
    shutil.copytree(images, data, copy_function=shutil.copyfile)  # with other times
    assert main([*map(str, command), "--eval-stitches", "3,4"]) == 0
    image = data / "validation/class1/0.png"
    image.write_bytes((data / "validation/class2/0.png").read_bytes())
    said = refused(capsys, *command)
    assert "was measured on other images: the validation images have changed since" in said
    assert "choose another --experiment or move the file away" in said
    origin = tmp_path / "changed/stitches_res.yaml"
    older = "".join(line for line in origin.read_text().splitlines(True) if not line.startswith("images_sha256"))
    origin.write_text(older)
    assert main([*map(str, command), "--eval-stitches", "3,4,5"]) == 0, "of an older version"
    assert len(rows(tmp_path, "changed")) == 3


def test_some_stitches_and_then_the_others(trained, caplog):
    caplog.set_level("INFO")
    folder, evaluate = trained
    assert main(["train", *evaluate, "some", "--eval-stitches", "4"]) == 0
    (row,) = rows(folder, "some")
    assert f"acc1 {row['acc1']:.2f}  balanced_acc1 {row['balanced_acc1']:.2f}\n" in caplog.text
    assert "stitches_res.txt has 1 stitch; the front: " in caplog.text
    assert main(["train", *evaluate, "some", "--eval-stitches", "4,1-2,2"]) == 0
    assert sorted(row["cfg_id"] for row in rows(folder, "some")) == [1, 2, 4]
    assert main(["train", *evaluate, "some"]) == 0
    some, whole = (hits(folder, name).of(range(7)).compared() for name in ("some", "whole"))
    assert some.right.tolist() == whole.right.tolist()
    whole = {row["cfg_id"]: row for row in rows(folder, "whole")}
    later = {row["cfg_id"]: row for row in rows(folder, "some")}
    assert later.keys() == whole.keys()
    assert class_accuracies(folder, "some")[2]["7"] == class_accuracies(folder, "whole")[2]["7"]
    assert len(class_accuracies(folder, "some")[0]) == 2 + len(whole)
    for cfg_id, row in later.items():
        assert row["acc1"] == whole[cfg_id]["acc1"]
        assert row["loss"] == pytest.approx(whole[cfg_id]["loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("1,x", "list their cfg_id"),
        ("3-", "list their cfg_id"),
        ("5-3", "runs backwards"),
        ("999", "does not exist"),
    ],
)
def test_stitches_that_do_not_exist_are_named(choice, message):
    with pytest.raises(InputError, match=message):
        pico_snnet().space.select(choice)


def test_the_command_names_them_too(trained, capsys):
    _, evaluate = trained
    assert "999 does not exist" in refused(capsys, "train", *evaluate, "none", "--eval-stitches", "999")


def test_a_budget_that_is_too_small_says_what_is_needed(trained, monkeypatch, capsys):
    _, evaluate = trained
    monkeypatch.setattr("stitchkit.training.judging._MIB", 1)
    assert main(["train", *evaluate, "tight", "--eval-memory", "1000"]) == 2
    assert "is not enough for one image" in capsys.readouterr().err


def _wait_after_a_save(_rank):
    save = Unfinished.save

    def save_and_wait(*arguments):
        save(*arguments)
        time.sleep(60)

    Unfinished.save = save_and_wait
    stitchkit.measure.evaluate.SAVE_EVERY = 0.0


@pytest.mark.parametrize("ranks", mostly_full([2, 3, 4], quick=[]))
def test_ranks_that_are_killed_resume_each_where_it_stood(ranks, trained):
    """Three ranks have seven, seven and six images, and sums of their own."""
    folder, evaluate = trained
    name = f"killed on {ranks}"
    command, part = ["train", *evaluate, name], folder / name / "stitches_res.txt.part0"
    killed = kill_once_there(command, part, ranks=ranks, first=_wait_after_a_save)
    assert end(killed) == [-signal.SIGKILL] * ranks
    assert images_in(part) == 3
    assert end(start(command, ranks=ranks)) == [0] * ranks
    assert not part.exists()
    assert [row["images"] for row in rows(folder, name)] == [20] * len(rows(folder, "whole"))
    assert class_accuracies(folder, name) == class_accuracies(folder, "whole")
    assert hits_bytes(folder, name) == hits_bytes(folder, "whole")
    for row, whole in zip(rows(folder, name), rows(folder, "whole"), strict=True):
        assert row["acc1"] == whole["acc1"]
        assert row["loss"] == pytest.approx(whole["loss"], rel=1e-6)


def test_hits_beside_a_ledger_that_cannot_be_read_are_reported_before_anything_is_computed(trained, capsys):
    folder, evaluate = trained
    assert main(["train", *evaluate, "damaged", "--eval-stitches", "1"]) == 0
    (folder / "damaged/stitches_res.hits").write_bytes(b"?")
    assert main(["train", *evaluate, "damaged", "--eval-stitches", "2"]) == 2
    assert "which says what each network answers to each image, cannot be read" in capsys.readouterr().err
    assert not (folder / "damaged/stitches_res.txt.part0").exists()
