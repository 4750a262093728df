"""Laws 6 to 9 for dense prediction: training and evaluation of networks that predict for each pixel."""

import json
import math
import re

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

import stitchkit
from stitchkit.cli import main
from stitchkit.data.dense.pairs import open_pairs
from stitchkit.data.scenes import write_scenes
from stitchkit.errors import InputError
from stitchkit.measure.ledger import read_rows
from stitchkit.measure.per_image import PerImage
from tests.distributed.forks import end, kill_once_there
from tests.distributed.ranks import run_on_two_ranks
from tests.distributed.subjects import equal
from tests.support import FLAGS, mostly_full, pico_anchor, write_config

STATES = ("state_dict", "state_dict_ema", "optimizer", "task", "epoch")
BUSY = ["--drop-path", "0.2", "--model-ema", "--sched-on-updates", "--color-jitter", "0.4", "--hflip", "0.5"]
BUSY += ["--checkpoint-interval", "3"]
PLAIN = ["--no-aug", "--opt", "sgd", "--lr", "0.05", "--sched", "none", "--sampling", "shared"]
WAYS = {
    "segmentation": ["--task", "segmentation"],
    "depth": ["--task", "depth", "--head", "linear"],
    "levels": ["--task", "segmentation", "--head", "linear", "--levels", "0", "2"],
}
IN_FLAGS = {
    "segmentation": "--task segmentation --head setr",
    "depth": "--task depth --head linear",
    "levels": "--task segmentation --head linear --levels 0 2",
}


def ways(*quick, full=()):
    """For these ways, which `trained` takes; the `full` ones are left to `make test-all`."""
    return pytest.mark.parametrize("trained", mostly_full([*quick, *full], quick=quick), indirect=True)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """32 scenes to train on and 5 to judge by, larger than the images of a pico network."""
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    write_scenes(folder, {"train": 32, "validation": 5, "test": 1}, side=32)
    return folder


def command(scenes, folder, way, *flags):
    config = folder / "pico.json"
    if not config.exists():
        write_config(config, anchors=[pico_anchor("ti", 8), pico_anchor("b", 32)])
    return ["train", *map(str, [scenes, "--stitch_config", config, *FLAGS, *WAYS[way], "--output", folder, *flags])]


def content(folder, file="last"):
    return torch.load(folder / f"{file}.pth.tar", weights_only=True)


def assert_same_end(one, other):
    first, second = content(one), content(other)
    for name in STATES:
        assert (name in first) == (name in second), name
        assert name not in first or equal(first[name], second[name]), name


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each way."""
    return {way: tmp_path_factory.mktemp(way) for way in WAYS}


@pytest.fixture
def trained(request, scenes, folders):
    """A way, and the folder of a run with every kind of state and randomness; each runs once."""
    way, folder = request.param, folders[request.param]
    if not (folder / "trained").exists():
        assert main([*command(scenes, folder, way, *BUSY), "--experiment", "trained"]) == 0
    return way, folder


@ways("segmentation", full=["depth", "levels"])
def test_law_8_a_training_resumes(trained, scenes):
    """From within an epoch."""
    way, folder = trained
    assert content(folder / "trained", "previous")["within"]["ranks"][0]["position"]["done"] == 3
    resume = ["--experiment", "resumed", "--resume", str(folder / "trained/previous.pth.tar")]
    assert main([*command(scenes, folder, way, *BUSY), *resume]) == 0
    assert_same_end(folder / "trained", folder / "resumed")


@pytest.mark.full
def test_law_8_a_training_killed(scenes, tmp_path):
    """By `kill -9` on two ranks."""
    way, flags = "depth", [*BUSY, "--checkpoint-interval", "1", "--resume", "auto"]
    run_on_two_ranks([command(scenes, tmp_path, way, *flags, "--experiment", "whole")])
    killed = command(scenes, tmp_path, way, *flags, "--experiment", "killed")
    assert end(kill_once_there(killed, tmp_path / "killed/checkpoint-0.pth.tar", ranks=2)) == [-9, -9]
    run_on_two_ranks([killed])
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.full
def test_law_9_two_ranks_train_what_one_with_twice_the_batch_does(scenes, tmp_path):
    """With the head that has no batch norms, which see other batches; it needs four levels."""
    anchors = [pico_anchor(label, width, depth=4) for label, width in (("s", 8), ("b", 16))]
    write_config(tmp_path / "pico.json", anchors=anchors)
    flags = [*PLAIN, "--head", "dpt", "--epochs", "1"]
    assert main([*command(scenes, tmp_path, "segmentation", *flags, "-b", "16"), "--experiment", "one"]) == 0
    run_on_two_ranks([[*command(scenes, tmp_path, "segmentation", *flags, "-b", "8"), "--experiment", "two"]])
    one, two = (content(tmp_path / count)["state_dict"] for count in ("one", "two"))
    assert any(name.startswith("head.") for name in one)
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], rtol=1e-3, atol=1e-5)


def evaluation(scenes, folder, way, *flags):
    """All routes have the statistics of training, so that they share work."""
    resume = ["--eval", "--resume", str(folder / "trained/last.pth.tar"), "-vb", "2", "--recalibrate-bn", "0"]
    return [*command(scenes, folder, way), *resume, *flags]


@pytest.fixture
def judged(trained, scenes):
    """The same, and its stitches are evaluated in the folder `judged`."""
    way, folder = trained
    if not (folder / "judged").exists():
        assert main([*evaluation(scenes, folder, way), "--experiment", "judged"]) == 0
    return trained


@ways("segmentation", "depth", full=["levels"])
def test_law_7_every_stitch_is_judged_as_one_by_one(judged, scenes):
    """By hand: windows of 16 x 16 pixels, 10 apart, from images of 32 x 32, which segmentation makes as small first."""
    way, folder = judged
    rows = read_rows(folder / "judged/stitches_res.txt")
    model = load(folder, way)
    assert [row["cfg_id"] for row in rows] == [*model.space.ids]
    pairs = open_pairs(scenes, "validation", "depth" if way == "depth" else "segmentation")
    sums = PerImage.read(folder / "judged/stitches_res.sums")
    for row in rows[::3]:
        found = [by_hand(model, row["cfg_id"], image, target, way) for image, target in pairs]
        assert sums.names == pairs.names
        if way == "depth":
            figures = np.mean([(rel, rmse, 100 * near) for rel, rmse, near in found], axis=0)
            expected = dict(zip(("abs_rel", "rmse", "delta1"), figures, strict=True))
        else:
            total = np.sum(found, axis=0)
            union = total.sum(0) + total.sum(1) - total.diagonal()
            ious = total.diagonal()[union > 0] / union[union > 0]
            expected = {"miou": 100 * ious.mean(), "pixel_acc": 100 * total.trace() / total.sum()}
        for key, value in expected.items():
            assert row[key] == pytest.approx(value, rel=1e-5), (row["cfg_id"], key)
        assert row["images"] == len(pairs)


def load(folder, way):
    saved = content(folder / "trained")
    model = stitchkit.create_snnet(saved["stitch_config"], num_classes=len(saved["classes"]) or None)
    model.keeps_statistics = True  # as in the evaluation by --recalibrate-bn 0
    model.load_state_dict(saved["state_dict"])
    return model.eval()


@torch.no_grad()
def by_hand(model, cfg_id, image, target, way):
    mean, std = (torch.tensor(value)[:, None, None] for value in IMAGENET_HALF)
    x = (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - mean) / std
    size = 32 if way == "depth" else 16
    if way != "depth":
        x = torch.nn.functional.interpolate(x[None], (16, 16), mode="bilinear", antialias=True)[0]
    total = count = 0
    for top in (0, 10, 16) if size == 32 else (0,):
        for left in (0, 10, 16) if size == 32 else (0,):
            output = model(x[None, :, top : top + 16, left : left + 16], cfg_id)
            output = torch.nn.functional.interpolate(output, (16, 16), mode="bilinear")
            place = torch.zeros(1, output.shape[1], size, size)
            place[:, :, top : top + 16, left : left + 16] = 1
            whole = torch.zeros_like(place)
            whole[:, :, top : top + 16, left : left + 16] = output
            total, count = total + whole, count + place
    found = torch.nn.functional.interpolate(total / count, target.shape, mode="bilinear")[0]
    if way == "depth":
        depth, truth = found[0].double().numpy(), target.astype(float)
        known = (truth > 1e-3) & (truth <= 10)
        depth, truth = depth[known], truth[known]
        near = np.maximum(depth / truth, truth / depth) < 1.25
        return (abs(depth - truth) / truth).mean(), math.sqrt(((depth - truth) ** 2).mean()), near.mean()
    confusion = np.zeros((10, 10))
    np.add.at(confusion, (target.ravel(), found.argmax(0).numpy().ravel()), 1)
    return confusion


IMAGENET_HALF = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
"""Mean and deviation of the pico networks, which are timm's for `vit_tiny_patch16_224`."""


@ways(full=["segmentation"])
def test_law_9_two_ranks_choose_the_same_statistics(trained, scenes, tmp_path):
    """One rank chooses batch-norm statistics, while the others wait; they must not wait for each other."""
    way, folder = trained
    flags = ["--eval", "--resume", str(folder / "trained/last.pth.tar"), "-vb", "2", "--output", str(tmp_path)]
    flags = [*command(scenes, folder, way), *flags]
    assert main([*flags, "--experiment", "one"]) == 0
    run_on_two_ranks([[*flags, "--experiment", "two"]])
    ledgers = [(tmp_path / name / "stitches_res.txt").read_text() for name in ("one", "two")]
    assert '"bn": ' in ledgers[0]
    assert ledgers[0] == ledgers[1]


@ways("segmentation", full=["depth"])
def test_law_9_two_ranks_judge_as_one(judged, scenes):
    way, folder = judged
    run_on_two_ranks([[*evaluation(scenes, folder, way), "--experiment", "two"]])
    one, two = ((folder / name / "stitches_res.txt").read_text() for name in ("judged", "two"))
    assert one == two
    assert not [*folder.glob("*/*.part*")]


@ways("depth", full=["segmentation"])
def test_law_8_an_evaluation_resumes_where_it_was_killed(judged, scenes, monkeypatch, caplog):
    caplog.set_level("INFO")
    way, folder = judged
    images = []

    def watched(self, image):
        images.append(image)
        if len(images) == 4:
            raise KeyboardInterrupt
        return sized(self, image)

    from stitchkit.tasks.windows import Windows

    sized = Windows._sized
    monkeypatch.setattr("stitchkit.measure.evaluate.SAVE_EVERY", 0)
    monkeypatch.setattr(Windows, "_sized", watched)
    assert main([*evaluation(scenes, folder, way), "--experiment", "killed"]) != 0
    assert (folder / "killed/stitches_res.txt.part0").exists()
    assert main([*evaluation(scenes, folder, way), "--experiment", "killed"]) == 0
    drawn = r"examples.png shows images and their truth, with the predictions of \d stitch\w* of the front"
    assert re.search(drawn, caplog.text)
    assert len(images) == 4 + 3 + 4, "the first batch of two is not judged again; four images are drawn"
    names = ("stitches_res.txt", "stitches_res.sums")
    for name in names:
        assert (folder / "killed" / name).read_bytes() == (folder / "judged" / name).read_bytes()


@pytest.mark.full
@ways("segmentation")
def test_a_few_stitches_are_joined_by_the_others(judged, scenes):
    way, folder = judged
    for flags in (["--eval-stitches", "3,0"], []):
        assert main([*evaluation(scenes, folder, way), *flags, "--experiment", "parts"]) == 0
    parts, whole = (read_rows(folder / name / "stitches_res.txt") for name in ("parts", "judged"))
    assert sorted(parts, key=lambda row: row["cfg_id"]) == whole


EXPORTED = [("segmentation", "onnx"), ("depth", "safetensors"), ("levels", "onnx")]


@pytest.mark.parametrize(("trained", "suffix"), mostly_full(EXPORTED, quick=EXPORTED[1:2]), indirect=["trained"])
def test_law_6_an_exported_stitch(suffix, judged, scenes):
    way, folder = judged
    path = folder / f"stitch.{suffix}"
    flags = ["-c", folder / "judged/eval_args.yaml", "--cfg_id", "3", "-o", path]
    assert main(["export", *map(str, flags)]) == 0
    model = load(folder, way)
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(x, 3)
        if suffix == "onnx":
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            assert [output.name for output in session.get_outputs()] == ["depth" if way == "depth" else "logits"]
            found = torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
        else:
            net = stitchkit.load_stitch(path)
            found = net(x)
            assert net.num_classes == (1 if way == "depth" else 10)
            assert len(load_file(path)) == len(net.state_dict())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@ways("depth", full=["segmentation"])
def test_tools_take_the_ledger(judged, scenes, capsys):
    """The front, a choice within a budget, and a page."""
    way, folder = judged
    metric = "delta1" if way == "depth" else "miou"
    ledger = str(folder / "judged/stitches_res.txt")
    capsys.readouterr()
    assert main(["pareto", ledger, "--plot", str(folder / "front.png")]) == 0
    assert metric in capsys.readouterr().out
    assert main(["pick", ledger, "--max-flops", "1G", "--confident"]) == 0
    assert main(["report", ledger, "-o", str(folder / "page.html")]) == 0
    assert json.dumps(metric) in (folder / "page.html").read_text()


REFUSED = [
    (["--head", "setr"], "--head is for dense prediction; add --task segmentation or --task depth"),
    (["--task", "depth", "--mixup", "0.8"], "--mixup 0.8 does not apply to --task depth"),
    (["--task", "segmentation", "--levels", "2", "1"], "levels are [2, 1]; give blocks of 'b' in ascending order"),
    (["--task", "segmentation", "--head", "dpt"], "the dpt head needs 4 levels, not 3"),
    (["--task", "segmentation", "--num-classes", "3"], "classes.txt' names 10 classes; omit it, or give 10"),
    (["--task", "segmentation", "--zoom", "2", "0.5"], "--zoom is [2.0, 0.5]; give the smallest scale first"),
]


@pytest.mark.parametrize(("flags", "said"), REFUSED)
def test_settings_that_do_not_fit_are_refused(flags, said, scenes, tmp_path, capsys):
    run = ["train", str(scenes), "--stitch_config", str(write_config(tmp_path / "pico.json")), *FLAGS]
    assert main([*run, *flags, "--output", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
    assert not [*tmp_path.glob("*/*.tar")]


def test_depths_that_are_all_too_far_are_no_figures(scenes, tmp_path, capsys):
    """Such as those in another unit, in training and in an evaluation."""
    run = command(scenes, tmp_path, "depth", "--epochs", "1")
    assert main([*run, "--experiment", "near"]) == 0
    judged = ["--eval", "--resume", str(tmp_path / "near/last.pth.tar"), "--recalibrate-bn", "0"]
    for flags in ([], judged):
        capsys.readouterr()
        assert main([*run, *flags, "--max-depth", "0.5", "--experiment", "far"]) == 2
        assert "no pixel of 5 images has a depth from 0.001 to 0.5 m; check the unit" in capsys.readouterr().err
        assert not [*tmp_path.glob("far/*res.txt"), *tmp_path.glob("far/*.tar")]


def test_a_training_that_diverges_is_told_how_to_go_on(scenes, tmp_path, capsys):
    """The only step of the epoch has a finite loss, so that the validation finds it."""
    flags = [*PLAIN, "-b", "32", "--epochs", "1", "--lr", "1e30"]
    assert main(command(scenes, tmp_path, "segmentation", *flags)) == 2
    line = capsys.readouterr().err
    assert "the outputs of anchor 'ti' are not finite; stopped. Lower --lr, or set or lower --clip-grad" in line
    assert not [*tmp_path.glob("pico/*.tar")]


def test_images_without_masks_are_refused(images, tmp_path, capsys):
    assert main(command(images, tmp_path, "segmentation")) == 2
    assert "has no split 'train' of images and masks" in capsys.readouterr().err


@ways("segmentation", full=["levels"])
def test_a_run_resumes_only_with_its_task(trained, scenes, capsys):
    way, folder = trained
    other = {"segmentation": "depth", "depth": "segmentation", "levels": "segmentation"}[way]
    resume = ["--resume", str(folder / "trained/last.pth.tar"), "--experiment", "other"]
    capsys.readouterr()
    assert main([*command(scenes, folder, other), *resume]) == 2
    was, now = IN_FLAGS[way], IN_FLAGS[other]
    said = f"was trained with another configuration: {now} is set here, but {was} in the checkpoint; use the settings"
    assert said in capsys.readouterr().err


@ways("segmentation")
def test_what_is_for_classes_of_images_is_refused(trained, images, tmp_path, capsys):
    _, folder = trained
    weights, exported = ["--resume", str(folder / "trained/last.pth.tar")], str(tmp_path / "stitch.safetensors")
    settings = ["-c", str(folder / "trained/args.yaml"), *weights]
    with pytest.raises(InputError, match="not for classes of whole images; a folder for the Hub needs these"):
        stitchkit.HubSNNet(content(folder / "trained")["stitch_config"])
    assert main(["export", *settings, "--cfg_id", "1", "-o", exported]) == 0
    capsys.readouterr()
    for network in (["--exported", exported], [*settings, "--cfg_id", "1"]):
        assert main(["predict", str(images), *network, "-o", str(tmp_path / "found.csv")]) == 2
        assert "the network gives a map of each image; give -o a folder for them" in capsys.readouterr().err
    without = ["--stitch_config", str(folder / "pico.json"), *weights]
    assert main(["export", *without, "--cfg_id", "1", "-o", str(tmp_path / "other.onnx")]) == 2
    assert "no task is set here, but --task" in capsys.readouterr().err


def test_a_dry_run_says_what_is_trained(scenes, tmp_path, caplog):
    caplog.set_level("INFO")
    assert main(command(scenes, tmp_path, "segmentation", "--dry-run")) == 0
    assert "data: 32 training images, 5 validation images, 10 classes" in caplog.text
    assert (
        "segmentation by the setr head, with levels after blocks 0, 1, 2 of the last anchor; crops of 16 x 16 to train "
        "on, and windows of the same size, 10 pixels apart, to evaluate in"
    ) in caplog.messages
    assert not [*tmp_path.glob("*/*")]
