"""No setting reaches a shell, and none from a file switches on what fetches or runs what others made."""

import json
from importlib import import_module

import pytest
import yaml

from stitchkit.assembly.config.job import JobConfig
from stitchkit.cli import main
from stitchkit.data.open_dataset import open_dataset
from stitchkit.data.source import Source
from stitchkit.data.timm_readers import open_timm
from stitchkit.errors import InputError
from stitchkit.paths import check_local
from stitchkit.settings.by_name import SETTINGS, checked, recipe_schema
from stitchkit.settings.flags import resolve
from stitchkit.settings.stitch_config import StitchConfig
from tests.archives import write_shards
from tests.commands import refused
from tests.jobs import job_config, write_job
from tests.support import FLAGS, pico_anchor, pico_config, write_config, write_sweep

# Settings of text that name no place, so that a new one is looked at.
NAMES = {
    *("model", "gp", "model_dtype", "torchcompile", "torchcompile_mode", "sampling", "distillation_type"),
    *("sampler", "loss", "feature_distance", "preserve", "task", "head"),
    *("teacher_model", "input_img_mode", "background", "input_key", "target_key", "worker_seeding", "interpolation"),
    *("train_crop_mode", "aa", "train_interpolation", "remode", "mixup_mode", "opt", "clip_mode", "amp_dtype"),
    *("lr_base_scale", "sched", "dist_bn", "eval_stitches", "device", "eval_metric", "wandb_project"),
    *("wandb_tags", "wandb_resume_id", "experiment"),
}

WRITTEN = ("output",)
"""Places where a run writes, which no author of a configuration chooses."""


def names_a_place(name):
    try:
        checked({name: "pipe:x"})
    except InputError as error:
        return "begins with a scheme" in str(error)
    return False


PLACES = [name for name in SETTINGS if names_a_place(name)]


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """A command that webdataset would run, in a folder where only the tests themselves may make files."""
    monkeypatch.chdir(tmp_path)
    yield "pipe:touch made; cat "
    assert not (tmp_path / "made").exists(), "a shell ran"


def test_every_setting_of_text_names_a_place_or_is_known_not_to():
    text = {name for name, schema in recipe_schema()["properties"].items() if '"string"' in json.dumps(schema)}
    text.discard("$schema")
    assert text == NAMES | set(PLACES)


@pytest.mark.parametrize(
    "value",
    [
        "pipe:touch x",
        "PIPE:x",
        " pipe:x",
        "https://host/x",
        "gs://bucket",
        "file:///etc",
        "a+b-c.d:x",
        "pi\npe:x",
        "a\tb",
    ],
)
def test_what_may_be_a_url_or_a_command_is_not_a_path(value):
    with pytest.raises(InputError, match="give a path on this machine"):
        check_local(value, "x")


@pytest.mark.parametrize("value", ["data", "/data/a:b", "./pipe:x", "../x", "train[:10%]", "a-{0..9}.tar|100", "a b/ü"])
def test_paths_are_paths(value):
    check_local(value, "x")


@pytest.mark.parametrize("name", PLACES)
def test_no_place_in_a_recipe_is_a_url(name, shell, tmp_path, images, capsys):
    """By flag, by YAML and by configuration."""
    value = f"wds/{shell}" if name == "dataset" else shell
    config = write_config(tmp_path / "config.json")
    poisoned = write_config(tmp_path / "poisoned.json", recipe={name: value})
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump({name: value}))
    commands = [["train", images, "--stitch_config", config, *FLAGS, "-c", settings]]
    if name != "stitch_config":  # which a configuration cannot name
        commands.append(["train", images, "--stitch_config", poisoned, *FLAGS])
        commands.append(["train", "--data-dir", images, "--stitch_config", config, *FLAGS, f"--{name}", value])
    for command in commands:
        line = refused(capsys, *command)
        assert "begins with a scheme" in line or (name in WRITTEN and f"cannot set '{name}'" in line), command
    assert not (tmp_path / "outputs").exists()


def test_no_published_key_is_a_url(shell, tmp_path, capsys):
    config = write_config(tmp_path / "config.json", data_path=shell)
    assert "begins with a scheme" in refused(capsys, "train", "--stitch_config", config, *FLAGS)


def test_a_configuration_whose_folder_of_shards_is_a_command(shell, tmp_path, capsys):
    """As every command meets it that reads a configuration or settings."""
    recipe = {"dataset": "wds/x", "train_split": "a.tar", "val_split": "a.tar", "train_num_samples": 8}
    config = write_config(tmp_path / "config.json", data_path=shell, recipe={**recipe, "num_classes": 4})
    (tmp_path / "run").mkdir()
    ledger = tmp_path / "run/stitches_res.txt"
    ledger.write_text('{"cfg_id": 0, "flops": 1, "acc1": 2}\n')
    (tmp_path / "run/eval_args.yaml").write_text(yaml.safe_dump({**recipe, "data_dir": shell, "resume": "x"}))
    job = write_job(tmp_path, {**job_config("wds/x"), "data_path": shell})
    part = job_config(tmp_path)
    part["assembly"][0]["Subnet"]["ckp_path"] = shell
    sweep = write_sweep(tmp_path, tmp_path, data_path=shell)
    weights = tmp_path / "net.pth"
    commands = [
        ["train", "--stitch_config", config, *FLAGS],
        ["train", "--stitch_config", config, *FLAGS, "--eval", "--resume", weights],
        ["export", "--stitch_config", config, "--resume", weights, "--cfg_id", "0", "-o", "net.onnx"],
        ["export", "-c", tmp_path / "run/eval_args.yaml", "--cfg_id", "0", "-o", "net.onnx"],
        ["serve", "--stitch_config", config, "--resume", weights],
        ["job", "-c", job, "-o", "job", "--no-pretrained"],
        ["job", "-c", write_job(tmp_path, part, "part.yml"), "-o", "job"],
        ["sweep", "-c", sweep, "-o", "sweep", "--device", "cpu"],
        ["sweep", "-c", sweep, "-o", "sweep", "--dry-run"],
        ["compose", "--data", shell, "--nets", "resnet18", "--no-pretrained", "-o", "composed"],
        ["compose", "--data", tmp_path, "--nets", f"resnet18={shell}", "-o", "composed"],
        ["report", ledger, "-o", "page.html"],
        ["pick", ledger],
    ]
    before = sorted(tmp_path.rglob("*"))
    for command in commands:
        refused(capsys, *command)
    assert sorted(tmp_path.rglob("*")) == before, "nothing was written"


@pytest.mark.parametrize(
    "key", ["data_path", "load_from", "resume_from", "save_dir", "metrics_output", "dataset", "tasks"]
)
def test_no_place_in_a_job_is_a_url(key, shell, images):
    content = job_config(images)
    if key == "tasks":
        del content["train_config"]["dataset"]
        content["train_config"]["tasks"] = [{"dataset": f"{shell}"}]
    elif key == "dataset":
        content["train_config"][key] = shell
    else:
        content[key] = shell
    with pytest.raises(InputError, match=rf"{key}.* is 'pipe:touch made; cat ', which begins with a scheme"):
        JobConfig.parse(content)


@pytest.mark.parametrize(
    "options",
    [
        {"root": "pipe:touch made; cat "},
        {"root": ""},
        {"root": None},
        {"split": "pipe:touch made; cat a.tar"},
        {"split": "{pipe,a}:touch made; cat a.tar"},
        {"split": "::pipe:touch made; cat a.tar"},
        {"name": "wds/pipe:touch made; cat "},
        {"name": "WDS/x", "root": "pipe:touch made; cat "},
        {"name": "hfds/https://host/x"},
        {"name": "hfds/pipe:x", "root": "data"},
    ],
)
def test_no_reader_is_handed_a_command(options, shell, tmp_path):
    (tmp_path / "data").mkdir()
    given = {"name": "wds/x", "root": str(tmp_path / "data"), "split": "a.tar", **options}
    with pytest.raises(InputError):
        open_timm(**given)
    with pytest.raises(InputError):
        open_dataset(Source(given["name"], given["root"]), "train")


def test_no_shard_that_a_folder_names_is_a_command(shell, tmp_path):
    """`_info.json` is part of the data."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in (f"{shell}x.tar", "../outside.tar", 3, None):
        splits = {"train": {"name": "train", "filenames": [name], "shard_lengths": [4], "num_samples": 4}}
        (folder / "_info.json").write_text(json.dumps({"splits": splits}))
        with pytest.raises((InputError, TypeError)):
            open_timm("wds/x", root=str(folder), split="train", is_training=True)


def test_shards_of_a_relative_folder_are_read_as_files_whatever_their_names(shell, tmp_path):
    """A file may be called like a command; it is then a file."""
    folder = tmp_path / "pipe:touch made; cat "
    folder.mkdir()
    write_shards(folder)
    dataset = open_timm("wds/x", root="./pipe:touch made; cat ", split="validation")
    assert len(list(dataset)) == 3


def test_webdataset_opens_files_alone(shell, tmp_path):
    """What stands behind the check of every name."""
    write_shards(tmp_path)
    open_timm("wds/x", root=str(tmp_path), split="validation")
    gopen = import_module("webdataset.gopen")
    with pytest.raises(ValueError, match="no gopen handler"):
        gopen.gopen(shell)
    assert gopen.gopen(str(tmp_path / "validation-0.tar")).read(4)


@pytest.mark.parametrize("setting", ["dataset_download", "dataset_trust_remote_code"])
def test_no_file_switches_on_downloads_or_remote_code(setting, tmp_path, images, capsys):
    poisoned = write_config(tmp_path / "poisoned.json", recipe={setting: True})
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"{setting}: true\n")
    for flags in (["--stitch_config", poisoned], ["--model", "vit_tiny_patch16_224", "-c", settings]):
        assert setting.replace("_", "-") in refused(
            capsys, "train", images, *flags, *FLAGS, "--output", tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()
    settings.write_text(f"{setting}: false\n")  # as older runs have it in their settings
    assert resolve({"data_dir": str(images), "model": "vit_tiny_patch16_224", "config": str(settings)})


def test_a_run_does_not_write_down_that_it_may_download(tmp_path, images):
    config = write_config(tmp_path / "pico.json")
    command = ["train", images, "--stitch_config", config, *FLAGS, "--output", tmp_path, "--epochs", "1"]
    assert main([*map(str, [*command, "--dataset-download"])]) == 0
    assert "dataset_download" not in yaml.safe_load((tmp_path / "pico/args.yaml").read_text())
    assert main([*map(str, ["train", "-c", tmp_path / "pico/args.yaml", "--experiment", "again"])]) == 0


def test_remote_code_is_not_run_at_all(tmp_path, images, capsys):
    command = ["train", images, "--model", "vit_tiny_patch16_224", *FLAGS, "--dataset-trust-remote-code"]
    assert "a data set's own code is never run" in refused(capsys, *command)


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"])
def test_no_argument_of_a_model_names_weights(key, tmp_path, images, capsys):
    value = {"url": "https://host/x.pth"} if "cfg" in key else str(tmp_path / "x.pth")
    anchors = [pico_anchor("ti", 8, **{key: value}), pico_anchor("s", 16)]
    config = write_config(tmp_path / "pico.json", anchors=anchors)
    assert key in refused(capsys, "profile", "--stitch_config", config)
    job = job_config(images)
    job["assembly"][0]["Subnet"][key] = value
    assert key in refused(capsys, "job", "-c", write_job(tmp_path, job), "-o", tmp_path / "out")


def test_no_checkpoint_of_an_anchor_is_a_url():
    anchors = [pico_anchor("ti", 8) | {"checkpoint": "https://host/x.pth"}, pico_anchor("s", 16)]
    with pytest.raises(InputError, match=r"anchors\[0\].checkpoint is .* begins with a scheme"):
        StitchConfig.parse(pico_config(anchors=anchors))


@pytest.mark.parametrize(
    "place", ["https://host/x.parquet", "ftp://host/x", "zip://x::y", "a.csv::http://host", "hf://datasets/x"]
)
@pytest.mark.parametrize("library", ["hfds", "hfids"])
def test_no_card_of_a_data_set_names_what_is_elsewhere(place, library, tmp_path):
    pytest.importorskip("datasets")
    card = {"configs": [{"config_name": "default", "data_files": [{"split": "train", "path": ["a.csv", place]}]}]} | {
        "a": "a---b"
    }
    for name, text in (
        ("README.md", f"---\n{yaml.safe_dump(card)}---\n# x\n"),
        (".huggingface.yaml", yaml.safe_dump(card)),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match="names"):
            open_timm(f"{library}/{tmp_path}", root=None, split="train")
        (tmp_path / name).unlink()


@pytest.mark.parametrize("library", ["hfds", "hfids"])
def test_no_name_of_a_data_set_fetches_it_unless_asked(library, monkeypatch):
    """Neither `train`, whose settings may be a file's, nor a job."""
    datasets = pytest.importorskip("datasets")
    seen = []

    def noted(*_, **__):
        seen.append(datasets.config.HF_HUB_OFFLINE)
        raise OSError("out of reach")

    for name in ("stitchkit.data.timm_readers.create_dataset", "datasets.load_dataset"):
        monkeypatch.setattr(name, noted)
    for download in (False, True):
        with pytest.raises(OSError, match="out of reach"):
            open_timm(f"{library}/somebody/data", root=None, split="train", download=download)
    assert seen[0]
    assert seen[1] == datasets.config.HF_HUB_OFFLINE


@pytest.mark.parametrize("key", [*WRITTEN, "log_wandb", "wandb_project"])
def test_a_configuration_does_not_say_where_results_go(key, tmp_path, images, capsys):
    config = write_config(tmp_path / "pico.json", recipe={key: "x"})
    assert f"cannot set '{key}'" in refused(capsys, "train", images, "--stitch_config", config, *FLAGS)


@pytest.mark.parametrize("key", ["save_dir", "metrics_output"])
@pytest.mark.parametrize("place", ["../x", "/x/y.pkl", "~/x", "a/../../x.pkl"])
def test_the_file_of_a_job_names_no_place_outside(key, place, tmp_path, images, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_job(tmp_path, job_config(images) | {key: place})
    assert f"{key} is '{place}'; files may only name relative paths without '..'" in refused(capsys, "job", "-c", path)
    assert [*tmp_path.iterdir()] == [path]


def test_what_a_file_holds_is_shown_in_one_line(tmp_path, capsys):
    config = write_config(tmp_path / "pico.json", **{"x\nnext, run: rm\x1b[2K": 1})
    assert r"x\nnext, run: rm\x1b[2K" in refused(capsys, "profile", "--stitch_config", config)


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_no_setting_is_beyond_all_numbers(value, tmp_path, images):
    settings = tmp_path / "settings.yaml"
    for name in ("lr", "mixup", "warmup_epochs", "smoothing", "epochs"):
        settings.write_text(f"{name}: {value}\n")
        with pytest.raises(InputError, match="must be"):
            resolve({"data_dir": str(images), "model": "vit_tiny_patch16_224", "config": str(settings)})
