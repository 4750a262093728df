"""docs/backbones.md: from photos without labels to a file, every command and every line of Python, at pico size."""

import csv
import json
import re

import pytest
import torch
from PIL import Image

from stitchkit.cli import main
from stitchkit.data.demo import read_demo_glyphs
from stitchkit.measure.ledger import read_rows
from tests.pages import commands
from tests.support import ROOT

PAGE = (ROOT / "docs/backbones.md").read_text()
SIZE = {"img_size": 28, "depth": 3, "num_heads": 2, "init_values": 1.0}  # from 1e-5, random blocks do nothing
FEW = {"train": ["--no-pretrained", "-b", "8", "-j", "0", "--device", "cpu"]}

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("short_timing")]


def write(folder, part, *, count, labelled):
    for name, number, image in read_demo_glyphs(part):
        if number < count and name in "ABCDEFGH":
            place = folder / name / f"{number}.png" if labelled else folder / f"{name}{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            image.save(place)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A user's folder, with photos, a few of which have labels, and the configuration of the page for pico models."""
    folder = tmp_path_factory.mktemp("user")
    write(folder / "photos", "unlabelled", count=30, labelled=False)
    for split in ("train", "validation"):
        write(folder / "labelled" / split, split, count=5, labelled=True)
    (content,) = re.findall(r"```json\n(.*?)```", PAGE, re.S)
    config = json.loads(content)
    small, base = (name.partition(".")[0] for name in config["anchors"])
    config["anchors"] = [
        {"name": small, "kwargs": {**SIZE, "embed_dim": 16}}, {"name": base, "kwargs": {**SIZE, "embed_dim": 32}}
    ]  # fmt: skip
    (folder / "dinov2_s_b.json").write_text(json.dumps(config))
    return folder


def reduced(words, place):
    """A command of the page, for the folder and at its size; latencies of a busy machine will do."""
    known = {"/path/to/photos": str(place / "photos"), "/path/to/labelled": str(place / "labelled"), "224": "28"}
    unsure = ["--allow-unreliable"] if "--max-latency-ms" in words else []
    is_new = words[0] == "train" and "--stitch-config" in words
    return [*(known.get(word, word) for word in words), *unsure, *(FEW["train"] if is_new else [])]


def test_from_photos_to_a_file(place, monkeypatch, capsys, caplog):
    monkeypatch.chdir(place)
    caplog.set_level("INFO")
    for words in commands(PAGE):
        assert words[0] == "stitchkit"
        assert main(reduced(words[1:], place)) == 0, words
    said = capsys.readouterr().out
    assert re.search(r"cfg_id \d+ is the best by cosine with the end anchor of (the|all) \d+ stitches", said)
    assert re.search(r"largest difference \S+ of tokens up to .*\n  SN-Net .*\n  backbone.onnx +0\.", said)
    for line in ("this was a dry run", "parameters are trained", "feature loss of held-out images"):
        assert line in caplog.text

    with open("outputs/dinov2_s_b/summary.csv", newline="") as file:
        losses = [float(row["eval_feature_loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < losses[0]
    rows = read_rows("outputs/dinov2_s_b/stitches_res.txt")
    assert all({"cosine", "cka", "latency_ms"} <= row.keys() and "knn" not in row for row in rows)
    assert all({"knn", "linear"} <= row.keys() for row in read_rows("outputs/dinov2_s_b_labelled/stitches_res.txt"))
    assert (place / "dinov2_s_b.html").stat().st_size > 10_000
    with Image.open("outputs/dinov2_s_b/pareto.png") as image:
        assert image.size[0] > 800

    names = {"images": torch.rand(2, 3, 28, 28).numpy()}
    use, build = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(use, names)
    stitch = int(re.search(r"stitch (\d+), .* is in backbone\.onnx", said)[1])
    names["photos"] = torch.from_numpy(names["images"])
    pooled, tokens = names["pooled"], names["tokens"]
    with torch.no_grad():
        exec(build.replace("224", "28"), names)
    assert names["model"].space[stitch].name == names["about"]["stitch"]
    for found, expected in ((pooled, names["pooled"]), (tokens, names["tokens"])):
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-4)
    assert pooled.shape == (2, 32)
    assert tokens.shape == (2, 5 + 4, 32)
    torch.testing.assert_close(names["model"](names["photos"], stitch), names["pooled"], rtol=0, atol=1e-5)
