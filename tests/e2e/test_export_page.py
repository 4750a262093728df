"""docs/export.md: every command and every line of Python on it does what it says."""

import os
import re
import shutil

import pytest
import torch

import stitchkit
from stitchkit.cli import main
from tests.e2e.test_walkthrough import commands
from tests.support import ROOT, randomize

PAGE = ROOT / "docs/export.md"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder as `make demo` leaves it, but for the training."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "configs").symlink_to(ROOT / "configs")
    assert main(["demo-data", str(folder / "data/digits")]) == 0
    shutil.copytree(ROOT / "results/digits_vit", folder / "outputs/digits_vit")
    (folder / "outputs/digits_vit/stitches_res.yaml").unlink()  # it tells of the weights of the real run
    model = stitchkit.create_snnet(ROOT / "configs/digits_vit.json")
    randomize(model)
    classes = [str(digit) for digit in range(10)]
    state = {"state_dict": model.state_dict(), "classes": classes, "input_size": [3, 32, 32]}
    torch.save(state, folder / "outputs/digits_vit/last.pth.tar")
    before = os.getcwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(autouse=True)
def short_timing(monkeypatch):
    monkeypatch.setattr("stitchkit.measure.latency._SECONDS", 0.001)


def test_the_commands_run(place, capsys):
    for words in commands(PAGE):
        assert words[0] == "stitchkit"
        assert main(words[1:]) == 0, words
    output = capsys.readouterr().out
    assert output.count("compared on 64 images from the validation split of 'data/digits'") == 3
    assert "latency of batches of 1" in output
    assert {path.name for path in place.glob("*.*")} == {"stitch12.safetensors", "budget.onnx", "stitch12.pt2"}


def test_the_python_runs(place, capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) == 3
    for block in blocks:
        names = {"images": torch.rand(2, 3, 32, 32)}
        with torch.no_grad():
            exec(block, names)
        assert names["logits"].shape == (2, 10)
    assert len(list((place / "digits-snnet").iterdir())) == 4
    assert "ti[0:4] > s[3:6]" in capsys.readouterr().out
