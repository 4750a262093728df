"""The page of the published settings files, and the script that writes it, on files of our own with the same keys."""

import os
import re
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from tests.jobs import job_config, write_job
from tests.support import ROOT


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    return import_module("published_files")


def test_every_file_has_its_row(script, tmp_path, monkeypatch):
    place = tmp_path / "pub"
    (place / "moe-stitch").mkdir(parents=True)
    environment = dict(os.environ)
    job = job_config("cifar100")
    many = {**job, "train_config": {key: value for key, value in job["train_config"].items() if key != "dataset"}}
    path = write_job(place / "moe-stitch", many, "baseline-resnet-cifar-resisc.yml")
    path.write_text(f"{path.read_text()}datasets: !include sets.yml\n")
    (place / "moe-stitch/sets.yml").write_text("- cifar100\n- dtd\n")
    write_job(place / "moe-stitch", {**job, "epoch": 3}, "wrong.yml")
    write_job(place, job, "ft-100.yml")
    write_job(place, {"ft_configs": ["a/b/config.yml"]}, "ft-cross.yml")
    write_job(place, {"ft_configs": [str(tmp_path / "other/config.yml")]}, "ft-out.yml")
    write_job(place, {"ft_configs": ["../other/config.yml"]}, "ft-up.yml")
    write_job(place / "moe-stitch", {"name": "env"}, "environment.yml")
    search = {"method": "random", "metric": {"name": "Test Accuracy"}, "parameters": {"lr": {"values": [0.1]}}}
    write_job(place / "moe-stitch", {**search, "command": ["--config=${envvar:CONFIG}"]}, "search.yml")
    (place / "space.json").write_text('{"anchors": ["resnet18", "resnet50"]}')
    (place / "one.yaml").write_text(yaml.safe_dump({"MODEL": 1}))
    rows = [script.read(path, place) for path in script.settings_files(place)]
    assert [(row.file.rpartition("/")[2], row.verdict) for row in rows] == [
        ("ft-100.yml", "unchanged"),
        ("ft-cross.yml", "unchanged"),
        ("ft-out.yml", "refused"),
        ("ft-up.yml", "refused"),
        ("baseline-resnet-cifar-resisc.yml", "unchanged"),
        ("search.yml", "unchanged"),
        ("sets.yml", "unchanged"),
        ("wrong.yml", "refused"),
        ("one.yaml", "refused"),
        ("space.json", "unchanged"),
    ]
    said = {row.file: row.said for row in rows}
    assert said["moe-stitch/sets.yml"] == "a list, included by 1 other"
    assert said["moe-stitch/wrong.yml"].startswith("'moe-stitch/wrong.yml', line ")
    assert "use stitchkit train --stitch-config configs/swin_ti_s_b.json" in said["one.yaml"]
    assert script.table(rows).startswith("10 files: 6 unchanged, 0 warning, 4 refused.\n\n| repository |")
    assert (Path.cwd(), dict(os.environ)) == (ROOT, environment)
    assert {path.name for path in tmp_path.iterdir()} == {"pub"}


def test_the_page_shows_at_least_38_files_that_load_and_no_traceback(script):
    made, _, counts, _, *rows = script.PAGE.read_text().partition(script.BEFORE)[2].splitlines()
    assert re.fullmatch(r"Made on [\d-]+ from stitching at \w+ of [\d-]+ and SN-Net at \w+ of [\d-]+\.", made)
    verdicts = Counter(row.split(" | ")[2] for row in rows[2:])
    said = [f"{verdicts[verdict]} {verdict}" for verdict in ("unchanged", "warning", "refused")]
    assert counts == f"{verdicts.total()} files: {', '.join(said)}."
    assert verdicts["unchanged"] + verdicts["warning"] >= 38
    assert not [row for row in rows if "Traceback" in row or row.endswith("| refused |  |")]


def test_the_page_is_what_the_script_writes(script, shared):
    """Anything but a refusal ends the script."""
    places = [shared / "checkouts/stitching", shared / "checkouts/SN-Net"]
    if not all(place.is_dir() for place in places):
        pytest.skip("the published repositories are not in checkouts/ of the references")
    rows = [script.read(path, place) for place in places for path in script.settings_files(place)]
    assert script.PAGE.read_text().endswith(script.table(rows))
