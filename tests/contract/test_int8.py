"""ONNX files in int8: smaller, runnable elsewhere, and kept only if they predict as the SN-Net does."""

import json
import logging

import onnx
import onnxruntime
import pytest
import torch

import stitchkit
from stitchkit.cli import main
from stitchkit.settings.recipe import Recipe
from stitchkit.ship.export import INT8_AGREEMENT, INT8_TOLERANCE, export
from stitchkit.ship.trained_snnet import Trained, describe
from tests.support import FAMILIES, family_snnet, mostly_full, pico_snnet, write_config

pytestmark = pytest.mark.usefixtures("short_timing")


def brightness(model, number, seed=0):
    """Images of one brightness each, with a little noise: what a network says of them differs clearly."""
    random = torch.Generator().manual_seed(seed)
    levels = torch.linspace(-2, 2, number)[:, None, None, None]
    return levels + 0.3 * torch.randn(number, *model.input_size, generator=random)


@pytest.mark.parametrize("family", mostly_full(["resnet", "swin", "levit", "headless vit"], quick=[]))
def test_a_stitch_of_every_family_in_int8_predicts_as_the_snnet(family, tmp_path):
    model = family_snnet(family)
    subject = Trained(model, stitchkit.StitchConfig.parse(FAMILIES[family]), Recipe(), ())
    path, cfg_id = tmp_path / "net.onnx", model.space.ids[-1]
    images, calibration = brightness(model, 40), brightness(model, 32, seed=1)
    report = export(model, cfg_id, path, images, describe(subject, cfg_id), calibration=calibration)
    assert (
        report.same_top1 is None
        if family.startswith("headless")
        else report.same_top1 >= INT8_AGREEMENT * report.images
    )
    for found in report.differences.values():
        assert 1e-4 < found.largest < INT8_TOLERANCE * max(1, found.of)
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert "DequantizeLinear" in operators
    session = onnxruntime.InferenceSession(path)
    assert [(value.name, value.shape) for value in session.get_inputs()] == [("images", ["batch", *model.input_size])]
    about = json.loads(session.get_modelmeta().custom_metadata_map["stitchkit"])
    assert (about["stitch"], about["precision"]) == (model.space[cfg_id].name, "int8")
    assert str(tmp_path).encode() not in path.read_bytes()
    assert [place.name for place in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.full
def test_a_file_in_int8_that_predicts_something_else_does_not_stay(tmp_path):
    """Calibrated on images that are nearly black, so that activations of real ones are cut off."""
    model = family_snnet("vit")
    subject = Trained(model, stitchkit.StitchConfig.parse(FAMILIES["vit"]), Recipe(), ())
    images = brightness(model, 40)
    with pytest.raises(stitchkit.InputError, match=r"net.onnx' was not written: .* omit --int8"):
        export(model, 16, tmp_path / "net.onnx", images, describe(subject, 16), calibration=images * 1e-3)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def run(tmp_path):
    """The flags of an SN-Net's files."""
    torch.save({"state_dict": pico_snnet().state_dict()}, tmp_path / "net.pth")
    flags = ["--stitch_config", write_config(tmp_path / "pico.json"), "--resume", tmp_path / "net.pth"]
    return [*map(str, ["export", *flags, "--cfg_id", "9", "--int8"])]


@pytest.mark.full
def test_the_command_calibrates_on_training_images_and_names_each_split_once(run, images, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO)
    assert main([*run, "--data", str(images), "-o", str(tmp_path / "net.onnx")]) == 0
    for line in ("train: ", "validation: ", "evaluating on the validation images"):
        assert sum(said.startswith(line) for said in caplog.messages) == 1
    output = capsys.readouterr().out
    assert "compared on 20 images from the validation split" in output
    assert "same top-1 class on " in output
    assert len(output.splitlines()) == 6


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-o", "net.pt2"], "int8 is for .onnx files, not .pt2"),
        (["-o", "net.onnx"], "--int8 needs training images, whose activations set its ranges; add --data DIR"),
    ],
)
def test_what_cannot_be_in_int8_is_refused(run, flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    assert main([*run, *flags]) == 2
    assert message in capsys.readouterr().err
    assert set(tmp_path.iterdir()) == before
