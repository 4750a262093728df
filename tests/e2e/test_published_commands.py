"""The published commands, word for word except for the path, the epochs, the batch and the number of processes.

timm fetches pretrained weights from the hub; here a cache of the hub with random weights stands in for its network.
"""

import json
import shlex
from functools import partial

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from timm.models import get_pretrained_cfg

from stitchkit.cli import main
from stitchkit.data.scenes import CLASSES, write_scenes
from stitchkit.measure.ledger import read_rows
from tests.distributed.forks import end, start
from tests.support import ROOT, launch, write_images

PUBLISHED = (
    "-b {batch} --stitch_config configs/{name}.json --sched cosine --epochs 1 --lr 0.05 --amp --remode pixel "
    "--reprob 0.6 --aa rand-m9-mstd0.5-inc1 --resplit --split-bn -j 1 --dist-bn reduce"
)
ANCHORS = (
    *("resnet18.tv_in1k", "resnet50.a1_in1k", "swin_tiny_patch4_window7_224.ms_in1k"),
    *("deit3_small_patch16_224.fb_in22k_ft_in1k", "deit3_base_patch16_224.fb_in22k_ft_in1k"),
)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """What the hub's client finds in its cache, under the names that timm asks for."""
    home = tmp_path_factory.mktemp("hub")
    for name in ANCHORS:
        folder = home / "hub" / f"models--{get_pretrained_cfg(name).hf_hub_id.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs/main").write_text("0" * 40)
        (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
        save_file(timm.create_model(name).state_dict(), folder / "snapshots" / ("0" * 40) / "model.safetensors")
    return home


def use(_, home):
    """Let a process that has loaded the hub's client find only this cache."""
    constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE = str(home / "hub"), True


@pytest.fixture(scope="module")
def few_images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("few"), train=4, validation=1)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "stitches", "launched"), [("resnet18_swin_ti", 8, True), ("resnet18_resnet50", 10, False)]
)
def test_a_published_command_trains_and_evaluates(name, stitches, launched, few_images, hub, tmp_path):
    """One of the two as a user runs it; the other without a launcher, in less time."""
    command = [few_images, *shlex.split(PUBLISHED.format(name=name, batch=4)), "--output", tmp_path]
    if launched:
        trained = launch(2, *command, HF_HOME=str(hub), HF_HUB_OFFLINE="1")
        assert trained.returncode == 0, trained.stderr
        said = trained.stdout
    else:
        output = tmp_path / "said"
        assert end(start(["train", *command], ranks=2, first=partial(use, home=hub), said=output), limit=300) == [0, 0]
        said = output.read_text()
    assert "teacher 'regnety_160.deit_in1k' knows 1000 classes, the data have 4" in said
    weights = tmp_path / name / "last.pth.tar"
    assert end(start(["train", *command, "--resume", weights, "--eval"]), limit=300) == [0]
    rows = read_rows(tmp_path / name / "stitches_res.txt")
    assert [row["cfg_id"] for row in rows] == list(range(stitches))
    assert {row["images"] for row in rows} == {4}


@pytest.mark.full
def test_the_recipe_of_snnetv2_trains_and_evaluates_small_anchors(images, tmp_path):
    """The published configuration as it is, but for the size of its anchors, the path, the epochs and the batch."""
    content = json.loads((ROOT / "configs/deit3_s_l.json").read_text())
    size = {"img_size": 32, "patch_size": 8, "num_heads": 2}
    content["anchors"] = [
        {"name": name, "kwargs": {**size, "embed_dim": 16 * number, "depth": 4 * number}}
        for number, name in enumerate(content["anchors"], start=1)
    ]
    config = tmp_path / "small.json"
    config.write_text(json.dumps(content))
    command = ["train", images, "--stitch_config", config, "-b", "8", "--epochs", "2", "--output", tmp_path]
    command += ["--no-pretrained", "--device", "cpu", "-j", "0"]
    assert main([*map(str, command)]) == 0
    assert "8 steps, lamb, learning rate 3e-05" in (tmp_path / "small/log.txt").read_text()
    weights = tmp_path / "small/last.pth.tar"
    assert main([*map(str, command), "--eval", "--resume", str(weights)]) == 0
    rows = read_rows(tmp_path / "small/stitches_res.txt")
    assert [row["cfg_id"] for row in rows] == [*range(5), *range(6, 15)], "four blocks, so it is 5 that is left out"
    assert {row["images"] for row in rows} == {20}


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "size", "words", "metric"),
    [
        ("ade20k_deit3_s_l", [32, 32], "4 steps, momentum, learning rate 0.01", "miou"),
        ("nyuv2_deit3_b_l", [32, 48], "4 steps, adamw, learning rate 2e-05", "abs_rel"),
    ],
)
def test_the_recipes_for_dense_prediction_train_and_evaluate_small_anchors(name, size, words, metric, tmp_path):
    """As published, but for the size of anchors, crops and windows, the levels, the scenes and the epochs."""
    write_scenes(tmp_path / "scenes", {"train": 8, "validation": 3, "test": 1})
    content = json.loads((ROOT / f"configs/{name}.json").read_text())
    kwargs = {"img_size": size, "patch_size": 8, "num_heads": 2}
    content["anchors"] = [
        {**anchor, "kwargs": {**kwargs, "embed_dim": 16 * number, "depth": 4 * number}}
        for number, anchor in enumerate(content["anchors"], start=1)
    ]
    content["dense"]["levels"] = [1, 3, 5, 7]
    if "window_stride" in content["recipe"]:  # in pixels; windows are as large as crops
        content["recipe"]["window_stride"] = 21
    config = tmp_path / "small.json"
    config.write_text(json.dumps(content))
    command = ["train", tmp_path / "scenes", "--stitch_config", config, "--epochs", "2", "--output", tmp_path]
    command += ["--no-pretrained", "--device", "cpu", "-j", "0"]
    command += ["--num-classes", len(CLASSES)] if metric == "miou" else []
    assert main([*map(str, command)]) == 0
    assert words in (tmp_path / "small/log.txt").read_text()
    weights = tmp_path / "small/last.pth.tar"
    assert main([*map(str, command), "--eval", "--resume", str(weights)]) == 0
    rows = read_rows(tmp_path / "small/stitches_res.txt")
    assert [row["cfg_id"] for row in rows] == [*range(5), *range(6, 15)]
    assert {row["images"] for row in rows} == {3}
    assert all(row[metric] >= 0 for row in rows)


@pytest.mark.full
def test_the_published_command_of_snnetv2_trains_and_evaluates(hub, tmp_path):
    """Its configuration of the smallest anchors at their size; the images are a few, and the optimizer is LAMB."""
    images = write_images(tmp_path / "images", train=2, validation=1)
    command = [images, "--stitch_config", "configs/deit3_s_b.json", "-b", "2", "--epochs", "1"]
    options = ["--output", tmp_path, "--device", "cpu"]
    output = tmp_path / "said"
    assert end(start(["train", *command, *options], first=partial(use, home=hub), said=output), limit=900) == [0]
    assert "1 epoch of 4 steps, lamb, learning rate 3e-05" in output.read_text()
    weights = tmp_path / "deit3_s_b/last.pth.tar"
    some = ["--eval", "--resume", weights, "--eval-stitches", "0,2,24,79-80"]
    assert end(start(["train", *command, *options, *some]), limit=900) == [0]
    assert [row["cfg_id"] for row in read_rows(tmp_path / "deit3_s_b/stitches_res.txt")] == [0, 2, 24, 79, 80]
    saved = torch.load(weights, weights_only=True)["state_dict"]
    # Four steps at the start of the warm-up: what is trained has moved, the fitted maps have not.
    assert saved["stitch_layers.0.11.transform.lora_B"].count_nonzero() == 0, "no route of this space has the layer"
    trained = [name for name, value in saved.items() if name.endswith("lora_B") and value.count_nonzero()]
    assert trained
