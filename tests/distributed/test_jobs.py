"""Law 9 for jobs, with real processes: two ranks equal one with twice the batch; every image counts once."""

import pandas as pd
import pytest
import torch
import yaml

from stitchkit.cli import main
from tests.distributed.ranks import run_on_two_ranks
from tests.support import weights, write_images


def test_law_9_a_job_on_two_ranks_equals_one_with_twice_the_batch(tmp_path):
    images = write_images(tmp_path / "odd", train=16, validation=4, classes=4)
    (images / "validation/class0/extra.png").write_bytes((images / "validation/class1/0.png").read_bytes())
    piece = {"model_name": "resnet18", "layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "frozen": "statistics"}
    piece |= {"block_input": "x", "block_output": "layer2", "in_format": "img", "out_format": "img"}
    # Batch norms that train see only the images of their rank; this block has none.
    block = {"ResNetBasicBlock": {"in_channels": 8, "out_channels": 32, "norm_type": "gn", "init_identity": False}}
    config = {
        "assembly": [{"Subnet": piece}, block],
        "head": {"ClassifierHead": {}},
        "workers": 0,
        "device": "cpu",
        "save_checkpoints": True,
        "checkpoint_initial_model": True,
        "train_config": {
            "dataset": str(images),
            "epochs": 2,
            "optimizer": "SGD",
            "optimizer_args": {"lr": 0.1},
            "data_preprocessing": {"image_size": 32, "random_resize_scale": [1, 1]},
        },
    }
    path = tmp_path / "job.yml"
    path.write_text(yaml.safe_dump(config))
    flags = ["job", "-c", path, "--no-pretrained", "-o"]
    assert main([*map(str, [*flags, tmp_path / "one", "-b", "16"])]) == 0
    run_on_two_ranks([[*flags, tmp_path / "two", "-b", "8"]])
    one, two = (weights(tmp_path / name / "checkpoint.pth") for name in ("one", "two"))
    start = weights(tmp_path / "two/model-0.pth")
    assert any((two[key] - start[key]).abs().max() > 1e-3 for key in two), "training moves the weights"
    for key, value in two.items():
        torch.testing.assert_close(value, one[key], rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
        if key.startswith("parts.0."):
            assert torch.equal(value, start[key]), f"{key} is frozen"
    rows = [pd.read_pickle(tmp_path / name / "result.pkl") for name in ("one", "two")]
    for column in (
        f"Overall/{images.name}/Test Accuracy",
        f"Overall/Train {images.name}/Accuracy",
        "Overall/Train Loss",
    ):
        assert rows[0][column].tolist() == pytest.approx(rows[1][column].tolist(), rel=1e-4, nan_ok=True), column
    accuracy = rows[1][f"Overall/{images.name}/Test Accuracy"] * 17
    assert accuracy.tolist() == pytest.approx(accuracy.round().tolist())
