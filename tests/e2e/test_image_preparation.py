"""The preparation of images in training goes with a network through every exit, to the same accuracy."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_dataset, create_transform, resolve_model_data_config
from torchvision.models import mobilenet_v3_small, resnet34

import stitchkit
import stitchnet.networks
from stitchkit.cli import main
from stitchkit.measure.ledger import read_rows
from tests.support import FLAGS, pico_config, weights, write_config, write_images

STITCH = 12
DECODING = {"input_img_mode": "YCbCr", "background": "black", "exif": False}
DECODED = ["--input-img-mode", "YCbCr", "--background", "black", "--no-exif"]
SETTINGS = ["--mean", "0.1", "0.2", "0.3", "--std", "0.2", "--crop-pct", "0.6", *DECODED]
PREPARED = {
    "input_size": (3, 16, 16),
    "mean": (0.1, 0.2, 0.3),
    "std": (0.2, 0.2, 0.2),
    "interpolation": "bicubic",
    "crop_pct": 0.6,
    "crop_mode": "center",
}

pytestmark = pytest.mark.usefixtures("short_timing")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a short training whose flags say other things than its configuration."""
    folder = tmp_path_factory.mktemp("prepared")
    write_images(folder / "images")
    write_config(folder / "pico.json", recipe={"mean": [0.5], "crop_pct": 0.9})
    flags = ["--stitch_config", folder / "pico.json", *FLAGS, "--lr", "1e-2", "--output", folder]
    assert main([*map(str, ["train", folder / "images", *flags, "--epochs", "1", *SETTINGS])]) == 0
    return folder


def evaluation(folder: Path, *flags: str) -> int:
    last = str(folder / "pico/last.pth.tar")
    given = ["--stitch_config", str(folder / "pico.json"), "--resume", last, "--output", str(folder), "--device", "cpu"]
    return main(["train", str(folder / "images"), *given, "--eval", "--eval-stitches", str(STITCH), "-j", "0", *flags])


def test_every_exit_prepares_images_as_the_training(run, tmp_path):
    given = {"stitch_config": str(run / "pico.json"), "resume": str(run / "pico/last.pth.tar")}
    model = stitchkit.create_snnet(given["stitch_config"])
    stitchkit.load_checkpoint(model, given["resume"])
    hub = stitchkit.HubSNNet.from_run(**given)
    hub.save_pretrained(tmp_path / "hub")
    found = stitchkit.HubSNNet.from_pretrained(tmp_path / "hub")
    flags = ["--stitch_config", given["stitch_config"], "--resume", given["resume"], "--cfg_id", str(STITCH)]
    assert main(["export", *flags, "-o", str(tmp_path / "net.safetensors")]) == 0
    leaves = [model, hub, found, *(one.extract(STITCH) for one in (model, hub, found))]
    leaves.append(stitchkit.load_stitch(tmp_path / "net.safetensors"))
    for net in leaves:
        assert net.pretrained_cfg == PREPARED | DECODING | {"num_classes": 4}
        assert resolve_model_data_config(net) == PREPARED
    assert leaves[-1].about["input"] == json.loads(json.dumps(PREPARED | DECODING)), "as in files of all kinds"


def test_an_extracted_network_is_as_accurate_as_the_ledger_says(run):
    assert evaluation(run, "--experiment", "judged", *SETTINGS) == 0
    model = stitchkit.create_snnet(run / "pico.json")
    stitchkit.load_checkpoint(model, run / "pico/last.pth.tar")
    net = model.eval().extract(STITCH)
    images = create_dataset("", run / "images", split="validation", input_img_mode="YCbCr")
    images.transform = create_transform(**resolve_model_data_config(net))
    batch, labels = next(iter(torch.utils.data.DataLoader(images, batch_size=len(images))))
    with torch.no_grad():
        logits = net(batch)
    (row,) = read_rows(run / "judged/stitches_res.txt")
    assert row["acc1"] == pytest.approx(100 * float((logits.argmax(1) == labels).float().mean()), abs=1e-3)
    # A short training leaves few images right, but no two preparations with the same loss.
    assert row["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), abs=1e-4)


def test_an_evaluation_with_another_preparation_is_reported_or_refused(run, capsys, caplog):
    assert evaluation(run, "--experiment", "configuration") == 2
    line = capsys.readouterr().err
    assert "was trained on images prepared with mean (0.1, 0.2, 0.3), here (0.5, 0.5, 0.5)" in line
    assert "input_img_mode YCbCr, here RGB; background black, here white; exif False, here True" in line
    flags = "--mean 0.1 0.2 0.3 --std 0.2 0.2 0.2 --crop-pct 0.6 --input-img-mode YCbCr --background black --no-exif"
    assert f"set {flags}, or others" in line
    assert evaluation(run, "--experiment", "own", "--mean", "0.5", "--std", "0.5", "--crop-pct", "0.5", *DECODED) == 0
    assert "was trained on images prepared with mean (0.1, 0.2, 0.3), here (0.5" in caplog.text


def test_an_evaluation_is_prepared_as_the_training_where_settings_leave_that_open(run, tmp_path, caplog):
    caplog.set_level("INFO")
    config = json.loads((run / "pico.json").read_text())
    (tmp_path / "bare.json").write_text(json.dumps({"anchors": config["anchors"]}))
    rows = []
    for name, flags in (("given", SETTINGS), ("open", [])):
        given = ["--stitch_config", str(tmp_path / "bare.json"), *flags, "--experiment", name]
        assert evaluation(run, *given) == 0
        rows.append(read_rows(run / name / "stitches_res.txt"))
    assert rows[0] == rows[1]
    taken = (
        "images are prepared as in the training of .*: mean .0.1, 0.2, 0.3.; std .*; crop_pct 0.6; input_img_mode YC"
    )
    assert len(re.findall(taken, caplog.text)) == 1


def test_flags_and_files_decide_where_the_checkpoint_says_nothing(run, tmp_path):
    torch.save({"state_dict": weights(run / "pico/last.pth.tar")}, tmp_path / "bare.pth")
    model = stitchkit.create_snnet(run / "pico.json")
    assert (model.pretrained_cfg["mean"], model.pretrained_cfg["crop_pct"]) == ((0.5, 0.5, 0.5), 0.9)
    stitchkit.load_checkpoint(model, tmp_path / "bare.pth")
    assert model.extract(STITCH).pretrained_cfg == model.pretrained_cfg
    assert model.pretrained_cfg["crop_pct"] == 0.9
    given = {"stitch_config": str(run / "pico.json"), "resume": str(run / "pico/last.pth.tar"), "crop_pct": 0.7}
    assert stitchkit.HubSNNet.from_run(**given).image == {
        "mean": [0.1, 0.2, 0.3], "std": [0.2] * 3, "interpolation": "bicubic", "crop_pct": 0.7, "crop_mode": "center",
        **DECODING,
    }  # fmt: skip


def test_an_anchor_brings_the_preparation_of_its_checkpoint(tmp_path):
    config = pico_config()
    last = config["anchors"][-1]
    state = stitchkit.create_model(last["name"], **last["kwargs"]).state_dict()
    torch.save({"state_dict": state, "image": {"mean": [0.1, 0.2, 0.3], "crop_pct": 0.7}}, tmp_path / "b.pth")
    last["checkpoint"] = str(tmp_path / "b.pth")
    model = stitchkit.create_snnet(config)
    assert (model.pretrained_cfg["mean"], model.pretrained_cfg["crop_pct"]) == ((0.1, 0.2, 0.3), 0.7)


def classes_of(folder, images, *flags):
    """What `predict` says of each image."""
    (folder / "p.csv").unlink(missing_ok=True)
    assert main([*map(str, ["predict", images, *flags, "-o", folder / "p.csv", "-j", "0", "--device", "cpu"])]) == 0
    with (folder / "p.csv").open(newline="") as file:
        return [(row["path"], row["class"], row["probability"]) for row in csv.DictReader(file)]


@pytest.mark.full
@pytest.mark.parametrize("mode", ["YCbCr", "RGBA", "L"])
def test_the_colour_mode_of_training_goes_wherever_the_network_goes(mode, tmp_path):
    """It was forgotten: networks for YCbCr saw RGB, and every image for RGBA was unreadable."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    folder, random = write_images(tmp_path / "data", train=4, validation=2), np.random.default_rng(0)
    for path in folder.rglob("*.*"):
        Image.fromarray(random.integers(0, 256, (20, 20, 4), dtype=np.uint8)).save(path.with_suffix(".png"))
    flags = [
        "--stitch_config",
        write_config(tmp_path / "pico.json"),
        *FLAGS,
        "--output",
        tmp_path,
        "-b",
        "4",
        "--no-aug",
    ]
    flags += ["--in-chans", channels, *(["--input-img-mode", mode] if mode == "YCbCr" else [])]
    assert main([*map(str, ["train", folder, *flags, "--epochs", "1", "--lr", "1e-2"])]) == 0
    trained = ["--stitch_config", tmp_path / "pico.json", "--resume", tmp_path / "pico/last.pth.tar"]
    model = stitchkit.create_snnet(tmp_path / "pico.json", in_chans=channels)
    stitchkit.load_checkpoint(model, tmp_path / "pico/last.pth.tar")
    transform, expected = create_transform(**resolve_model_data_config(model.eval()), is_training=False), {}
    for path in sorted((folder / "validation").rglob("*.png")):
        image = Image.open(path)
        if mode != "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        with torch.no_grad():
            expected[str(path.relative_to(folder))] = model(transform(image.convert(mode))[None], STITCH)[0].softmax(0)
    exported = tmp_path / "net.safetensors"
    assert main([*map(str, ["export", *trained, "--cfg_id", STITCH, "-o", exported])]) == 0
    for network in ([*trained, "--cfg_id", STITCH], ["--exported", exported]):
        for path, name, share in classes_of(tmp_path, folder / "validation", *network):
            best = expected[f"validation/{path}"].max(0)
            assert (name, float(share)) == (f"class{best.indices}", pytest.approx(float(best.values), abs=1e-5))
    judged = ["train", folder, *flags, "--eval", *trained[2:], "--eval-stitches", STITCH]
    assert main([*map(str, judged)]) == 0
    if mode == "YCbCr":
        bare = [word for word in judged if word not in ("--input-img-mode", mode)]
        assert main([*map(str, [*bare, "--experiment", "bare"])]) == 0
        assert read_rows(tmp_path / "bare/stitches_res.txt") == read_rows(tmp_path / "pico/stitches_res.txt")


def test_images_have_at_most_four_channels(tmp_path, capsys):
    flags = ["--stitch_config", write_config(tmp_path / "pico.json"), "--in-chans", "5"]
    assert main([*map(str, ["train", write_images(tmp_path / "data"), *flags])]) == 2
    assert "the network takes images of 5 channels; images have 1 to 4" in capsys.readouterr().err


def saved(path, network, **about):
    """A checkpoint as a training writes it."""
    torch.save({"state_dict": network.state_dict(), **about}, path)
    return str(path)


@pytest.mark.full  # two ResNets of real size; one of timm is quick
def test_an_anchor_of_torchvision_brings_the_preparation_of_its_checkpoint(tmp_path):
    pair = [{"name": f"torchvision/{name}", "kwargs": {"num_classes": 4}} for name in ("resnet18", "resnet34")]
    image = {"mean": [0.1, 0.2, 0.3], "std": [0.2] * 3, "crop_pct": 0.7}
    pair[1]["checkpoint"] = saved(tmp_path / "b.pth", resnet34(num_classes=4), image=image)
    model = stitchkit.create_snnet(anchors=pair, img_size=32)
    assert (model.pretrained_cfg["mean"], model.pretrained_cfg["crop_pct"]) == ((0.1, 0.2, 0.3), 0.7)


def test_anchors_of_trainings_that_differ_are_said(tmp_path, caplog):
    config = pico_config()
    for anchor, crop, size in zip(config["anchors"], (0.7, 0.7, 0.9), (16, 24, 16), strict=True):
        network = stitchkit.create_model(anchor["name"], **anchor["kwargs"])
        about = {"image": {"mean": [0.1, 0.2, 0.3], "crop_pct": crop}, "input_size": [3, size, size]}
        anchor["checkpoint"] = saved(tmp_path / f"{anchor['label']}.pth", network, **about)
    stitchkit.create_snnet(config)
    told = "was trained on images prepared with"
    lines = [message for message in caplog.messages if told in message]
    assert [line.partition(told)[2] for line in lines] == [
        " crop_pct 0.7, here 0.9",
        " crop_pct 0.7, here 0.9; input_size (3, 24, 24), here (3, 16, 16)",
    ]
    assert f"'{tmp_path / 'ti.pth'}'" in lines[0]


def test_a_start_from_other_images_is_said(run, caplog):
    flags = ["--stitch_config", run / "pico.json", "--initial-checkpoint", run / "pico/last.pth.tar", "--dry-run"]
    flags += ["--crop-pct", "0.8", "--device", "cpu", "-j", "0", "-b", "8", "--output", run, "--experiment", "on"]
    assert main([*map(str, ["train", run / "images", *flags])]) == 0
    assert "was trained on images prepared with mean (0.1, 0.2, 0.3), here (0.5, 0.5, 0.5); crop_pct 0.6" in caplog.text
    assert caplog.text.count("was trained on images") == 1


def test_composition_says_what_it_cannot_take_over(tmp_path, caplog):
    image = {"mean": [0.1, 0.2, 0.3], "std": [0.2] * 3, "crop_pct": 0.6, "input_img_mode": "YCbCr", "exif": False}
    path = saved(tmp_path / "w.pth", mobilenet_v3_small(), image=image)
    stitchnet.networks.load_networks([{"name": "mobilenet_v3_small", "checkpoint": path}], img_size=(64, 64))
    assert "w.pth' was trained on images prepared with mean (0.1, 0.2, 0.3), here (0.485" in caplog.text
    assert "crop_pct 0.6, here 1.0; input_img_mode YCbCr, here RGB; exif False, here True" in caplog.text


def test_a_plain_network_of_another_size_is_said(tmp_path, caplog):
    path = saved(tmp_path / "w.pth", stitchkit.create_model("resnet10t", num_classes=4), input_size=[3, 32, 32])
    stitchkit.load_checkpoint(stitchkit.create_model("resnet10t", num_classes=4), path)
    assert "w.pth' was trained on images prepared with input_size (3, 32, 32), here (3, 176, 176)" in caplog.text
