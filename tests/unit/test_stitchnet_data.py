"""The published example line by line, data from folders and arrays, and the command; all offline."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import stitchnet
from stitchkit.cli import main
from stitchkit.errors import InputError
from stitchkit.measure.ledger import read_rows
from stitchkit.measure.pareto import is_anchor, pareto_front
from stitchnet import generate, image_folder, load_hf_dataset, stitching_images
from stitchnet.data import batches
from tests.unit.test_stitchnet import RESNET, VIT, convnet


@pytest.fixture(scope="module")
def beans(tmp_path_factory):
    """Images in a folder for each split and class, in which a class is a colour."""
    folder = tmp_path_factory.mktemp("beans")
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("validation", 12), ("test", 4)):
        for label in range(3):
            place = folder / split / f"class{label}"
            place.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 60, (24, 20, 3))
                pixels[..., label] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    return folder


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """The library of data sets neither asks the hub nor leaves files behind."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def pico_nets():
    torch.manual_seed(0)
    return {"a": convnet(6, 8), "b": convnet(5, 10, 12), "vit": timm.create_model("vit_tiny_patch16_224", **VIT)}


def test_the_published_example_runs_line_by_line(beans, offline, tmp_path):
    dataset_train, dataset_val = load_hf_dataset(
        str(beans), train_split="validation", val_split="test", label_column="label", seed=47, size=32
    )
    assert len(dataset_train) == 36
    stitching_dataset = np.vstack([x["pixel_values"] for x in dataset_train.select(range(32))])
    assert stitching_dataset.shape == (32, 3, 32, 32)
    nets = pico_nets()
    score, net = generate(stitching_dataset, threshold=0, totalThreshold=0, maxDepth=10, K=2, sample=True, nets=nets)
    assert 0 < score <= 1
    generator = generate(
        stitching_dataset, threshold=0.8, totalThreshold=0.8, maxDepth=10, K=2, sample=False, nets=nets
    )
    found = [(score, str(net)) for score, net in generator]
    assert len(found) > 2
    assert all(score >= 0.8 for score, _ in found)
    assert net.get_macs_params().keys() == {"macs", "params"}
    net.save_onnx(str(tmp_path / "_data/net"))
    net.draw_svg(str(tmp_path / "_data/net"))
    assert {path.name for path in (tmp_path / "_data").iterdir()} >= {"net.onnx", "net.svg"}
    net.fit(dataset_train, label_column="label")
    file = beans / "test/class1/0.png"
    [predicted] = net.predict_files([str(file)])
    assert sum(predicted["score"]) == pytest.approx(1)
    assert predicted["label"] == int(np.argmax(predicted["score"]))
    result = net.evaluate_dataset(dataset_val, label_column="label")
    assert result["accuracy"] > 0.5
    folder = image_folder(beans / "test", 32)
    assert net.evaluate_dataset(folder) == result  # the same images, without the library


def test_splits_are_shuffled_by_the_seed(beans, offline):
    orders = [load_hf_dataset(str(beans), label_column="label", seed=seed, size=8)[0]["label"] for seed in (1, 1, 2)]
    assert list(orders[0]) == list(orders[1]) != list(orders[2])


def test_data_sets_that_cannot_be_used(beans, offline):
    with pytest.raises(InputError, match="did you mean 'label'"):
        load_hf_dataset(str(beans), label_column="labels", size=8)
    with pytest.raises(InputError, match="splits 'validatio' and 'test' cannot be had"):
        load_hf_dataset(str(beans), train_split="validatio", label_column="label", size=8)
    dataset, _ = load_hf_dataset(str(beans), label_column="label", size=8)
    with pytest.raises(InputError, match="needs label_column"):
        next(batches(dataset))
    with pytest.raises(InputError, match="did you mean 'label'"):
        next(batches(dataset, "labels"))


def test_arrays_and_folders(beans):
    with pytest.raises(InputError, match="do not belong together"):
        next(batches((np.zeros((3, 3, 8, 8)), [1, 2])))
    with pytest.raises(InputError, match="no image"):
        next(batches([]))
    with pytest.raises(InputError, match="one folder of images for each class"):
        image_folder(beans / "nowhere")
    folder = image_folder(beans / "train", 16)
    images = stitching_images(folder, 5, seed=1)
    assert images.shape == (5, 3, 16, 16)
    assert torch.equal(images, stitching_images(folder, 5, seed=1))
    assert not torch.equal(images, stitching_images(folder, 5, seed=2))
    assert len(stitching_images(folder, 1000)) == len(folder)


def test_files_that_are_no_images(beans, tmp_path):
    _, net = generate(stitching_images(image_folder(beans / "train", 32)), 0, 0, sample=True, nets=pico_nets())
    net.fit(image_folder(beans / "train", 32))
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(InputError, match=r"text\.png' cannot be read"):
        net.predict_files([tmp_path / "text.png"])
    assert net.predict_files([]) == []


def run(*arguments):
    return main(["compose", *map(str, arguments)])


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A stitch configuration with two pico networks."""
    anchors = [
        {"label": "resnet", "name": "resnet18", "kwargs": RESNET},
        {"label": "vit", "name": "vit_tiny_patch16_224", "kwargs": VIT},
    ]
    path = tmp_path_factory.mktemp("config") / "pico.json"
    path.write_text(json.dumps({"anchors": anchors}))
    return path


FLAGS = ("--no-pretrained", "--img-size", 32, "--threshold", 0.2, "--total-threshold", 0.1, "--max-depth", 4, "-k", 3)


@pytest.mark.parametrize("order", ["best", "depth"])
def test_the_command_writes_a_ledger_drawings_and_networks(beans, config, tmp_path, capsys, order):
    output = tmp_path / "out"
    assert run("--data", beans, "--nets", config, *FLAGS, "--top", 4, "--order", order, "-o", output) == 0
    printed = capsys.readouterr().out
    assert "tried" in printed
    assert "pruned" in printed
    assert "found" in printed
    rows = read_rows(output / "stitches_res.txt")
    assert [row["cfg_id"] for row in rows] == [0, 1, 2, 3]
    scores = [row["score"] for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert pareto_front(rows)
    assert any(not is_anchor(row) for row in rows)
    for row in rows:
        folder = output / f"{row['cfg_id']:03d}"
        assert "<svg" in (folder / "net.svg").read_text()
        net = stitchnet.load(folder)
        assert str(net) == row["stitch"]
        assert net.get_macs_params() == {"macs": row["flops"], "params": row["params"]}
        accuracy = net.evaluate_dataset(image_folder(beans / "validation", 32))["accuracy"]
        assert 100 * accuracy == pytest.approx(row["acc1"])
    assert main(["pareto", str(output / "stitches_res.txt")]) == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--threshold", 2), "no composition passes"),
        (("--top", 0), "--top is 0"),
        (("--nets", "resnet500"), "unknown network 'resnet500'"),
        (("--data", "nowhere"), "one folder of images for each class"),
        (("--max-depht", 3), "did you mean '--max-depth'"),
    ],
)
def test_bad_input_is_told_in_one_line(beans, config, tmp_path, capsys, flags, words):
    assert run("--data", beans, "--nets", config, *FLAGS, "-o", tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("stitchkit: error: ")
    assert error.strip().count("\n") == 0


def test_a_folder_that_exists_is_left_alone(beans, config, tmp_path, capsys):
    assert run("--data", beans, "--nets", config, *FLAGS, "-o", tmp_path) == 2
    assert "exists; choose another folder" in capsys.readouterr().err
