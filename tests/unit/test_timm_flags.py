"""timm's command line: the list of its flags, the parser, the refusals and the table in docs/ say the same."""

import argparse
import re
import sys

import pytest
import yaml

from stitchkit.cli import main
from stitchkit.errors import InputError
from stitchkit.settings.by_name import SETTINGS
from stitchkit.settings.flags import add_flags, resolve
from stitchkit.settings.recipe import Recipe
from stitchkit.settings.schema import flag_of
from stitchkit.settings.timm_flags import REFUSED, REMOVED
from tests.support import ROOT, write_config

# timm's launcher of old gives the first to each process; the others are of the released command of SN-Netv2.
UNLISTED = {("--local-rank",), ("--dist-eval",), ("--get-flops",)}

# Our own spellings of timm's flags stand beside them.
OURS = {
    *("--checkpoint-interval", "--data", "--data-path", "--download"),
    *("--learning-rate", "--optimizer", "--scheduler", "--wd"),
}


def parser():
    made = argparse.ArgumentParser(add_help=False)
    add_flags(made)
    return made


def parse(*arguments):
    return resolve(vars(parser().parse_args([str(argument) for argument in arguments])))[0]


def tables():
    """The rows of both tables of the document: flags of timm, and our own."""
    found = []
    for part in (ROOT / "docs/timm_flags.md").read_text().split("\n## "):
        rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| `")]
        found.append({tuple(re.findall("`([^`]+)`", row[0])): row[1:] for row in rows})
    return found


def actions():
    """The parser's flags by their spellings with dashes, switches by the one that turns them on."""
    found = {}
    for action in parser()._actions:
        if action.option_strings and action.option_strings[0] in map(flag_of, REMOVED):
            continue
        off = {name for name in action.option_strings if isinstance(action, argparse.BooleanOptionalAction)}
        off = {name for name in off if name.startswith("--no-")}
        names = {name.replace("_", "-") for name in action.option_strings} - {name.replace("_", "-") for name in off}
        found[frozenset(names or {action.dest})] = action
    return found


def test_the_table_holds_every_flag_of_timm(shared):
    lines = (shared / "timm_train_flags.txt").read_text().splitlines()
    listed = {tuple(line.split()) for line in lines if line and not line.startswith("#")}
    assert len(listed) > 150
    rows = {tuple(name for name in names if name not in OURS) for names in tables()[0]}
    assert rows - listed == UNLISTED
    assert listed <= rows


def test_the_tables_and_the_parser_are_the_same():
    timm, own = tables()
    rows = {frozenset(names): row for names, row in [*timm.items(), *own.items()]}
    known = actions()
    assert rows.keys() == known.keys()
    refused = {flag_of(name): refusal.reason for name, refusal in REFUSED.items()}
    for names, row in rows.items():
        reason = next((refused[name] for name in names if name in refused), None)
        if reason is None:
            assert row in ([known[names].help], ["works", known[names].help])
        else:
            assert row == ["not here", reason]


def test_underscores_are_as_good_as_dashes():
    known = {name for action in parser()._actions for name in action.option_strings}
    assert {"--" + name for name in SETTINGS} <= known
    assert {"--" + name for name in REFUSED} <= known


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_flag_ends_at_once_with_its_reason(name, capsys, tmp_path):
    """Neither the data nor the configuration are there; the reason comes first."""
    for spelling in {flag_of(name), "--" + name, *REFUSED[name].aliases}:
        arguments = ["train", str(tmp_path / "nowhere"), "--stitch_config", "nowhere.json", spelling, "1"]
        assert main(arguments) == 2
        expected = f"stitchkit: error: {flag_of(name)} does not apply to stitching: {REFUSED[name].reason}\n"
        assert capsys.readouterr().err == expected
    assert "; " in REFUSED[name].reason, "it says what to use instead"


def test_waiting_for_a_plateau_ends_at_once(capsys):
    assert main(["train", "nowhere", "--model", "x", "--sched", "plateau"]) == 2
    assert "follow only from the epoch; use --sched cosine" in capsys.readouterr().err


def test_reasons_name_flags_that_exist():
    known = {name for action in parser()._actions for name in action.option_strings}
    for refusal in REFUSED.values():
        assert set(re.findall(r"--[a-z-]+", refusal.reason)) <= known


def test_a_file_that_timm_wrote_is_taken_as_it_is(tmp_path):
    """timm saves all its settings, with empty texts where nothing was given, and null."""
    content = {name: refusal.default for name, refusal in REFUSED.items()}
    content |= {"data": str(tmp_path), "data_dir": None, "model": "resnet50", "resume": "", "experiment": "", "drop": 0}
    content |= {"initial_checkpoint": "", "wandb_resume_id": "", "model_kwargs": {}, "opt_kwargs": {}, "wandb_tags": []}
    content |= {"torchcompile": None, "grayscale_prob": None, "input_size": None, "img_size": None, "pretrained": False}
    path = tmp_path / "args.yaml"
    path.write_text(yaml.safe_dump(content))
    recipe = parse("-c", path)
    assert (recipe.data.data_dir, recipe.model.model, recipe.run.resume) == (str(tmp_path), "resnet50", None)
    config = write_config(tmp_path / "pico.json")
    assert parse("-c", path, "--stitch_config", config).model.model is None, "a flag replaces what it excludes"


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_with_a_refused_value_ends_with_its_reason(name, tmp_path):
    path = tmp_path / "args.yaml"
    path.write_text(yaml.safe_dump({name: "something else"}))
    with pytest.raises(InputError, match=re.escape(REFUSED[name].reason)):
        parse("data", "--model", "x", "-c", path)
    config = write_config(tmp_path / "pico.json", recipe={name: "something else"})
    with pytest.raises(InputError, match=re.escape(REFUSED[name].reason)):
        parse("data", "--stitch_config", config)


@pytest.mark.parametrize("name", REMOVED)
def test_a_removed_flag_is_refused_and_its_default_in_an_old_file_is_not(name, tmp_path, capsys):
    assert main(["train", "data", "--model", "x", flag_of(name), "1"]) == 2
    assert f"stitchkit: error: {flag_of(name)} was removed: {REMOVED[name].reason}\n" in capsys.readouterr().err
    path = tmp_path / "args.yaml"
    path.write_text(yaml.safe_dump({name: REMOVED[name].default}))
    parse("data", "--model", "x", "-c", path)
    path.write_text(yaml.safe_dump({name: "something else"}))
    with pytest.raises(InputError, match=f"{flag_of(name)} was removed"):
        parse("data", "--model", "x", "-c", path)


def test_a_run_with_removed_settings_of_training_is_evaluated_and_not_repeated(tmp_path):
    config, path = write_config(tmp_path / "pico.json"), tmp_path / "args.yaml"
    for content, reason in (
        ({"budgets": "2G,5G"}, "--budgets was removed: its benefit was never measured; omit it"),
        ({"ls_method": "exact"}, "--ls-method was removed: no table shows a gain over the published fit; omit it"),
        ({"preserve": "replay"}, "--preserve replay was removed: studies/samplers shows no gain from it; choose none"),
    ):
        path.write_text(yaml.safe_dump({"data_dir": "d", "stitch_config": str(config), **content}))
        recipe, _ = resolve({"config": str(path), "eval": True, "resume": "last.pth.tar"})
        assert recipe.stitch.way_to_preserve == "none"
        path.write_text(yaml.safe_dump({"data_dir": "d", "stitch_config": str(config), "eval": True, **content}))
        assert resolve({"config": str(path), "resume": "last.pth.tar"})[0].run.eval
        path.write_text(yaml.safe_dump({"data_dir": "d", "stitch_config": str(config), **content}))
        with pytest.raises(InputError, match=re.escape(reason)):
            parse("-c", path)


def test_every_setting_can_come_from_a_file(tmp_path):
    """All defaults through YAML, and other values through the recipe of a stitch configuration."""
    settings = Recipe().for_files() | {"model": "x", "data_dir": "y"}
    path = tmp_path / "all.yaml"
    path.write_text(yaml.safe_dump(settings))
    assert parse("-c", path).for_files() == settings
    changed = {"head_init_bias": -6.9, "lr_noise": [0.4, 0.9], "opt_kwargs": {"fused": True}, "torchcompile": "eager"}
    config = write_config(tmp_path / "pico.json", recipe=changed)
    assert parse("data", "--stitch_config", config).flat().items() >= changed.items()


def test_a_stronger_source_replaces_what_it_excludes(tmp_path):
    config = write_config(tmp_path / "pico.json", recipe={"img_size": 32})
    model = parse("data", "--stitch_config", config, "--input-size", "1", "16", "24").model
    assert (model.channels, model.sides, model.img_size) == (1, (16, 24), None)
    assert parse("data", "--stitch_config", config).model.sides == 32


def test_spellings_and_values_that_are_left_out():
    assert parse("data", "--model", "x", "--torchcompile").model.torchcompile == "inductor"
    assert parse("data", "--model", "x", "--torchcompile", "eager").model.torchcompile == "eager"
    assert parse("data", "--model", "x", "--dr", "0.5").schedule.decay_rate == 0.5
    assert parse("data", "--model", "x", "--drop-connect", "0.3").model.drop_path_rate == 0.3
    assert parse("data", "--model", "x", "--drop-connect", "0.3", "--drop-path", "0.1").model.drop_path_rate == 0.1
    assert parse("data", "--model", "x", "--pretrained-path", "file").model.pretrained


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--img-size 8 --input-size 3 8 8", "cannot be combined"),
        ("--in-chans 3 --input-size 3 8 8", "cannot be combined"),
        ("--bce-sum", "add --bce-loss"),
        ("--jsd-loss", "add --aug-splits with 2 or more"),
        ("--jsd-loss --bce-loss --aug-splits 2", "cannot be combined"),
        ("--torchcompile-mode max-autotune", "add --torchcompile"),
        ("--layer-decay-no-opt-scale 0.1", "add --layer-decay"),
        ("--wandb-resume-id x", "add --resume"),
        ("--split-bn", "add --resplit or --aug-splits"),
        ("--split-bn --resplit -b 3", "it must be even"),
        ("--split-bn --resplit --sync-bn", "cannot be combined"),
        ("--aug-splits 1", "at least 2"),
        ("--aug-splits 2 --mixup 0.8", "keeps one part of a batch clean"),
        ("--aug-splits 2 --no-prefetcher", "cannot be combined"),
        ("--amp --model-dtype bfloat16", "--amp chooses the precision"),
        ("--base-lr-scale 0.1", "requires an SN-Net; omit it"),
        ("--lr-noise 0.1 0.2 0.3", "its start and end"),
        ("--epoch-repeats 2", "use more --epochs"),
        ("--epoch-repeats 2 --dataset wds/x", "use more --epochs"),
        ("--model-dtype float8", "did you mean 'float32'"),
    ],
)
def test_settings_that_do_not_go_together(arguments, message, capsys):
    assert main(["train", "nowhere", "--model", "x", *arguments.split()]) == 2
    assert message in capsys.readouterr().err


def test_pretrained_path_is_for_one_model(tmp_path):
    with pytest.raises(InputError, match="'checkpoint', or --anchors NAME=FILE"):
        parse("data", "--stitch_config", write_config(tmp_path / "pico.json"), "--pretrained-path", "x")


@pytest.mark.parametrize(
    ("package", "arguments", "message"),
    [
        ("wandb", ["--log-wandb"], r"--log-wandb needs wandb, which is not installed; pip install 'stitchkit\[log\]'"),
        ("tensorboard", ["--log-tensorboard"], r"--log-tensorboard needs tensorboard, which .* 'stitchkit\[log\]'"),
        ("apex", ["--opt", "fusedadam"], "needs NVIDIA apex, which is not installed"),
        ("apex", ["--opt", "lookahead_fusedsgd"], "needs NVIDIA apex"),
    ],
)
def test_packages_that_are_asked_for_and_absent(package, arguments, message, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=message):
        parse("data", "--model", "x", *arguments)
