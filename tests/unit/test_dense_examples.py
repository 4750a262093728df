"""The picture beside the ledger of a dense task."""

import numpy as np
import pytest
import torch
from PIL import Image

from stitchkit.cli import main
from stitchkit.data.dense.pairs import open_pairs
from stitchkit.data.scenes import CLASSES, write_scenes
from stitchkit.distributed import init_world
from stitchkit.measure.ledger import read_rows
from stitchkit.measure.pareto import pareto_front
from stitchkit.settings.flags import resolve
from stitchkit.tasks.segmentation import class_colours
from stitchkit.training.examples import examples, shown_stitches
from stitchkit.training.run import kind_of
from stitchkit.training.session import open_session
from tests.support import FLAGS, mostly_full, write_config

WAYS = {
    "segmentation": ["--task", "segmentation", "--head", "linear"],
    "depth": ["--task", "depth", "--head", "linear"],
}
SIDE = 16


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Parts of scenes, of the side of a pico network's images; a corner of the first is not known."""
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    write_scenes(folder, {"train": 4, "validation": 7, "test": 1}, side=32)
    for path in folder.glob("validation/*/*.png"):
        with Image.open(path) as opened:
            part = opened.crop((8, 8, 8 + SIDE, 8 + SIDE))
        if part.mode == "P":  # a palette would be written with as few bits as it has colours
            part = Image.fromarray(np.array(part))
        if path.parent.name != "images" and path.stem == "0000":
            part.paste(255 if path.parent.name == "masks" else 0, (0, 0, 8, 8))
        part.save(path)
    return folder


@pytest.fixture(scope="module", params=mostly_full(WAYS, quick=["depth"]))
def judged(request, scenes, tmp_path_factory):
    """The task, and the folder of an evaluation, in which `examples.png` was a link."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "run").mkdir()
    (folder / "outside").write_text("untouched")
    (folder / "run/examples.png").symlink_to(folder / "outside")
    config = write_config(folder / "pico.json")
    command = [
        "train",
        *map(str, [scenes, "--stitch_config", config, *FLAGS, *WAYS[request.param], "--output", folder]),
    ]
    assert main([*command, "--experiment", "trained", "-b", "2", "--stitch-init-bs", "2", "--epochs", "1"]) == 0
    resume = ["--resume", str(folder / "trained/last.pth.tar")]
    assert main([*command, "--experiment", "run", "--eval", "--eval-stitches", "0-6", *resume]) == 0
    return request.param, folder


def test_a_picture_with_a_column_for_each_stitch_and_a_row_for_each_image(judged):
    way, folder = judged
    picture = folder / "run/examples.png"
    assert not picture.is_symlink()
    assert (folder / "outside").read_text() == "untouched"
    with Image.open(picture) as opened:
        assert opened.format == "PNG"
        pixels = np.array(opened.convert("RGB")).reshape(-1, 3)
    if way == "segmentation":
        colours = (255 * class_colours(len(CLASSES))).round()
        assert all((abs(pixels - colour).max(1) <= 1).any() for colour in colours)
    assert (abs(pixels - 255 * 0.6).max(1) <= 1).sum() > 1000  # what is not known


def test_what_is_drawn_is_what_the_network_says(judged, scenes):
    """Of one window; the laws compare those that are merged."""
    way, folder = judged
    rows = read_rows(folder / "run/stitches_res.txt")
    front = pareto_front(rows)
    shown = shown_stitches(rows)
    assert [shown[0], shown[-1]] == [front[0], front[-1]]
    flags = {"data_dir": str(scenes), "stitch_config": str(folder / "pico.json"), "pretrained": False, "workers": 0}
    flags["resume"] = str(folder / "trained/last.pth.tar")
    recipe, config = resolve({**flags, "task": way, "head": "linear", "eval": True, "device": "cpu"})
    session = open_session(recipe, config, init_world("cpu"), kind_of(recipe))
    model, cfg_ids = session.model.eval(), [row["cfg_id"] for row in shown]
    drawn, pairs = examples(session, model, cfg_ids), open_pairs(scenes, "validation", way)
    for place, example in zip((0, 2, 4, 6), drawn, strict=True):
        image, truth = pairs[place]
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
        np.testing.assert_allclose(example.image, pixels[0].permute(1, 2, 0), atol=1e-6)
        np.testing.assert_array_equal(example.truth, truth)
        known = (truth > 0) & (truth <= 10) if way == "depth" else truth != 255
        np.testing.assert_array_equal(example.known, known)
        assert not (place == 0 and known.all())
        for cfg_id, found in zip(cfg_ids, example.predicted, strict=True):
            with torch.no_grad():
                output = model((pixels - 0.5) / 0.5, cfg_id)
            whole = torch.nn.functional.interpolate(output, (SIDE, SIDE), mode="bilinear")[0]
            expected = whole[0] if way == "depth" else whole.argmax(0)
            np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_of_a_front_of_two_both_are_shown():
    rows = [{"cfg_id": n, "stitch": f"s[0:{n}]", "flops": n, "miou": 10.0 * n} for n in (1, 2)]
    assert shown_stitches(rows) == rows
    assert shown_stitches(rows[:1]) == rows[:1]


def test_colours_of_classes_differ():
    colours = class_colours(150)
    assert (class_colours(10) == colours[:10]).all()
    apart = np.linalg.norm(colours[:20, None] - colours[None, :20], axis=2) + 9 * np.eye(20)
    assert apart.min() > 0.1
