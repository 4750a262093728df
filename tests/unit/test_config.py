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
    assert config.make_rule() == SlidingWindow(kernel_size=2, stride=1, nearest=True)
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
    assert config.make_rule() == SlidingWindow(kernel_size=3, stride=2, nearest=False)
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
        "recalibrate_bn": 0,
        "sampler": "uniform",
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
        ({"anchors": TWO[:1]}, "its length must be at least 2"),
        ({"anchors": TWO, "stages": [2, 1]}, r"stages: \[2, 1\] are not stages in ascending order"),
        ({}, "anchors is missing"),
        ({"anchors": "deit"}, "list"),
        ([], "JSON object"),
        ({"anchors": TWO, "stitch_stride": 0}, "at least 1"),
        ({"anchors": TWO, "stitch_stride": "1"}, "line 6: stitch_stride is '1'; it must be a whole number"),
        ({"anchors": TWO, "stitch_kernel_size": True}, "a whole number"),
        ({"anchors": TWO, "nearest_stitching": 1}, "true or false"),
        ({"anchors": [*TWO, 3]}, r"anchors\[2\] is 3; it must be settings by name"),
        ({"anchors": [*TWO, {"label": "x"}]}, r"anchors\[2\].name is missing"),
        ({"anchors": [*TWO, {"name": "x", "kwarg": {}}]}, "did you mean 'kwargs'"),
        ({"anchors": [*TWO, {"name": "x", "kwargs": 3}]}, r"anchors\[2\].kwargs is 3"),
        ({"anchors": [*TWO, {"name": "x", "label": 3}]}, r"anchors\[2\].label is 3; it must be text"),
        ({"anchors": [*TWO, {"name": "x", "checkpoint": 3}]}, r"anchors\[2\].checkpoint is 3; it must be text"),
        ({"anchors": [*TWO, {"name": "x", "kwargs": {"pretrained": True}}]}, "choose weights by checkpoint"),
        ({"anchors": TWO, "data_set": "CIFAR"}, "is IMNET"),
        ({"anchors": TWO, "recipe": {"epoch": 3}}, "recipe.epoch: .* did you mean 'epochs'"),
        ({"anchors": TWO, "num_workers": -1}, "num_workers is -1; it must be at least 0"),
        ({"anchors": TWO, "lr": float("nan")}, "NaN; JSON allows only finite numbers"),
    ],
)
def test_mistakes_are_named(content, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content, indent="\t"))
    with pytest.raises(InputError, match=message) as error:
        StitchConfig.load(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_missing_or_not_json_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        StitchConfig.load(tmp_path / "missing.json")
    (tmp_path / "bad.json").write_text("{\n'anchors': ")
    with pytest.raises(InputError, match="line 2: invalid JSON"):
        StitchConfig.load(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"anchors": ["a", "b"],\n "recipe": {"epochs": 1,\n "epochs": 2}}',
            "line 3: duplicate key recipe.epochs, which is also in line 2",
        ),
        ('{"anchors": ["a", "b"],\n "stitch_stride": 1e999}', "1e999; JSON allows only finite numbers"),
        ("[" * 100_000, "config.json': invalid JSON: "),
        ('{"anchors": ["a", "b"], "stitch_stride": ' + 5000 * "9" + "}", "config.json': invalid JSON: "),
    ],
)
def test_json_that_could_be_misread_is_refused(text, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        StitchConfig.load(path)
    assert "\n" not in str(error.value)


def test_a_configuration_may_be_yaml_and_name_its_schema(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f'"$schema": x\nanchors: {TWO}\nrecipe: {{lr: 1e-3}}\n')
    assert StitchConfig.load(path).recipe == {"lr": 1e-3}
    path.with_suffix(".json").write_text(json.dumps({"$schema": "x", "anchors": TWO, "source": "\\ \U0001f9f5"}))
    config = StitchConfig.load(path.with_suffix(".json"))
    assert [anchor.name for anchor in config.anchors] == TWO
    assert config.source == "\\ \U0001f9f5"


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (lambda: StitchConfig(anchors=("a",)), "StitchConfig.anchors is .*; its length must be at least 2"),
        (
            lambda: StitchConfig(("a", "b"), ancors=()),
            "StitchConfig.ancors: unknown key 'ancors'; did you mean 'anchors'",
        ),
        (lambda: StitchConfig(("a", "b"), stitch_stride=0), "StitchConfig.stitch_stride is 0; it must be at least 1"),
        (lambda: AnchorSpec(name="a", kwargs={"cache_dir": "/x"}), "AnchorSpec.kwargs is .* sets cache_dir"),
        (AnchorSpec, "AnchorSpec.name is missing; add it"),
    ],
)
def test_mistakes_in_python_are_named_in_one_line(create, message):
    with pytest.raises(InputError, match=message) as caught:
        create()
    assert "\n" not in str(caught.value)


def test_allowed_keys_are_those_that_a_file_may_have():
    with pytest.raises(InputError, match="unknown key 'further_keys'; ") as caught:
        AnchorSpec.parse({"name": "a", "further_keys": ()})
    assert "must be" not in str(caught.value)
    with pytest.raises(InputError, match=r"allowed: name, label, kwargs, checkpoint$"):
        AnchorSpec.parse({"name": "a", "zzzz": 1})
