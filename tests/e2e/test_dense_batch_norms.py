"""Batch norms of anchors or head in dense prediction: each route is judged, and exported, with its own statistics."""

import json

import pytest
import torch
from safetensors.torch import load_file

from stitchkit import load_stitch
from stitchkit.cli import main
from stitchkit.data.scenes import write_scenes
from stitchkit.distributed import init_world
from stitchkit.measure.ledger import read_rows
from stitchkit.measure.recalibrate import renew
from stitchkit.model.statistics import batch_norms
from stitchkit.settings.flags import resolve
from stitchkit.training.checkpoint import load_weights
from stitchkit.training.judging import judged_of
from stitchkit.training.run import kind_of
from stitchkit.training.session import open_session
from tests.support import FAMILIES, FLAGS, pico_anchor, write_config

TRAIN, SIDE = 6, 64


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of scenes and runs, and the command that trained two small ResNets on them."""
    folder = tmp_path_factory.mktemp("norms")
    write_scenes(folder / "scenes", {"train": TRAIN, "validation": 3, "test": 1}, side=SIDE)
    (folder / "pico.json").write_text(json.dumps({**FAMILIES["resnet"], "rule": "two_way"}))
    way = ["--task", "segmentation", "--head", "linear", "--img-size", str(SIDE), "--stitch-init-bs", "2"]
    config = ["--stitch_config", str(folder / "pico.json")]
    command = ["train", str(folder / "scenes"), *config, *FLAGS, *way, "-b", "2", "--output", str(folder)]
    assert main([*command, "--experiment", "trained", "--epochs", "2", "--lr", "0.01"]) == 0
    return folder, command


@pytest.fixture(scope="module")
def judged(trained):
    folder, command = trained
    resume = ["--eval", "--resume", str(folder / "trained/last.pth.tar")]
    assert main([*command, "--experiment", "judged", *resume, "--recalibrate-bn", "10"]) == 0
    assert main([*command, "--experiment", "shared", *resume, "--recalibrate-bn", "0"]) == 0
    return {name: read_rows(folder / name / "stitches_res.txt") for name in ("judged", "shared")}


@pytest.mark.full
def test_all_routes_have_statistics_of_their_own(judged):
    """Anchors too: they share the head's with all routes."""
    pairs = [*zip(judged["judged"], judged["shared"], strict=True)]
    assert all(one["recalibrate_bn"] == 10 and "recalibrate_bn" not in other for one, other in pairs)
    assert sum(one["pixel_acc"] != other["pixel_acc"] for one, other in pairs) > len(pairs) / 2


def test_so_have_routes_of_anchors_without_batch_norms(trained, tmp_path):
    """The norms of the head are shared by all."""
    folder, _ = trained
    vits = [pico_anchor(label, width, depth=2) for label, width in (("s", 8), ("b", 16))]
    config = write_config(tmp_path / "vits.json", anchors=vits)
    way = ["--task", "segmentation", "--head", "setr", "--stitch-init-bs", "2", "-b", "2", "--output", str(tmp_path)]
    command = ["train", str(folder / "scenes"), "--stitch_config", str(config), *FLAGS, *way]
    assert main([*command, "--epochs", "1"]) == 0
    assert main([*command, "--eval", "--resume", str(tmp_path / "vits/last.pth.tar")]) == 0
    assert all(row["bn_loss"] > 0 for row in read_rows(tmp_path / "vits/stitches_res.txt"))


@pytest.mark.full
def test_the_picture_is_drawn_with_them(trained, judged):
    folder, _ = trained
    drawn, other = ((folder / name / "examples.png").read_bytes() for name in judged)
    assert drawn != other


@pytest.mark.full
def test_a_row_is_what_the_extracted_route_gives_after_a_direct_recalibration(trained, judged):
    """All training images fit into the ten batches, and each is one window."""
    folder, _ = trained
    flags = {"data_dir": str(folder / "scenes"), "stitch_config": str(folder / "pico.json"), "pretrained": False}
    flags |= {"workers": 0, "task": "segmentation", "head": "linear", "img_size": SIDE, "batch_size": 2}
    flags |= {"resume": str(folder / "trained/last.pth.tar"), "eval": True, "device": "cpu"}
    recipe, config = resolve(flags)
    session = open_session(recipe, config, init_world("cpu"), kind_of(recipe))
    load_weights(session)
    row = judged["judged"][-1]
    net = session.model.extract(row["cfg_id"])
    assert batch_norms(net)
    images = session.loaders.train.dataset
    renew(net, [torch.stack([images[number][0] for number in range(TRAIN)])])
    session.model.statistics = {row["cfg_id"]: _statistics_of(session.model, row["cfg_id"], net)}
    judged = judged_of(session)
    networks = judged.stitches(session.model, [row["cfg_id"]], None)
    found = judged.evaluate(networks, "").figures(row["cfg_id"])
    assert {key: row[key] for key in found} == pytest.approx(found, abs=0.01)


def _statistics_of(model, cfg_id, net):
    """The running statistics of an extracted route, by their names in its SN-Net."""
    pairs = zip(model.norms_of(cfg_id), batch_norms(net), strict=True)
    return {f"{name}.{kind}": getattr(norm, kind) for name, norm in pairs for kind in ("running_mean", "running_var")}


@pytest.mark.full  # classifiers of low precision are quick in the tests of flags
def test_networks_of_low_precision_are_judged_in_it(trained):
    """Also on images that are larger than a window, which are resized."""
    folder, command = trained
    flags = ["--experiment", "low", "--epochs", "1", "--model-dtype", "bfloat16", "--img-size", "32"]
    assert main([*command, *flags]) == 0
    assert main([*command, *flags, "--eval", "--resume", str(folder / "low/last.pth.tar")]) == 0
    assert all(row["images"] == 3 for row in read_rows(folder / "low/stitches_res.txt"))
    assert (folder / "low/examples.png").stat().st_size > 1000


@pytest.mark.full
def test_an_export_has_them_too(trained, judged):
    folder, _ = trained
    row = judged["judged"][-1]
    flags = ["-c", str(folder / "judged/eval_args.yaml"), "--resume", str(folder / "trained/last.pth.tar")]
    wanted = ["--cfg-id", str(row["cfg_id"]), "-o", str(folder / "one.safetensors")]
    assert main(["export", *flags, *wanted]) == 0
    norms = batch_norms(load_stitch(folder / "one.safetensors"))
    kept = load_file(folder / "judged/stitches_res.statistics.safetensors")
    means = [value for name, value in kept.items() if name.startswith(f"{row['cfg_id']}.") and name.endswith("mean")]
    assert norms
    assert all(any(torch.equal(norm.running_mean, mean) for mean in means) for norm in norms)
