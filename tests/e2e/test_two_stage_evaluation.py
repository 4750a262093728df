"""`--eval-images`: all stitches on a part of the images, and on the others those that may be on the front."""

import csv
import json
import signal
from shutil import copyfile, copytree

import numpy as np
import pytest
import torch
from PIL import Image

from stitchkit.cli import main
from stitchkit.data.unreadable import CheckedImages
from stitchkit.measure.evaluate import PartialAnswers
from stitchkit.measure.hits import hits_beside
from stitchkit.measure.ledger import Ledger, read_rows
from stitchkit.measure.two_stage import stratified_part, survivors
from tests.commands import refused
from tests.distributed.forks import end, kill_once_there, start
from tests.support import FAMILIES, FLAGS, family_snnet, pico_snnet, write_config

IMAGES, PART = 40, 12
TWO = ["--eval-images", str(PART), "--keep-within", "10"]


def write_noise(folder, size=16):
    """Ten images of each of four classes to judge, one to train."""
    random = np.random.default_rng(0)
    for split, count in (("train", 1), ("validation", IMAGES // 4)):
        for label in range(4):
            place = folder / split / f"class{label}"
            place.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (size, size, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def write_weights(path, model):
    state = {"state_dict": model.state_dict(), "classes": [f"class{label}" for label in range(4)]}
    torch.save({**state, "input_size": list(model.input_size)}, path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Networks that guess, each in its own way; the command that evaluates them; and both kinds of evaluation."""
    folder = tmp_path_factory.mktemp("two-stage")
    config = write_config(folder / "pico.json", nearest_stitching=False)
    weights = write_weights(folder / "pico.pth.tar", pico_snnet(nearest_stitching=False))
    common = [str(write_noise(folder / "images")), "--stitch_config", str(config), *FLAGS, "--output", str(folder)]
    evaluate = [*common, "-b", "4", "--eval", "--resume", str(weights), "--experiment"]
    assert main(["train", *evaluate, "whole"]) == 0
    assert main(["train", *evaluate, "two", *TWO]) == 0
    return folder, evaluate


@pytest.fixture(autouse=True)
def _saved_after_every_batch(monkeypatch):
    monkeypatch.setattr("stitchkit.measure.evaluate.SAVE_EVERY", 0.0)


def ledger(folder, name):
    return folder / name / "stitches_res.txt"


def by_id(folder, name):
    return {row["cfg_id"]: row for row in read_rows(ledger(folder, name))}


def files(folder, name):
    """The ledger, hits and accuracies of classes, byte for byte."""
    return [(folder / name / file).read_bytes() for file in ("stitches_res.txt", "stitches_res.hits", "per_class.csv")]


def counts(row):
    """What was counted of a stitch alone: a loss is a sum, whose last digits depend on the order."""
    return {key: value for key, value in row.items() if key not in ("loss", "p_front", "tied_with")}


def chosen(folder, name="two"):
    """The stitches that were left, and the part, as they follow from the hits of the whole evaluation."""
    whole, rows = hits_beside(ledger(folder, "whole")), by_id(folder, "whole")
    part = stratified_part(whole.labels.tolist(), PART, seed=42)
    costs = [rows[cfg_id]["flops"] for cfg_id in whole.cfg_ids]
    left = survivors(whole.right[:, part].sum(1).tolist(), PART, costs, 10, always=range(3))
    return {whole.cfg_ids[place] for place in left}, part


def test_those_that_are_left_have_the_figures_of_a_whole_evaluation_and_the_others_those_of_the_part(made):
    folder, _ = made
    left, part = chosen(folder)
    whole, two = by_id(folder, "whole"), by_id(folder, "two")
    assert {0, 1, 2} < left < two.keys() == whole.keys()
    hits, whole_hits = hits_beside(ledger(folder, "two")), hits_beside(ledger(folder, "whole"))
    assert hits.names == whole_hits.names
    assert hits.labels.tolist() == whole_hits.labels.tolist()
    for cfg_id, row in two.items():
        own, every = hits.of([cfg_id]), whole_hits.of([cfg_id])
        if cfg_id in left:
            assert counts(row) == counts(whole[cfg_id])
            assert row["loss"] == pytest.approx(whole[cfg_id]["loss"], rel=1e-6)
            assert "part" not in row
            assert own.seen.all()
            assert own.right.tolist() == every.right.tolist()
        else:
            assert (row["images"], row["part"]) == (PART, True)
            assert np.flatnonzero(own.seen[0]).tolist() == part
            assert own.right[0, part].tolist() == every.right[0, part].tolist()
            assert row["acc1"] == 100 * own.right.sum() / PART
    with (folder / "two/per_class.csv").open(newline="") as file:
        assert {*next(csv.reader(file))} == {"class", "images", *map(str, left)}, "classes of the same images"


def test_what_was_saved_is_said(made, capsys):
    folder, _ = made
    left, _ = chosen(folder)
    flops = {cfg_id: row["flops"] for cfg_id, row in by_id(folder, "whole").items()}
    cost = PART * sum(flops.values()) + (IMAGES - PART) * sum(flops[cfg_id] for cfg_id in left)
    said = (folder / "two/log.txt").read_text()
    assert f"{len(left)} stitches of {len(flops)} may be on the front after 12 images" in said
    assert f"other 28: {100 * cost / IMAGES / sum(flops.values()):.0f} % of the FLOPs" in said


def test_a_dry_run_says_what_both_stages_evaluate(made, caplog):
    caplog.set_level("INFO")
    _, evaluate = made
    assert main(["train", *evaluate, "dry", *TWO, "--dry-run"]) == 0
    said = "two stages: all stitches on 12 images, and on the other 28 only those within 10 points of the front"
    assert said in caplog.text
    caplog.clear()
    assert main(["train", *evaluate, "dry", "--dry-run"]) == 0
    assert "two stages" not in caplog.text


def test_a_plot_counts_the_stitches_that_it_draws(made, tmp_path, monkeypatch):
    folder, _ = made
    left, _ = chosen(folder)
    titles = []
    monkeypatch.setattr("stitchkit.measure.pareto.save_figure", lambda figure, _: titles.append(figure.axes[0]))
    assert main(["pareto", str(ledger(folder, "two")), "--plot", str(tmp_path / "plot.svg")]) == 0
    assert [axes.get_title() for axes in titles] == [f"{len(left)} stitches"]


def test_every_image_is_read_once(made, monkeypatch):
    folder, evaluate = made
    read, get = [], CheckedImages.__getitem__
    monkeypatch.setattr(CheckedImages, "__getitem__", lambda self, index: read.append(index) or get(self, index))
    assert main(["train", *evaluate, "counted", *TWO]) == 0
    assert sorted(read) == list(range(IMAGES))
    assert sorted(read[:PART]) == chosen(folder)[1]
    assert files(folder, "counted") == files(folder, "two")


class _Stopped(Exception):
    pass


def _stop_at(monkeypatch, method, count):
    """Stop a run at the call of a method."""
    place, name = method
    original, calls = getattr(place, name), iter(range(10**6))

    def call(*arguments):
        if next(calls) == count:
            raise _Stopped
        return original(*arguments)

    monkeypatch.setattr(place, name, call)


SAVED, APPENDED = (PartialAnswers, "save"), (Ledger, "append")


@pytest.mark.parametrize(
    ("method", "count", "read_again"),
    [
        (SAVED, 2, IMAGES),  # in the first stage; the loader reads what it has given before
        (SAVED, 3, IMAGES),  # after it, before its file
        (SAVED, 4, IMAGES - PART),  # in the second stage
        (SAVED, 9, IMAGES - PART),
        (APPENDED, 0, IMAGES - PART),
        (APPENDED, 2, IMAGES - PART),  # some have their rows
    ],
)
def test_a_stopped_evaluation_goes_on_where_it_was(method, count, read_again, made, monkeypatch):
    folder, evaluate = made
    name = f"stopped {method[1]} {count}"
    with monkeypatch.context() as patch:
        _stop_at(patch, method, count)
        with pytest.raises(_Stopped):
            main(["train", *evaluate, name, *TWO])
    read, get = [], CheckedImages.__getitem__
    monkeypatch.setattr(CheckedImages, "__getitem__", lambda self, index: read.append(index) or get(self, index))
    assert main(["train", *evaluate, name, *TWO]) == 0
    assert len(read) == read_again
    assert [{**row, "loss": 0} for row in by_id(folder, name).values()] == [
        {**row, "loss": 0} for row in by_id(folder, "two").values()
    ]
    hits, unbroken = (hits_beside(ledger(folder, one)) for one in (name, "two"))
    assert hits.of(unbroken.cfg_ids).right.tolist() == unbroken.right.tolist()
    assert hits.of(unbroken.cfg_ids).seen.tolist() == unbroken.seen.tolist()
    if method == SAVED:
        assert files(folder, name) == files(folder, "two")
    assert {path.name for path in (folder / name).iterdir()} == {path.name for path in (folder / "two").iterdir()}


def test_one_that_was_stopped_after_all_that_are_left_had_rows_has_only_the_others_to_write(made, monkeypatch):
    folder, evaluate = made
    left, _ = chosen(folder)
    with monkeypatch.context() as patch:
        _stop_at(patch, APPENDED, len(left) + 1)
        with pytest.raises(_Stopped):
            main(["train", *evaluate, "last", *TWO])
    monkeypatch.setattr(CheckedImages, "__getitem__", None)
    assert main(["train", *evaluate, "last", *TWO]) == 0
    assert files(folder, "last") == files(folder, "two")


def test_after_images_were_replaced_nothing_of_the_earlier_ones_is_taken_up(made, tmp_path, monkeypatch, capsys):
    """Neither answers that a killed evaluation saved, nor the hits of a ledger that was removed; a ledger refuses."""
    folder, evaluate = made
    images = copytree(folder / "images", tmp_path / "images")
    common = [str(images), *evaluate[1:]]
    with monkeypatch.context() as patch:
        _stop_at(patch, SAVED, 2)
        with pytest.raises(_Stopped):
            main(["train", *common, "replaced", *TWO])
    place = images / "validation/class0"
    (place / "0.png").unlink()
    copyfile(place / "1.png", place / "99.png")
    assert main(["train", *common, "fresh", *TWO]) == 0
    (folder / "replaced/stitches_res.hits").write_bytes((folder / "whole/stitches_res.hits").read_bytes())
    (folder / "replaced/stitches_res.txt.part7").touch()  # of an evaluation on more ranks
    assert main(["train", *common, "replaced", *TWO]) == 0
    assert files(folder, "replaced") == files(folder, "fresh")
    assert {path.name for path in (folder / "replaced").iterdir()} == {path.name for path in (folder / "two").iterdir()}
    (place / "99.png").unlink()
    said = refused(capsys, "train", *common, "replaced", *TWO)
    assert "stitches_res.hits' is of other images: this evaluation has 39 images, the earlier one 40; choose" in said


@pytest.mark.full
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_that_are_killed_go_on_and_find_what_one_finds(ranks, made):
    folder, evaluate = made
    name = f"killed {ranks}"
    command = ["train", *evaluate, name, *TWO]
    first = folder / name / "stitches_res.txt.first"
    assert end(kill_once_there(command, first, ranks=ranks)) == [-signal.SIGKILL] * ranks
    assert first.exists()
    assert end(start(command, ranks=ranks)) == [0] * ranks
    assert files(folder, name)[1:] == files(folder, "two")[1:]
    assert by_id(folder, name).keys() == by_id(folder, "two").keys()
    for cfg_id, row in by_id(folder, "two").items():
        assert by_id(folder, name)[cfg_id] == {**row, "loss": pytest.approx(row["loss"], rel=1e-6)}


def test_a_ledger_is_continued_only_as_it_was_begun(made, capsys):
    _, evaluate = made
    assert main(["train", *evaluate, "two"]) == 2
    assert "was measured with eval_images 12, now None" in capsys.readouterr().err
    assert main(["train", *evaluate, "two", "--eval-images", "12"]) == 2
    assert "was measured with keep_within 10.0, now 0.2" in capsys.readouterr().err
    assert main(["train", *evaluate, "two", *TWO, "--seed", "7"]) == 2
    assert "was measured with seed 42, now 7" in capsys.readouterr().err
    assert main(["train", *evaluate, "whole", *TWO]) == 2
    assert "was measured with eval_images None, now 12" in capsys.readouterr().err


def test_with_as_many_images_as_there_are_the_evaluation_has_one_stage(made):
    folder, evaluate = made
    assert main(["train", *evaluate, "all", "--eval-images", str(IMAGES)]) == 0
    assert files(folder, "all") == files(folder, "whole")


@pytest.mark.full
def test_stitches_with_batch_norm_statistics_of_their_own_have_them_in_both_stages(tmp_path):
    config = FAMILIES["resnet to swin"]
    (tmp_path / "pico.json").write_text(json.dumps(config))
    weights = write_weights(tmp_path / "pico.pth.tar", family_snnet("resnet to swin"))
    images = write_noise(tmp_path / "images", size=64)
    evaluate = [str(images), "--stitch_config", str(tmp_path / "pico.json"), *FLAGS, "--output", str(tmp_path)]
    evaluate += ["-b", "4", "--eval", "--resume", str(weights), "--recalibrate-bn", "1", "--experiment"]
    assert main(["train", *evaluate, "whole"]) == 0
    assert main(["train", *evaluate, "two", "--eval-images", "20", "--keep-within", "0"]) == 0
    whole, two = by_id(tmp_path, "whole"), by_id(tmp_path, "two")
    finished = {cfg_id for cfg_id, row in two.items() if row["images"] == IMAGES}
    assert {0, 1} < finished
    for cfg_id in finished:
        assert counts(two[cfg_id]) == counts(whole[cfg_id])
        assert two[cfg_id]["loss"] == pytest.approx(whole[cfg_id]["loss"], rel=1e-6)


def test_what_has_no_part_or_no_classes_is_refused(made, tmp_path, capsys):
    folder, evaluate = made
    assert "--keep-within has no effect on its own; add --eval-images" in refused(
        capsys, "train", *evaluate, "x", "--keep-within", "1"
    )
    plain = ["train", folder / "images", "--model", "vit_tiny_patch16_224", "--eval", "--pretrained"]
    assert "--eval-images chooses among the stitches" in refused(capsys, *plain, "--eval-images", "3")
    torch.save({"state_dict": family_snnet("headless vit").state_dict()}, tmp_path / "pico.pth.tar")
    (tmp_path / "pico.json").write_text(json.dumps(FAMILIES["headless vit"]))
    features = ["train", folder / "images", "--stitch_config", tmp_path / "pico.json", *FLAGS, "--num-classes", "0"]
    features += ["--eval", "--resume", tmp_path / "pico.pth.tar", "--output", tmp_path]
    assert "--eval-images is for networks with classes" in refused(capsys, *features, "--eval-images", "3")
