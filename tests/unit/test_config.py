"""Stitch configurations: published and own keys, anchors, errors."""

import json

import pytest

from stitchkit.errors import InputError
from stitchkit.routes import SlidingWindow
from stitchkit.settings.stitch_config import AnchorSpec, StitchConfig

TWO = ["deit_tiny_patch16_224.fb_in1k", "deit_small_patch16_224.fb_in1k"]


def test_a_file_with_anchors_alone_is_complete():
    config = StitchConfig.parse({"anchors": TWO})
    assert [anchor.label for anchor in config.anchors] == ["deit_tiny_patch16_224", "deit_small_patch16_224"]
    assert config.rule == SlidingWindow(kernel_size=2, stride=1, nearest=True)
    assert config.stitched_final_norm


def test_the_published_keys_are_read_as_they_are():
    config = StitchConfig.parse(
        {
            "anchors": TWO,
            "batch_size": 128,
            "data_path": "/imagenet",
            "data_set": "IMNET",
            "exp_name": "stitch_deit",
            "input_size": 224,
            "num_workers": 10,
            "lr": 5e-5,
            "warmup_lr": 1e-7,
            "min_lr": 1e-6,
            "epochs": 50,
            "fulltune": True,
            "ls_init": True,
            "nearest_stitching": False,
            "stitch_stride": 2,
            "stitch_kernel_size": 3,
            "stitch_init_bs": 100,
            "distillation_type": "hard",
            "teacher_model": "regnety_160",
        }
    )
    assert config.rule == SlidingWindow(kernel_size=3, stride=2, nearest=False)
    assert config.recipe == {
        "batch_size": 128,
        "data_dir": "/imagenet",
        "dataset": "",
        "experiment": "stitch_deit",
        "img_size": 224,
        "workers": 10,
        "lr_base": 5e-5,
        "lr_base_size": 512,
        "lr_base_scale": "linear",
        "warmup_lr": 1e-7,
        "min_lr": 1e-6,
        "epochs": 50,
        "fulltune": True,
        "ls_init": True,
        "stitch_init_bs": 100,
        "distillation_type": "hard",
        "teacher_model": "regnety_160",
    }


def test_a_configuration_survives_being_saved():
    config = StitchConfig.parse(
        {"anchors": [*TWO, {"name": "vit_base_patch16_224", "label": "b", "kwargs": {"depth": 12}}]}
    )
    assert StitchConfig.parse(config.to_dict()) == config


def test_anchor_objects():
    spec = AnchorSpec.parse(
        {"name": "vit_tiny_patch16_224", "label": "ti", "kwargs": {"depth": 3}, "checkpoint": "x.pth"}
    )
    assert (spec.label, spec.kwargs, spec.checkpoint) == ("ti", {"depth": 3}, "x.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"anchors": TWO, "stitch_strid": 1}, "did you mean 'stitch_stride'"),
        ({"anchors": TWO[:1]}, "at least two"),
        ({}, "at least two"),
        ({"anchors": "deit"}, "list"),
        ([], "JSON object"),
        ({"anchors": TWO, "stitch_stride": 0}, "at least 1"),
        ({"anchors": TWO, "stitch_stride": "1"}, "type int"),
        ({"anchors": TWO, "stitch_kernel_size": True}, "type int"),
        ({"anchors": TWO, "nearest_stitching": 1}, "type bool"),
        ({"anchors": [*TWO, 3]}, "timm model name"),
        ({"anchors": [*TWO, {"label": "x"}]}, "no 'name'"),
        ({"anchors": [*TWO, {"name": "x", "kwarg": {}}]}, "did you mean 'kwargs'"),
        ({"anchors": [*TWO, {"name": "x", "kwargs": 3}]}, "of type"),
        ({"anchors": [*TWO, {"name": "x", "label": 3}]}, "of type"),
        ({"anchors": [*TWO, {"name": "x", "checkpoint": 3}]}, "of type"),
        ({"anchors": [*TWO, {"name": "x", "kwargs": {"pretrained": True}}]}, "given as its checkpoint"),
        ({"anchors": TWO, "data_set": "CIFAR"}, "only IMNET"),
    ],
)
def test_mistakes_are_named(content, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as error:
        StitchConfig.load(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_missing_or_not_json_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        StitchConfig.load(tmp_path / "missing.json")
    (tmp_path / "bad.json").write_text("{'anchors': ")
    with pytest.raises(InputError, match="not JSON"):
        StitchConfig.load(tmp_path / "bad.json")
