"""docs/export.md: every command and every line of Python on it does what it says."""

import os
import re
import shutil

import pytest
import torch

from stitchkit.cli import main
from tests.pages import commands
from tests.support import ROOT, demo_folder

PAGE = ROOT / "docs/export.md"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder as `make demo` leaves it, without the training."""
    folder = demo_folder(tmp_path_factory.mktemp("demo"))
    shutil.copy(ROOT / "results/digits_vit/stitches_res.txt", folder / "outputs/digits_vit")
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
    assert len(blocks) == 3
    for block in blocks:
        names = {"images": torch.rand(2, 3, 32, 32)}
        with torch.no_grad():
            exec(block, names)
        assert names["logits"].shape == (2, 10)
    assert len(list((place / "digits-snnet").iterdir())) == 4
    assert "ti[0:4] > s[3:6]" in capsys.readouterr().out
