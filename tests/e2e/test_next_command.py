"""What a run prints as the next command is run as it is printed: the evaluation after a training, then the front."""

import json
import re
import shlex

import pytest
import torch
from PIL import Image

from stitchkit import create_model
from stitchkit.cli import main
from stitchkit.data.open_dataset import open_dataset
from stitchkit.data.source import Source
from stitchkit.measure.ledger import read_rows
from tests.support import FAMILIES, FLAGS, mostly_full, pico_config, write_images, write_scene_pairs

RUN = [*FLAGS, "--epochs", "1", "--no-aug"]
CLASSES = [f"class{number}" for number in range(4)]
PREPARED = {"mean": [0.1, 0.2, 0.3], "std": [0.2] * 3, "crop_pct": 0.7, "input_img_mode": "YCbCr"}
"""The preparation that only the files of the anchors say."""
FEATURES = ["--loss", "features"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Data of every kind, and the trained anchors of a configuration that does not say how many classes they know."""
    folder = tmp_path_factory.mktemp("a place")  # with a space
    write_images(folder / "labelled")
    write_images(folder / "others", classes=5)
    write_scene_pairs(folder / "scenes")
    (folder / "photos").mkdir()
    for number, path in enumerate((folder / "labelled/train").rglob("*.png")):
        Image.open(path).save(folder / f"photos/{number}.png")
    (folder / "list.txt").write_text("".join(f"photos/{number}.png\n" for number in range(40)))
    config = pico_config()
    for anchor in config["anchors"]:
        model = create_model(anchor["name"], **anchor["kwargs"])
        anchor["checkpoint"] = str(folder / f"{anchor['label']}.pth")
        about = {"arch": anchor["name"], "model_kwargs": anchor["kwargs"], "classes": CLASSES, "image": PREPARED}
        torch.save({"state_dict": model.state_dict(), **about}, anchor["checkpoint"])
    (folder / "named.json").write_text(json.dumps(config))
    for anchor in config["anchors"]:
        del anchor["kwargs"]["num_classes"]
    (folder / "files.json").write_text(json.dumps(config))
    # Their joints reach the early stages, whose batch norms are recalibrated.
    (folder / "norms.json").write_text(json.dumps(FAMILIES["resnet to swin"]))
    (folder / "headless.json").write_text(json.dumps(FAMILIES["headless vit"]))
    return folder


def of_anchors(place):
    return ["--anchors", f"{place / 'ti.pth'},{place / 's.pth'}"]


def in_shards(place):
    """webdataset's shards of the labelled images."""
    tarfile = pytest.importorskip("webdataset")
    root, splits = place / "shards", {}
    if not root.exists():
        root.mkdir()
        for split in ("train", "validation"):
            images = open_dataset(Source("", place / "labelled"), split).reader.samples
            with tarfile.TarWriter(str(root / f"{split}.tar")) as tar:
                for number, (path, label) in enumerate(images):
                    with open(path, "rb") as file:
                        tar.write({"__key__": f"{number:06d}", "png": file.read(), "cls": label})
            about = {"name": split, "filenames": [f"{split}.tar"], "shard_lengths": [len(images)]}
            splits[split] = {**about, "num_samples": len(images)}
        (root / "_info.json").write_text(json.dumps({"splits": splits}))
    return [root, "--dataset", "wds/"]


def in_parquet(place):
    """The labelled images as one of Hugging Face's sets."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    for split in ("train", "validation"):
        samples = open_dataset(Source("", place / "labelled"), split).reader.samples
        columns = {"image": [path for path, _ in samples], "label": [label for _, label in samples]}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(place / f"parquet/{split}.parquet")
    return [place / "cache", "--dataset", f"hfds/{place / 'parquet'}"]


def stitched(name):
    return lambda place: ["--stitch_config", place / f"{name}.json"]


def folder_of(name):
    return lambda place: [place / name]


PLAIN = ["--model", "vit_tiny_patch16_224", "--model-kwargs"]
PLAIN += [f"{key}={value}" for key, value in pico_config()["anchors"][0]["kwargs"].items() if key != "num_classes"]
KINDS = {
    "a plain model": (folder_of("labelled"), lambda _: PLAIN),
    "a configuration": (folder_of("labelled"), stitched("files")),
    "anchors": (folder_of("labelled"), of_anchors),
    "a name with a space": (folder_of("labelled"), lambda place: [*stitched("files")(place), "--experiment", "a b"]),
    "shards": (in_shards, lambda place: [*stitched("named")(place), "--num-classes", "4"]),
    "parquet": (in_parquet, stitched("files")),
    "features of files": (folder_of("labelled"), lambda place: [*stitched("files")(place), *FEATURES]),
    "features of anchors": (folder_of("labelled"), lambda place: [*of_anchors(place), *FEATURES]),
    "features on other classes": (folder_of("others"), lambda place: [*of_anchors(place), *FEATURES]),
    "features of photos": (folder_of("photos"), lambda place: [*of_anchors(place), *FEATURES]),
    "features of a list": (folder_of("list.txt"), lambda place: [*stitched("files")(place), *FEATURES]),
    "features of batch norms": (folder_of("photos"), lambda place: [*stitched("norms")(place), *FEATURES]),
    "features without classifiers": (folder_of("photos"), lambda place: [*stitched("headless")(place), *FEATURES]),
    "features in shards": (in_shards, lambda place: [*stitched("named")(place), *FEATURES]),
    "features and labels": (folder_of("labelled"), lambda place: [*of_anchors(place), "--loss", "features+task"]),
    "segmentation": (
        folder_of("scenes"),
        lambda place: [*of_anchors(place), "--task", "segmentation"],
    ),
    "depth": (folder_of("scenes"), lambda place: [*of_anchors(place), "--task", "depth", "--head", "linear"]),
}


def printed(said):
    """The commands in a log."""
    return [shlex.split(line) for line in re.findall(r": (stitchkit .*)", said)]


@pytest.mark.parametrize("kind", mostly_full(KINDS, quick=["features of files"]))
def test_what_is_printed_runs(place, tmp_path, caplog, kind):
    caplog.set_level("INFO")
    data, network = (part(place) for part in KINDS[kind])
    command = ["train", *data, *network, *RUN, "--output", tmp_path / "out puts"]
    assert main([*map(str, command)]) == 0
    found = printed(caplog.text)
    assert len(found) == (kind != "a plain model")
    for name, *words in found:
        assert name == "stitchkit"
        caplog.clear()
        assert main(words) == 0, caplog.text
        [(_, *front)] = printed(caplog.text)
        assert main(front) == 0
        assert read_rows(front[1])
    if found:
        assert main([*map(str, [*command, "--resume", "auto"])]) == 0


def test_a_folder_that_begins_with_a_dash_is_no_flag(place, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)
    command = ["train", place / "labelled", *stitched("files")(place), *RUN, "--output=./-out", "--experiment=-x"]
    assert main([*map(str, command)]) == 0
    [(_, *words)] = printed(caplog.text)
    assert main(words) == 0


def test_what_a_resumed_run_prints_runs(place, tmp_path, caplog):
    caplog.set_level("INFO")
    command = ["train", place / "labelled", *of_anchors(place), *FEATURES, *RUN, "--output", tmp_path]
    assert main([*map(str, [*command, "--experiment", "x"])]) == 0
    [(_, *words)] = printed(caplog.text)
    assert main([*words, "--eval-stitches", "0-2"]) == 0
    assert main([*map(str, [*command, "--experiment", "x", "--epochs", "2", "--resume", "auto"])]) == 0
    (_, *words) = printed(caplog.text)[-1]
    assert main([*words, "--eval-stitches", "0-2"]) == 0, "the ledger there is of the weights before"
    assert read_rows(tmp_path / "x-2/stitches_res.txt") != read_rows(tmp_path / "x/stitches_res.txt")
    names = torch.load(tmp_path / "x/last.pth.tar", weights_only=True)["classes"]
    assert names == CLASSES, "those of the anchors, since nothing learned from labels"
