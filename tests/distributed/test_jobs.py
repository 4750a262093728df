"""Law 9 for jobs, with real processes: two ranks equal one with twice the batch; every image counts once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from stitchkit.cli import main
from tests.distributed.ranks import run_on_two_ranks
from tests.jobs import vit, write_job
from tests.support import write_images, write_scene_pairs


def job(train: Mapping[str, object], *last: object) -> dict[str, Any]:
    """A job whose trained parts have no batch norms, which see only the images of their rank."""
    piece = {"model_name": "resnet18", "layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "frozen": "statistics"}
    piece |= {"block_input": "x", "block_output": "layer2", "in_format": "img", "out_format": "img"}
    block = {"ResNetBasicBlock": {"in_channels": 8, "out_channels": 32, "norm_type": "gn", "init_identity": False}}
    how = {"image_size": 32, "random_resize_scale": [1, 1]}
    optimizer = {"optimizer": "SGD", "optimizer_args": {"lr": 0.1}}
    saved = {"save_checkpoints": True, "checkpoint_initial_model": True, "workers": 0, "device": "cpu"}
    train = {"epochs": 2, **optimizer, "data_preprocessing": how, **train}
    return {"assembly": [{"Subnet": piece}, block, *last], **saved, "train_config": train}


def run_on_one_and_two_ranks(config: Mapping[str, object], folder: Path, columns: list[str]) -> list[dict[str, Any]]:
    """The last checkpoints of a job on one rank and, with half the batch, on two, which end alike."""
    flags = ["job", "-c", write_job(folder, config), "--no-pretrained", "-o"]
    assert main([*map(str, [*flags, folder / "one", "-b", "16"])]) == 0
    run_on_two_ranks([[*flags, folder / "two", "-b", "8"]])
    one, two, start = (
        torch.load(folder / name, weights_only=True)
        for name in ("one/checkpoint.pth", "two/checkpoint.pth", "two/model-0.pth")
    )
    weights = two["state_dict"]
    assert any((weights[key] - start["state_dict"][key]).abs().max() > 1e-3 for key in weights), "training moves them"
    for key, value in weights.items():
        about = f"{key}: {{}}".format
        torch.testing.assert_close(value, one["state_dict"][key], rtol=1e-4, atol=1e-5, msg=about)
        if key.startswith("parts.0."):
            assert torch.equal(value, start["state_dict"][key]), f"{key} is frozen"
    rows = [pd.read_pickle(folder / name / "result.pkl") for name in ("one", "two")]
    for column in columns:
        assert rows[0][column].tolist() == pytest.approx(rows[1][column].tolist(), rel=1e-4, nan_ok=True), column
    return [one, two]


def test_law_9_a_job_on_two_ranks_equals_one_with_twice_the_batch(tmp_path):
    images = write_images(tmp_path / "odd", train=16, validation=4, classes=4)
    (images / "validation/class0/extra.png").write_bytes((images / "validation/class1/0.png").read_bytes())
    config = job({"dataset": str(images)}) | {"head": {"ClassifierHead": {}}}
    accuracy = "Overall/odd/Test Accuracy"
    run_on_one_and_two_ranks(config, tmp_path, [accuracy, "Overall/Train odd/Accuracy", "Overall/Train Loss"])
    hits = pd.read_pickle(tmp_path / "two/result.pkl")[accuracy] * 17
    assert hits.tolist() == pytest.approx(hits.round().tolist())


@pytest.mark.full
def test_law_9_several_tasks_on_two_ranks_have_the_scales_of_one(tmp_path):
    tasks = []
    for name, train, classes in (("long", 16, 4), ("short", 24, 2)):  # the short one starts over
        tasks.append({"dataset": str(write_images(tmp_path / name, train=train, validation=4, classes=classes))})
    tasks[1] |= {"loss_fn": "cross_entropy", "loss_fn_args": {"label_smoothing": 0.5}}
    heads = [{"ClassifierHead": {"num_classes": classes}} for classes in (4, 2)]
    config = job({"tasks": tasks}, {"ParallelPart": {"agg": "none", "parts": heads}})
    columns = [f"Overall/Train {name}/{figure}" for name in ("long", "short") for figure in ("Main Loss", "Accuracy")]
    one, two = run_on_one_and_two_ranks(config, tmp_path, ["Overall/Train Loss", *columns])
    assert two["loss_scales"] == pytest.approx(one["loss_scales"])
    assert len(set(two["loss_scales"])) == 2


@pytest.mark.full
def test_law_9_classes_and_masks_by_two_tails_of_a_trunk_on_two_ranks(tmp_path):
    write_images(tmp_path / "images", train=8, classes=4)
    write_scene_pairs(tmp_path / "scenes", train=32, validation=5)  # of which the ranks have 3 and 2
    tasks = [{"dataset": str(tmp_path / "images")}, {"dataset": str(tmp_path / "scenes"), "task": "segmentation"}]
    piece = vit("blocks.1", "norm", embed_dim=32, in_format=["bert", 16], out_format="bert")
    tails = [{"Assembly": {"parts": [piece, head]}} for head in ("ClassifierHead", "SegmentationHead")]
    config = job({"tasks": tasks}, {"ParallelPart": {"agg": "none", "parts": tails}})
    columns = ["Overall/Train Loss", "Overall/images/Test Accuracy", "Overall/Train scenes-segmentation/Main Loss"]
    columns += [f"Overall/scenes-segmentation/Test {name}" for name in ("mIoU", "Pixel Accuracy")]
    one, two = run_on_one_and_two_ranks(config, tmp_path, columns)
    assert two["loss_scales"] == pytest.approx(one["loss_scales"])
