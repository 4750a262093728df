"""Paths in a settings file are relative to that file, then to the working folder; what we write suits both."""

import dataclasses
import json
import os

import pytest
import torch
import yaml

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.config.job_settings import JobSettings
from stitchkit.assembly.config.settings import TaskConfig, TrainConfig
from stitchkit.assembly.sweep.settings import CrossFile, SearchFile
from stitchkit.cli import main
from stitchkit.paths import _DATASETS, _FILES, _FOLDERS, for_file, from_file
from stitchkit.settings.by_name import read_settings
from stitchkit.settings.files import read_settings_file
from stitchkit.settings.recipe import GROUPS
from stitchkit.settings.stitch_config import AnchorSpec, StitchConfig
from tests.jobs import job_config, write_job
from tests.support import FLAGS, pico_anchor, pico_config, pico_snnet, write_config, write_images


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The working folder is one that holds nothing, beside `there`."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "there"


def test_every_setting_that_names_a_file_is_known():
    """Or is no path in any file: names of splits, and places to write."""
    kinds = [*GROUPS.values(), AnchorSpec, JobSettings, TrainConfig, TaskConfig, CrossFile, SearchFile]
    named = {
        field.name
        for kind in kinds for field in dataclasses.fields(kind)
        if "LocalPath" in str(field.type) or "DatasetName" in str(field.type)
    }  # fmt: skip
    written = {"output", "save_dir", "metrics_output"}
    assert named - written - {"train_split", "val_split"} <= {*_FILES, *_FOLDERS, *_DATASETS}


@pytest.mark.parametrize("name", ["a.yaml", "a.json"])
def test_a_path_is_relative_to_its_file_then_to_the_caller(name, elsewhere, tmp_path):
    (elsewhere / "beside.pth").touch()
    (tmp_path / "here/mine.pth").touch()
    (elsewhere / "inner").mkdir()
    (elsewhere / "inner/beside.pth").touch()
    content = {
        "ckp_path": "beside.pth", "load_from": {"head": "beside.pth", "encoder": "mine.pth"},
        "ft_configs": ["beside.pth", "/x", "gone.pth"], "data_path": "inner", "dataset": "inner", "head": "inner",
        "resume": "http://x/beside.pth",
    }  # fmt: skip
    (elsewhere / name).write_text(json.dumps(content))
    found = read_settings_file(f"../there/{name}")
    place = str(elsewhere / "beside.pth")
    assert found == {
        **content, "ckp_path": place, "load_from": {"head": place, "encoder": "mine.pth"},
        "ft_configs": [place, "/x", "gone.pth"], "data_path": str(elsewhere / "inner"),
    }  # fmt: skip


def test_a_path_in_an_included_file_is_relative_to_that(elsewhere):
    (elsewhere / "parts").mkdir()
    (elsewhere / "parts/w.pth").touch()
    (elsewhere / "parts/part.yml").write_text("ckp_path: w.pth\n")
    (elsewhere / "job.yml").write_text("model: !include parts/part.yml\n")
    assert read_settings_file("../there/job.yml") == {"model": {"ckp_path": str(elsewhere / "parts/w.pth")}}


def test_a_path_for_a_file_comes_back_from_every_folder(elsewhere, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(elsewhere)
    (tmp_path / "here/data").mkdir()
    written = for_file("data", tmp_path / "link/run/args.yaml")
    assert written == "../../here/data"
    assert from_file(written, tmp_path / "link/run/args.yaml") == "data"
    monkeypatch.chdir("/")
    assert from_file(written, elsewhere / "run/args.yaml") == str(tmp_path / "here/data").lstrip("/")
    assert for_file("gone", elsewhere / "args.yaml") == "gone"


def test_a_message_names_both_places(elsewhere, capsys):
    (elsewhere / "args.yaml").write_text(
        "stitch_config: deit_ti_s_b\nresume: gone.pth\ndata_dir: no-data\neval: true\n"
    )
    assert main(["train", "-c", "../there/args.yaml"]) == 2
    place = f" in '{os.getcwd()}' or in '../there', beside the settings; "
    assert f"data folder 'no-data' does not exist{place}" in capsys.readouterr().err
    write_images(elsewhere / "no-data")
    assert main(["train", "-c", "../there/args.yaml"]) == 2
    assert f"checkpoint 'gone.pth' does not exist{place}" in capsys.readouterr().err


@pytest.mark.full
def test_settings_of_a_run_are_used_from_another_folder(tmp_path, monkeypatch):
    """Those of a training and of an evaluation: everything is found, and what is written stays in the folder."""
    for name in ("there", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "there")
    write_images(tmp_path / "there/images")
    write_config(tmp_path / "there/pico.json")
    assert (
        main(["train", "images", "--stitch_config", "pico.json", *FLAGS, "--epochs", "1", "--experiment", "run"]) == 0
    )
    last = "outputs/run/last.pth.tar"
    args = ["-c", "outputs/run/args.yaml", "--eval", "--eval-stitches", "0-1"]
    assert main(["train", *args, "--resume", last]) == 0
    ledger = tmp_path / "there/outputs/run/stitches_res.txt"
    before = ledger.read_bytes()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["train", "-c", "../there/outputs/run/eval_args.yaml", "--eval-stitches", "0-2"]) == 0
    assert ledger.read_bytes().startswith(before)
    assert len(ledger.read_text().splitlines()) == 3
    assert main(["train", "-c", "../there/outputs/run/args.yaml", "--epochs", "2", "--resume", "auto"]) == 0
    assert torch.load(tmp_path / "there" / last, weights_only=True)["epoch"] == 1
    export = ["export", "-c", "../there/outputs/run/eval_args.yaml", "--cfg_id", "0", "-o", "net.safetensors"]
    assert main(export) == 0
    assert not (tmp_path / "here/outputs").exists()


def test_checkpoints_of_anchors_are_relative_to_the_configuration(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    torch.save({"state_dict": pico_snnet().anchors[0].state_dict()}, "ti.pth")
    anchors = [{**pico_anchor("ti", 8), "checkpoint": "ti.pth"}, pico_anchor("s", 16)]
    (tmp_path / "there/configs").mkdir()
    (tmp_path / "there/configs/two.json").write_text(json.dumps(pico_config() | {"anchors": anchors}))
    assert StitchConfig.load("configs/two.json").anchors[0].checkpoint == "ti.pth"
    (tmp_path / "there/configs/ti.pth").touch()
    monkeypatch.chdir(tmp_path)
    assert StitchConfig.load("there/configs/two.json").anchors[0].checkpoint == "there/configs/ti.pth"


def test_a_short_name_is_no_folder_beside_the_settings(elsewhere):
    (elsewhere / "deit_ti_s_b").mkdir()
    (elsewhere / "args.yaml").write_text("stitch_config: deit_ti_s_b\n")
    assert read_settings(str(elsewhere / "args.yaml"))["stitch_config"] == "deit_ti_s_b"


def test_settings_of_a_job_are_used_from_another_folder(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    write_images(tmp_path / "there/data/images")
    job = write_job(tmp_path / "there", job_config("data/images", epochs=1, batch_size=8))
    assert (
        main(["job", "-c", str(job.relative_to(tmp_path / "there")), "--no-pretrained", "-o", "out/job", "-j", "0"])
        == 0
    )
    written = yaml.safe_load((tmp_path / "there/out/job/config.yml").read_text())
    assert written["train_config"]["dataset"] == "../../data/images"
    assert JobConfig.load("out/job/config.yml").train_config.dataset == "data/images", "as a resumed job compares it"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert (
        main(["job", "-c", "../there/out/job/config.yml", "-o", "again", "--no-pretrained", "-j", "0", "--dry-run"])
        == 0
    )


def test_values_of_flags_are_relative_to_the_caller_alone(elsewhere):
    (elsewhere / "images").mkdir()
    job = write_job(elsewhere, job_config("images/x", epochs=1, batch_size=8))
    assert JobConfig.load(job, data_path="images").data_path == "images"
