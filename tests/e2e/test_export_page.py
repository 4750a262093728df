"""docs/export.md: every command and every line of Python on it does what it says; and the Python of cross stitches."""

import os
import re
import shutil

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import stitchkit
from stitchkit.cli import main
from tests.pages import commands
from tests.support import ROOT, demo_folder

PAGE = ROOT / "docs/export.md"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder as `make demo` leaves it, without the training."""
    folder = demo_folder(tmp_path_factory.mktemp("demo"))
    for name in ("stitches_res.txt", "stitches_res.hits"):
        shutil.copy(ROOT / "results/digits_vit" / name, folder / "outputs/digits_vit")
    before = os.getcwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


pytestmark = [pytest.mark.full, pytest.mark.usefixtures("short_timing")]


def test_the_commands_run(place, capsys):
    for words in commands(PAGE.read_text()):
        assert words[0] == "stitchkit"
        assert main(words[1:]) == 0, words
    output = capsys.readouterr().out
    assert output.count("compared on 64 images from the validation split of 'data/digits'") == 4
    assert "latency of batches of 1" in output
    exports = {"stitch12.safetensors", "budget.onnx", "stitch12.pt2", "small34.onnx"}
    assert {path.name for path in place.glob("*.*")} == exports | {"predictions.csv", "budget.csv"}


def test_the_python_runs(place, capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) == 5
    Image.new("RGB", (40, 40)).save(place / "photo.jpg")
    names = {}
    headless = stitchkit.create_snnet("digits_vit", checkpoints=False, num_classes=0).eval()
    for block in blocks:
        names |= {"images": torch.rand(2, 3, 32, 32), "model": headless, "stitch": 12}
        with torch.no_grad():
            exec(block, names)
        assert names["logits"].shape == (2, 10)
    assert len(list((place / "digits-snnet").iterdir())) == 4
    assert "ti[0:4] > s[3:6]" in capsys.readouterr().out


def test_the_change_of_mean_and_deviation_in_the_page_of_cross_stitches_is_exact(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/cross_stitches.md").read_text(), re.S)
    size = {"img_size": 28, "embed_dim": 32, "depth": 2, "num_heads": 2, "pretrained": False}
    create = timm.create_model
    monkeypatch.setattr("timm.create_model", lambda name, **given: create(name, **{**given, **size}).eval())
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    torch.manual_seed(0)
    exec(code, names)
    torch.manual_seed(0)
    before = create("vit_large_patch14_reg4_dinov2.lvd142m", **size).eval()
    after = create("vit_large_patch14_reg4_dinov2.lvd142m", **size).eval()
    after.load_state_dict(load_file("dinov2_l_for_siglip2.safetensors"))
    pixels, own = torch.rand(2, 3, 28, 28), before.pretrained_cfg
    mean, std = (torch.tensor(own[key])[:, None, None] for key in ("mean", "std"))
    torch.testing.assert_close(after((pixels - 0.5) / 0.5), before((pixels - mean) / std), atol=1e-5, rtol=1e-4)
