"""`stitchkit predict`: a table of classes for a folder of images, from an SN-Net or an exported file."""

import csv
import json
import logging
import os
import signal

import onnx
import pytest
import torch
from PIL import Image

import stitchkit.data.decoding
import stitchkit.ship.predictors
from stitchkit.errors import InputError
from stitchkit.parser import Parser
from stitchkit.ship.commands import export, predict
from tests.support import LOADER_DIES, mostly_full, pico_snnet, write_config

CLASSES = ["ant", "bee", "cat, dog", "=1"]


def run(command, *words):
    parser = Parser(prog="stitchkit")
    command.add_flags(parser)
    command(parser.parse_args([*map(str, words)]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The flags of an SN-Net, and a folder of images of several sizes and modes, two of which cannot be read."""
    folder = tmp_path_factory.mktemp("predict")
    config, weights, images = write_config(folder / "pico.json"), folder / "net.pth", folder / "images"
    state = {"state_dict": pico_snnet().state_dict(), "classes": CLASSES, "input_size": [3, 16, 16]}
    torch.save(state, weights)
    (images / "deeper").mkdir(parents=True)
    for number in range(7):
        pixels = Image.linear_gradient("L").resize((20 + number, 30)).rotate(50 * number)
        pixels.convert("RGB" if number % 2 else "L").save(images / f"{number}.png")
    Image.radial_gradient("L").convert("RGB").save(images / "deeper/round.webp")
    for name in ("broken.png", "deeper/bröken.jpg", "notes.txt", ".hidden.png"):
        (images / name).write_bytes(b"no image")
    return ["--stitch_config", config, "--resume", weights, "--cfg_id", 5], images


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_each_image_has_its_likeliest_classes_and_an_unreadable_one_none(trained, tmp_path, capsys, caplog):
    flags, images = trained
    caplog.set_level(logging.WARNING)
    run(predict, images, *flags, "-o", tmp_path / "p.csv", "--top", 2, "-b", 3, "-j", 0, "--device", "cpu")
    assert "p.csv has predictions for 8 of 10 images" in capsys.readouterr().out
    assert "2 of 10 images cannot be read: broken.png, deeper/bröken.jpg; the first: " in caplog.text
    assert "the first: UnidentifiedImageError: cannot identify image file\n" in caplog.text, "without its path"
    rows = table(tmp_path / "p.csv")
    assert [row["path"] for row in rows] == [
        *(f"{number}.png" for number in range(7)), "broken.png", "deeper/bröken.jpg", "deeper/round.webp"
    ]  # fmt: skip
    assert list(rows[0]) == ["path", "class", "probability", "class_2", "probability_2"]
    model, names = pico_snnet(), []
    transform = stitchkit.ship.predictors.Transform(
        {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "crop_pct": 0.9,
         "crop_mode": "center"}
    )  # fmt: skip
    for row in rows:
        if "br" in row["path"]:
            assert set(row.values()) == {row["path"], ""}
            continue
        with torch.inference_mode():
            shares = model(transform(Image.open(images / row["path"]))[None], 5)[0].softmax(0)
        best = shares.argsort(descending=True).tolist()
        names.append(row["class"])
        assert [row["class"], row["class_2"]] == [CLASSES[number] for number in best[:2]]
        assert float(row["probability"]) == pytest.approx(shares.max().item(), abs=1e-5)


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.full
@LOADER_DIES
def test_a_loader_process_that_dies_ends_the_command_in_one_line(trained, tmp_path, monkeypatch):
    flags, images = trained
    monkeypatch.setattr(stitchkit.data.decoding.Decoding, "read", die)
    with pytest.raises(InputError, match=r"a loader process died .*; lower --workers$"):
        run(predict, images, *flags, "-o", tmp_path / "p.csv", "-j", 1, "--device", "cpu")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", mostly_full([".safetensors", ".onnx"], quick=[".onnx"]))
def test_an_exported_file_predicts_like_its_snnet(suffix, trained, tmp_path, short_timing):
    flags, images = trained
    run(export, *flags, "-o", tmp_path / f"net{suffix}")
    common = ["-j", 1, "--device", "cpu", "-o"]
    run(predict, images, *flags, *common, tmp_path / "a.csv")
    run(predict, images, "--exported", tmp_path / f"net{suffix}", *common, tmp_path / "b.csv")
    for ours, theirs in zip(table(tmp_path / "a.csv"), table(tmp_path / "b.csv"), strict=True):
        assert ours["class"] == theirs["class"]
        assert ours["probability"] == theirs["probability"] or float(ours["probability"]) == pytest.approx(
            float(theirs["probability"]), abs=1e-4
        )


@pytest.mark.full
def test_a_file_that_does_not_say_how_to_prepare_images_is_refused(trained, tmp_path, short_timing):
    flags, images = trained
    path = tmp_path / "net.onnx"
    run(export, *flags, "-o", path)
    program = onnx.load(path)
    (entry,) = (entry for entry in program.metadata_props if entry.key == "stitchkit")
    about = json.loads(entry.value)
    changed = [about | {"input": about["input"] | change} for change in ({"mean": "x"}, {"interpolation": "best"})]
    for description in ({}, {"input": 3}, {"input": {"input_size": [3, 16, 16]}}, *changed):
        entry.value = json.dumps(description)
        onnx.save(program, path)
        with pytest.raises(InputError, match=r"does not say how to prepare images .*; give a file of stitchkit export"):
            run(predict, images, "--exported", path, "-o", tmp_path / "p.csv")


def test_what_cannot_predict_is_refused_before_anything_is_loaded(trained, tmp_path):
    flags, images = trained
    (tmp_path / "empty").mkdir()
    (tmp_path / "net.pt2").touch()
    (tmp_path / "net.onnx").write_bytes(b"no network")
    for words, message in [
        ([tmp_path / "none", *flags], "none' does not exist; give a folder"),
        ([tmp_path / "empty", *flags], "has no images"),
        ([images], "give either --cfg-id N"),
        ([images, *flags, "--exported", "net.onnx"], "give either --cfg-id N"),
        ([images, *flags, "--top", "0"], "--top is 0; it must be at least 1"),
        ([images, *flags, "-b", "0"], "--batch-size is 0; it must be at least 1"),
        ([images, *flags, "-j", "-1"], "--workers is -1; it must be at least 0"),
        ([images, *flags[:-1], "99"], "99"),
        ([images, "--exported", tmp_path / "net.pt2"], "could run code when it is read"),
        ([images, "--exported", tmp_path / "net.onnx"], "cannot be read .*; export it again"),
        ([images, "--exported", tmp_path / "none.onnx"], "none.onnx' does not exist"),
        ([images, "--exported", "last.pth.tar"], "last.pth.tar' is not .*, or a checkpoint by --resume with --stitch-"),
    ]:
        with pytest.raises(InputError, match=message):
            run(predict, *words, "-o", tmp_path / "p.csv")
        assert not (tmp_path / "p.csv").exists()
    with pytest.raises(InputError, match=r"p.xlsx' must be a CSV file; give a name that ends with .csv"):
        run(predict, images, *flags, "-o", tmp_path / "p.xlsx")
