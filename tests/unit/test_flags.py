"""From flags, YAML and stitch configuration to a recipe."""

import argparse
import json

import pytest

from stitchkit.errors import InputError
from stitchkit.settings.dense_recipe import DenseSpec
from stitchkit.settings.files import settings_text
from stitchkit.settings.flags import add_flags, resolve
from stitchkit.settings.recipe import Recipe
from tests.support import pico_config

REQUIRED = """
--stitch_config --model --pretrained --initial-checkpoint --resume --eval --num-classes --img-size
-b -vb -j --opt --opt-eps --opt-betas --momentum --weight-decay --clip-grad --clip-mode --sched --lr
--warmup-lr --min-lr --epochs --warmup-epochs --cooldown-epochs --smoothing --mixup --cutmix --aa
--reprob --remode --recount --drop --drop-path --amp --amp-dtype --grad-accum-steps
--grad-checkpointing --channels-last --model-ema --model-ema-decay --seed --log-interval
--checkpoint-hist --output --experiment -c
"""


def parse(*arguments: str) -> Recipe:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return resolve(vars(parser.parse_args(arguments)))[0]


@pytest.mark.parametrize(
    ("flags", "folder"),
    [
        ([], "outputs/mine"),
        (["--model", "vit"], "outputs/mine"),
        (["--model", "swin"], "outputs/swin"),
        (["--stitch_config", "CONFIG"], "outputs/config"),
        (["--model", "swin", "--experiment", "new"], "outputs/new"),
    ],
)
def test_another_network_does_not_go_into_the_folder_that_a_file_names(flags, folder, config, tmp_path):
    (tmp_path / "args.yaml").write_text("data_dir: d\nmodel: vit\nexperiment: mine\n")
    flags = [config if flag == "CONFIG" else flag for flag in flags]
    assert str(parse("-c", str(tmp_path / "args.yaml"), *flags).folder) == folder
    (tmp_path / "args.yaml").write_text("experiment: mine\n")
    assert str(parse("d", "-c", str(tmp_path / "args.yaml"), "--model", "swin").folder) == "outputs/mine"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(pico_config(recipe={"epochs": 7, "opt": "adamw", "lr": 0.5, "batch_size": 4})))
    return str(path)


def test_the_flags_of_timm_are_there():
    parser = argparse.ArgumentParser()
    add_flags(parser)
    known = {name for action in parser._actions for name in action.option_strings}
    assert set(REQUIRED.split()) <= known


def test_flag_beats_yaml_beats_stitch_configuration_beats_default(config, tmp_path):
    yaml = tmp_path / "more.yaml"
    yaml.write_text("epochs: 8\nlr: 0.25\n")
    recipe = parse("data", "--stitch_config", config, "-c", str(yaml), "--epochs", "9")
    assert recipe.schedule.epochs == 9
    assert recipe.optim.lr == 0.25
    assert recipe.optim.opt == "adamw"
    assert recipe.optim.momentum == 0.9


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recipe": {"epochs": 7, "opt": "lamb", "mixup": 0.8}}, "is for classification, not for segmentation"),
        ({"dense": {"task": "depth", "head": "linear"}, "recipe": {"lr": 1}}, "is for depth, not for segmentation"),
        ({"recipe": {}}, "does not say how to train"),
        (
            {"dense": {"task": "segmentation", "head": "linear"}, "recipe": {"batch_size": 4}},
            "does not say how to train",
        ),
    ],
)
def test_dense_prediction_without_a_recipe_has_that_of_anchors(changes, said, tmp_path, caplog):
    caplog.set_level("INFO")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(pico_config(**changes)))
    flags = ["data", "--task", "segmentation", "--weight-decay", "0.1"]
    alone, found = parse(*flags, "--anchors", "a,b"), parse(*flags, "--stitch_config", str(path))
    assert (found.optim, found.schedule, found.augment) == (alone.optim, alone.schedule, alone.augment)
    assert (found.optim.opt, found.optim.weight_decay, found.schedule.epochs) == ("adamw", 0.1, 50)
    assert found.data.batch_size == changes["recipe"].get("batch_size", 128)
    (line,) = caplog.messages
    assert f"config.json' {said}, so training starts from that of --anchors: adamw, learning rate 5e-05 for" in line


@pytest.mark.parametrize("dense", [{}, {"dense": {"task": "segmentation", "head": "linear"}}])
def test_weights_of_anchors_do_not_depend_on_the_task(dense, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(pico_config(**dense, recipe={"pretrained": False, "epochs": 7})))
    flags = ["data", "--task", "depth", "--stitch_config", str(path)]
    recipe = parse(*flags)
    assert (recipe.model.pretrained, recipe.schedule.epochs) == (False, 50)
    assert parse(*flags, "--pretrained").model.pretrained


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--max-depth 5", "--max-depth is for dense prediction; add --task depth"),
        ("--zoom 1 2", "--zoom is for dense prediction; add --task segmentation"),
        ("--task segmentation --max-depth 5", "--max-depth 5.0 has no effect on --task segmentation; omit it"),
        ("--task depth --num-classes 5", "--num-classes 5 has no effect on --task depth; omit it"),
        ("--task depth --zoom 1 2", "--zoom [1.0, 2.0] has no effect on --task depth"),
        ("--task segmentation --zoom 1 2 --no-aug", "--no-aug leaves no random scales, so --zoom has no effect"),
        ("--task depth --eval-metric loss", "--eval-metric loss does not apply to --task"),
        ("--task segmentation --gp avg", "--gp avg does not apply to --task segmentation"),
        ("--task depth --eval --resume a --eval-memory 9", "--eval-memory 9 does not apply to"),
        (
            "--task depth --input-key image",
            "--input-key image is a column of a data set of Hugging Face, and 'data' is",
        ),
        ("--task segmentation --target-key mask", "is a folder; omit it, or give --dataset hfds/NAME"),
    ],
)
def test_settings_that_dense_prediction_has_no_use_for(flags, said, config):
    with pytest.raises(InputError) as refusal:
        parse("data", "--stitch_config", config, *flags.split())
    assert said in str(refusal.value)


def test_settings_that_dense_prediction_uses(tmp_path):
    parse(
        "--task", "depth", "--anchors", "a,b", "--max-depth", "80", "--dataset", "hfds/nyu", "--input-key", "rgb", "d"
    )
    path = tmp_path / "config.json"
    dense = {"task": "segmentation", "head": "linear"}
    path.write_text(json.dumps(pico_config(dense=dense, recipe={"zoom": [0.9, 1.2], "num_classes": 3})))
    assert parse("data", "--stitch_config", str(path), "--no-aug").dense.zoom == [0.9, 1.2]


@pytest.mark.parametrize(("task", "head"), [("segmentation", "setr"), ("depth", "dpt")])
def test_the_head_of_a_configuration_has_the_default_of_the_flag(task, head, tmp_path, config):
    path = tmp_path / "dense.json"
    path.write_text(json.dumps(pico_config(dense={"task": task})))
    _, found = resolve({"data_dir": "data", "stitch_config": str(path)})
    _, flagged = resolve({"data_dir": "data", "stitch_config": config, "task": task})
    assert found.dense == flagged.dense == DenseSpec(task, head)
    assert found.to_dict()["dense"]["head"] == head


def test_dense_prediction_with_a_recipe_keeps_it(tmp_path, caplog):
    caplog.set_level("INFO")
    path = tmp_path / "config.json"
    dense = {"task": "segmentation", "head": "linear"}
    path.write_text(json.dumps(pico_config(dense=dense, recipe={"epochs": 7, "lr": 0.5})))
    found = parse("data", "--stitch_config", str(path))
    assert (found.optim.opt, found.schedule.epochs, found.schedule.warmup_lr) == ("sgd", 7, 1e-5)
    assert not caplog.messages


def test_a_flag_takes_back_what_a_file_switches_on(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(pico_config(recipe={"amp": True, "ls_init": False, "lr": 0.5})))
    assert parse("data", "--stitch_config", str(path)).optim.amp
    assert not parse("data", "--stitch_config", str(path), "--no-amp").optim.amp
    assert parse("data", "--stitch_config", str(path), "--ls-init").stitch.ls_init
    # A base rate is as good a learning rate as a fixed one.
    assert parse("data", "--stitch_config", str(path), "--lr-base", "1e-4").optim.lr is None


def test_a_settings_file_that_is_not_text_is_named(config, tmp_path):
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff")
    with pytest.raises(InputError, match="invalid YAML"):
        parse("data", "--stitch_config", config, "-c", str(tmp_path / "image.png"))


def test_the_saved_settings_mean_the_same_again(config, tmp_path):
    """Also names that look like numbers in YAML 1.2, and not in what PyYAML reads and writes by itself."""
    numbers = ["--scale", "0.5", "1", "--opt-betas", "0.9", "0.99"]
    first = parse(
        "data", "--stitch_config", config, *numbers, "--amp", "--experiment", "1e5", "--wandb-tags", "0x1", "on"
    )
    saved = tmp_path / "args.yaml"
    saved.write_text(settings_text(first.for_files()))
    assert parse("-c", str(saved)) == first


def test_data_is_a_place_or_a_flag(config):
    assert parse("here", "--stitch_config", config).data.data_dir == "here"
    assert parse("--data-dir", "here", "--stitch_config", config).data.data_dir == "here"
    assert parse("--stitch_config", config, "--dataset", "hfds/x").data.dataset == "hfds/x"


def test_model_arguments_are_literals():
    recipe = parse("data", "--model", "vit", "--model-kwargs", "depth=3", "class_token=False", "global_pool=avg")
    assert recipe.model.model_kwargs == {"depth": 3, "class_token": False, "global_pool": "avg"}


def test_pretrained_is_on_for_anchors_and_off_for_a_single_model(config):
    assert parse("data", "--stitch_config", config).model.pretrained
    assert not parse("data", "--stitch_config", config, "--no-pretrained").model.pretrained
    assert not parse("data", "--model", "vit").model.pretrained
    assert parse("data", "--model", "vit", "--pretrained").model.pretrained


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("epoch: 3", "did you mean 'epochs'"),
        ("image_size: 32", "line 1: image_size: unknown setting 'image_size'; did you mean 'img_size'"),
        (
            "lr: 1\ntrain_config: {epochs: 2}",
            "line 2: train_config: this file is a job; use stitchkit job -c FILE",
        ),
        ("stages: []\nassembly: []", "line 1: stages: this file is a sweep \\(gaps\\); use stitchkit sweep -c FILE"),
        ("program: run.py", "this file is a sweep \\(search\\); use stitchkit sweep -c FILE"),
        ("ft_configs: []", "this file is a sweep"),
        ("datasets: [cifar10]", "this file is a sweep"),
        ("stages: [1]\nanchors: [a, b]", "a stitch configuration; use stitchkit train --stitch-config FILE"),
        ("MODEL: x", "MODEL: this file is in the published Swin's own format; use stitchkit train --stitch-config"),
        ("Modell: x", "unknown setting 'Modell'"),
        ("epochs: three", "line 1: epochs is 'three'; it must be a whole number"),
        ("epochs: 2.5", "epochs is 2.5; it must be a whole number"),
        ("amp: 1", "amp is 1; it must be true or false"),
        ("scale: 3", "scale is 3; it must be a list"),
        ("remode: blue", "allowed"),
        ("- epochs", "name: value"),
        ("epochs: [", "invalid YAML"),
        ("batch_size: 0", "line 1: batch_size is 0; it must be at least 1"),
        ("epochs: true", "epochs is True; it must be a whole number"),
        ("scale: null", "scale is None; it must be a list"),
        ("scale: [a, b]", r"scale\[0\] is 'a'; it must be a number"),
        ("lr: .nan", "lr is nan; it must be finite"),
        ("epochs: 2\nlr: 1\nepochs: 3", "line 3: duplicate key epochs, which is also in line 1"),
        ("seed: 2026-13-45", "invalid YAML"),
        ("seed: " + 5000 * "9", "invalid YAML"),
        ("scale: &a [*a, 1]", "line 1: an alias contains itself"),
    ],
)
def test_mistakes_in_yaml_are_named(line, message, config, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(line + "\n")
    with pytest.raises(InputError, match=message):
        parse("data", "--stitch_config", config, "-c", str(path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data"], "one of --stitch-config"),
        (["--model", "vit"], "no data"),
        (["data", "--model", "vit", "--epochs", "0"], "at least 1"),
        (["data", "--model", "vit", "--cooldown-epochs", "-3"], "at least 0"),
        (["data", "--model", "vit", "--scale", "0.5"], "--scale is .*; its length must be at least 2"),
        (["data", "--model", "vit", "--reprob", "2"], "--reprob is 2.0; it must be at most 1"),
        (["data", "--model", "vit", "--eval"], "--eval needs weights"),
        (["data", "--model", "vit", "--mixup", "0.8", "-b", "3"], "even"),
        (["data", "--model", "vit", "--distillation-type", "hard"], "--teacher-model"),
        (
            ["data", "--model", "vit", "--input-img-mode", "RGP"],
            "--input-img-mode: unknown value .*; did you mean 'RGB'",
        ),
        (["data", "--model", "vit", "--in-chans", "1", "--input-img-mode", "F"], "unknown value .*'F'"),
        (["data", "--model", "vit", "--background", "#ffffff00"], "no opaque colour; give a name or #rrggbb"),
        (
            ["data", "--model", "vit", "--input-img-mode", "L"],
            "1 channel, and the network takes 3; add --in-chans",
        ),
        (
            ["data", "--model", "vit", "--in-chans", "1", "--input-img-mode", "RGB"],
            "3 channels, .* takes 1",
        ),
    ],
)
def test_settings_must_make_sense_together(arguments, message):
    with pytest.raises(InputError, match=message):
        parse(*arguments)


def test_evaluating_needs_weights(config):
    with pytest.raises(InputError, match="--resume"):
        parse("data", "--stitch_config", config, "--eval")


def test_a_mistake_in_the_recipe_of_a_configuration_is_named(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(pico_config(recipe={"bath_size": 4})))
    with pytest.raises(InputError, match="did you mean 'batch_size'"):
        parse("data", "--stitch_config", str(path))


def test_a_key_given_twice_is_an_error_in_every_format(config, tmp_path):
    (tmp_path / "twice.json").write_text('{"epochs": 1, "\\u0065pochs": 2}')
    (tmp_path / "merged.yaml").write_text("scale: &a {x: 1}\nratio: {<<: *a, <<: *a}\n")
    for name in ("twice.json", "merged.yaml"):
        with pytest.raises(InputError, match=r"duplicate key (epochs|ratio\.<<)"):
            parse("data", "--stitch_config", config, "-c", str(tmp_path / name))
    with pytest.raises(InputError, match="--model-kwargs has depth twice"):
        parse("data", "--model", "vit", "--model-kwargs", "depth=3", "depth=4")


@pytest.mark.parametrize(
    "content", ["key: [hunter2", "hunter2: 1\nhunter2: 2", "token: hunter2", "hunter2", "- hunter2", "!hunter2 1"]
)
def test_a_file_included_from_elsewhere_is_not_quoted(content, tmp_path):
    (tmp_path / "secret.yml").write_text(content)
    (tmp_path / "mine").mkdir()
    path = tmp_path / "mine/args.yaml"
    for lines in ("epochs: !include ../secret.yml", "!include ../secret.yml", f"lr: !include {tmp_path}/secret.yml"):
        path.write_text(lines)
        with pytest.raises(InputError) as refused:
            parse("data", "--model", "vit", "-c", str(path))
        assert "hunter2" not in str(refused.value)
        assert "secret.yml" in str(refused.value) or "args.yaml" in str(refused.value)


def test_a_file_included_from_beside_is_quoted(tmp_path):
    (tmp_path / "more.yml").write_text("[1, two]")
    (tmp_path / "args.yaml").write_text("scale: !include more.yml")
    with pytest.raises(InputError, match=r"scale\[1\] is 'two'; it must be a number"):
        parse("data", "--model", "vit", "-c", str(tmp_path / "args.yaml"))


def test_own_values_are_quoted_beside_an_include_from_elsewhere(tmp_path):
    (tmp_path / "secret.yml").write_text("[0.5, 1]")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/args.yaml").write_text("scale: !include ../secret.yml\nepochs: three")
    with pytest.raises(InputError, match=r"line 2: epochs is 'three'; it must be a whole number"):
        parse("data", "--model", "vit", "-c", str(tmp_path / "mine/args.yaml"))


def test_settings_given_as_a_stitch_configuration_are_recognised(tmp_path):
    (tmp_path / "args.yaml").write_text("epochs: 3\nlr: 0.1\nstitch_config: mine.json\n")
    with pytest.raises(InputError, match=r"args.yaml' holds settings of a run, for -c; .* the anchors, 'mine.json'"):
        parse("data", "--stitch_config", str(tmp_path / "args.yaml"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--epochs", "3"], "--epochs 3 ends within the warm-up (--warmup-epochs 5); lower"),
        (["--epochs", "5", "--warmup-epochs", "5"], "--epochs 5 ends within"),
        (["--epochs", "3", "--warmup-epochs", "2"], ""),
        (["--epochs", "3", "--warmup-prefix"], ""),
        (["--epochs", "3", "--sched", "none"], ""),
        (["--amp-dtype", "bfloat16"], "--amp-dtype bfloat16 has no effect without --amp"),
        (["--amp-dtype", "bfloat16", "--amp"], ""),
    ],
)
def test_settings_that_fall_short_of_what_they_seem_to_ask_for_are_reported(flags, said, caplog):
    parse("data", "--model", "vit", *flags)
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)
