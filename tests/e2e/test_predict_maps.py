"""`stitchkit predict` by networks for dense prediction: the map of each image is the one that `--eval` judged."""

import logging

import numpy as np
import pytest
from PIL import Image

from stitchkit.cli import main
from stitchkit.data.dense.maps import read_depth, read_mask
from stitchkit.data.scenes import CLASSES, write_scenes
from stitchkit.measure.ledger import read_rows
from stitchkit.measure.scores import SegmentationScore
from tests.support import FLAGS, mostly_full, write_config

FOLDERS = {"segmentation": "masks", "depth": "depths"}
STITCH = 5


@pytest.fixture(scope="module", params=mostly_full(FOLDERS, quick=["segmentation"]))
def run(request, tmp_path_factory):
    """The task, the folder of its data, and that of a short training with its evaluation; images span windows."""
    task, folder = request.param, tmp_path_factory.mktemp(request.param)
    write_scenes(folder / "scenes", {"train": 16, "validation": 3, "test": 1}, side=40)
    config = write_config(folder / "pico.json")
    train = [
        "train",
        str(folder / "scenes"),
        "--stitch_config",
        str(config),
        *FLAGS,
        "--task",
        task,
        "--head",
        "linear",
    ]
    train += ["--output", str(folder), "--experiment", "run"]
    assert main(train) == 0
    resume = ["--resume", str(folder / "run/last.pth.tar")]
    assert main([*train, *resume, "--eval", "--eval-stitches", str(STITCH)]) == 0
    return task, folder, ["-c", str(folder / "run/args.yaml"), *resume, "--cfg_id", str(STITCH), "--device", "cpu"]


def predicted(folder, images, *flags):
    """The maps that the command writes."""
    assert main(["predict", str(images), *flags, "-j", "0", "-o", str(folder)]) == 0
    return [Image.open(path) for path in sorted(folder.iterdir())]


def figures(task, folder, maps):
    """What maps are worth, computed from the files alone."""
    names = sorted((folder / f"scenes/validation/{FOLDERS[task]}").iterdir())
    if task == "depth":
        truths = [read_depth("truth", str(path)) for path in names]
        pairs = [
            (np.asarray(one, float)[truth > 0] / 1000, truth[truth > 0])
            for one, truth in zip(maps, truths, strict=True)
        ]
        return {"abs_rel": np.mean([np.mean(abs(found - true) / true) for found, true in pairs])}
    found = np.stack([np.asarray(one) for one in maps])
    true = np.stack([read_mask("truth", str(path)) for path in names])
    counted = true != 255
    pairs = ((found == true, true), (True, found), (True, true))
    sums = [np.bincount(which[counted & chosen], minlength=len(CLASSES)) for chosen, which in pairs]
    return {key: float(value) for key, value in SegmentationScore(len(CLASSES)).figures(np.concatenate(sums)).items()}


def test_maps_are_those_that_the_evaluation_judged(run, tmp_path):
    task, folder, stitch = run
    maps = predicted(tmp_path / "maps", folder / "scenes/validation/images", *stitch, "-b", "3")
    (row,) = read_rows(folder / "run/stitches_res.txt")
    assert [one.size for one in maps] == [(40, 40)] * 3
    assert [one.mode for one in maps] == [{"segmentation": "P", "depth": "I;16"}[task]] * 3
    for key, value in figures(task, folder, maps).items():
        assert value == pytest.approx(row[key], rel=1e-3 if task == "depth" else 1e-9), (
            "depths are millimetres in files"
        )


@pytest.mark.parametrize("suffix", mostly_full([".onnx", ".safetensors"], quick=[".safetensors"]))
def test_an_exported_file_gives_the_maps_of_its_snnet(suffix, run, tmp_path, short_timing):
    task, folder, stitch = run
    exported = tmp_path / f"net{suffix}"
    assert main(["export", *stitch[:-2], "-o", str(exported)]) == 0
    images = folder / "scenes/validation/images"
    ours = predicted(tmp_path / "ours", images, *stitch)
    theirs = predicted(tmp_path / "theirs", images, "--exported", str(exported), "--device", "cpu")
    for one, other in zip(ours, theirs, strict=True):
        first, second = np.asarray(one, int), np.asarray(other, int)
        if task == "depth":
            assert abs(first - second).max() <= 1
        else:
            assert (first == second).mean() > 0.99


def test_a_mask_of_a_photo_lies_where_the_photo_lies_and_is_read_as_a_mask(run, tmp_path, caplog):
    task, _, stitch = run
    photos = tmp_path / "photos"
    (photos / "deeper").mkdir(parents=True)
    Image.linear_gradient("L").resize((90, 25)).save(photos / "deeper/wide.webp")
    (photos / "broken.jpg").write_bytes(b"no image")
    caplog.set_level(logging.WARNING)
    assert main(["predict", str(photos), *stitch, "-j", "1", "-o", str(tmp_path / "maps")]) == 0
    assert "1 of 2 images cannot be read: broken.jpg; the first: image " in caplog.text
    assert [path.name for path in (tmp_path / "maps").rglob("*.*")] == ["wide.png"]
    read = read_mask if task == "segmentation" else read_depth
    assert read("map", str(tmp_path / "maps/deeper/wide.png")).shape == (25, 90)


def test_what_maps_cannot_be_is_said_before_any_is_made(run, tmp_path, capsys):
    _, folder, stitch = run
    images, alike = folder / "scenes/validation/images", tmp_path / "alike"
    alike.mkdir()
    for name in ("a.jpg", "a.png"):
        Image.new("RGB", (20, 20)).save(alike / name)
    for words, message in [
        ([images, *stitch, "-o", tmp_path / "maps.csv"], "the network gives a map of each image; give -o a folder"),
        (
            [images, *stitch, "-o", tmp_path / "maps", "--top", "3"],
            "--top does not apply to networks that predict maps",
        ),
        (
            [images, *stitch, "-o", tmp_path / "maps.png"],
            "maps.png' must be a CSV file; give a name that ends with .csv",
        ),
        ([alike, *stitch, "-o", tmp_path / "maps"], "'a.jpg' and 'a.png' would both have the map 'a.png'; rename one"),
    ]:
        assert main(["predict", *map(str, words)]) == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["alike"]
