"""docs/dense.md: from scenes to a file, every command and every line of Python, at pico size."""

import re

import onnxruntime
import pytest

from stitchkit.cli import main
from stitchkit.data.scenes import write_scenes
from stitchkit.measure.ledger import read_rows
from tests.pages import commands
from tests.support import FLAGS, ROOT, write_config

PAGE = (ROOT / "docs/dense.md").read_text()

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("short_timing")]


def test_from_scenes_to_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_scenes(tmp_path / "data/scenes", {"train": 16, "validation": 6, "test": 1}, side=32)
    (tmp_path / "configs").mkdir()
    write_config(tmp_path / "configs/scenes_resnet.json", dense={"task": "segmentation", "head": "linear"})
    for words in commands(PAGE):
        assert words[0] == "stitchkit"
        new = FLAGS if "--stitch-config" in words else []
        assert main([*words[1:], *new]) == 0, words
    said = capsys.readouterr().out
    assert "the Pareto front by mean IoU has" in said
    assert re.search(r"largest difference \S+ of logits up to .*\n  SN-Net .*\n  scenes.onnx +0\.", said)
    rows = read_rows("outputs/scenes_resnet/stitches_res.txt")
    assert len(rows) == 17
    assert all(row["miou_low"] <= row["miou"] <= row["miou_high"] for row in rows)
    session = onnxruntime.InferenceSession("scenes.onnx", providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].name == "logits"


def test_its_python():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    names = {}
    exec(code, names)
    assert [list(x.shape) for x in names["maps"]] == [[1, 768, 14, 14]] * 4
