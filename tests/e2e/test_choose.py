"""`stitchkit choose`: from images to a configuration that trains."""

import json
import re
import shutil

import pytest
import timm
import torch

import stitchkit
from stitchkit.cli import main
from stitchkit.files import read_table
from stitchkit.measure.ledger import read_rows
from stitchkit.settings.stitch_config import StitchConfig
from tests.commands import refused
from tests.pages import commands
from tests.support import FLAGS, ROOT, demo_folder, pico_config, weights, write_config

QUICK = ["--no-pretrained", "--images", "32", "-b", "8", "-j", "0", "--buckets", "3", "--device", "cpu"]
PAGE = ROOT / "docs/choose.md"


def chosen(data, folder, *more, name="chosen.json"):
    """Choose joints of the pico configuration; the file that is written."""
    config = folder / "pico.json"
    if not config.exists():
        write_config(config, recipe={"lr": 0.01, "mean": [0.5, 0.5, 0.5]})
    assert main([*map(str, ["choose", data, "--stitch_config", config, "-o", folder / name, *QUICK, *more])]) == 0
    return folder / name


@pytest.mark.full
def test_the_chosen_configuration_trains_resumes_and_is_evaluated(images, tmp_path, capsys):
    file = chosen(images, tmp_path)
    said = capsys.readouterr().out
    config, table = StitchConfig.load(file), read_table(tmp_path / "chosen.scores.csv")
    kept = [joint for joint, is_kept in zip(table["joint"], table["kept"], strict=True) if is_kept == "1"]
    assert list(config.joints) == kept
    assert config.recipe == StitchConfig.load(tmp_path / "pico.json").recipe
    assert f"{len(kept)} of 14 joints kept by klas, and {3 + len(kept)} of 17 stitches" in said
    assert all(joint in said for joint in kept)
    assert [*table] == ["joint", "stitch", "flops", "bucket", "kept", "klas"]

    run = ["train", images, "--stitch_config", file, *FLAGS, "--output", tmp_path, "--experiment", "run"]
    assert main([*map(str, [*run, "--epochs", "1"])]) == 0
    last = tmp_path / "run" / "last.pth.tar"
    layers = {name for name in weights(last) if name.startswith("stitch_layers")}
    assert layers == {f"stitch_layers.{name}" for name in stitchkit.create_snnet(config).stitch_layers.state_dict()}
    assert main([*map(str, [*run, "--resume", "auto"])]) == 0
    assert torch.load(last, weights_only=True)["epoch"] == 1
    assert main([*map(str, [*run, "--eval", "--resume", last])]) == 0
    ledger = tmp_path / "run" / "stitches_res.txt"
    rows = read_rows(ledger)
    assert [row["cfg_id"] for row in rows] == [*range(3 + len(kept))]


def test_a_seed_decides_everything(images, tmp_path):
    one, same, other = (
        chosen(images, tmp_path, "--seed", seed, name=f"{name}.json")
        for name, seed in (("one", 1), ("same", 1), ("other", 2))
    )
    scores = [path.with_suffix(".scores.csv").read_text() for path in (one, same, other)]
    assert scores[0] == scores[1]
    assert scores[0] != scores[2]
    assert one.read_text() == same.read_text()


def test_a_folder_of_images_is_enough_without_labels(images, tmp_path, capsys):
    folder = tmp_path / "plain"
    folder.mkdir()
    for number, file in enumerate(sorted((images / "train").rglob("*.png"))):
        shutil.copy(file, folder / f"{number}.png")
    by = "klas-label-free"
    config = StitchConfig.load(chosen(folder, tmp_path, "--by", by))
    assert 2 <= len(config.joints) < 14
    (tmp_path / "list.txt").write_text("".join(f"plain/{path.name}\n" for path in folder.iterdir()))
    listed = chosen(tmp_path / "list.txt", tmp_path, "--by", by, name="listed.json")
    assert listed.with_suffix(".scores.csv").read_text() == (tmp_path / "chosen.scores.csv").read_text()
    message = refused(capsys, "choose", folder, "--stitch_config", tmp_path / "pico.json", "-o", tmp_path / "x.json")
    assert "klas needs labels, which these images do not have: the class folders in 'train' are labels" in message
    assert "or choose by klas-label-free" in message
    assert not (tmp_path / "x.json").exists()


def test_a_pair_of_anchors_is_chosen(images, tmp_path, capsys):
    rates = {"ti": 0.0, "s": 0.1, "b": 0.2}
    write_config(tmp_path / "pico.json", recipe={"anchor_drop_path": [*rates.values()]})
    config = StitchConfig.load(chosen(images, tmp_path, "--pair"))
    labels = [anchor.label for anchor in config.anchors]
    assert len(labels) == 2
    assert config.recipe["anchor_drop_path"] == [rates[label] for label in labels]
    said = capsys.readouterr().out
    assert f"kept: {labels[0]} and {labels[1]}, whose predictions agree most" in said
    assert set(re.findall(r"(\w+)\[\d+\] > (\w+)\[\d+\]", " ".join(config.joints))) == {tuple(labels)}


def test_bad_input_is_one_line(images, tmp_path, capsys):
    config, out = write_config(tmp_path / "pico.json"), tmp_path / "chosen.json"
    run = ["choose", images, "--stitch_config", config, "-o", out, *QUICK]
    for more, message in {
        ("--by", "cka"): "--by",
        ("--buckets", "0"): "--buckets is 0; it must be at least 1",
        ("--tau", "-1"): "--tau is -1.0; it must be at least 0",
        ("--tau", "5"): "--tau is 5.0; it must be at most 1",
        ("--images", "1"): "--images is 1; it must be at least 2",
        ("-o", "chosen.yaml"): "must be a JSON file",
        ("-o", config): "exists; choose another file or remove it",
    }.items():
        assert message in refused(capsys, *run, *more)
    assert "give DATA, --stitch-config CONFIG and -o chosen.json" in refused(capsys, "choose")
    assert "does not exist" in refused(capsys, "choose", tmp_path / "none", *run[2:])
    write_config(tmp_path / "two.json", anchors=pico_config()["anchors"][:2])
    two = ["choose", images, "--stitch_config", tmp_path / "two.json", "-o", out, *QUICK, "--pair"]
    assert "--pair chooses two of several anchors, but the configuration has 2 anchors" in refused(capsys, *two)
    assert not out.exists()


@pytest.mark.full
def test_the_page_runs_as_it_stands(tmp_path, monkeypatch):
    """On the demo's digits, with anchors that are not trained."""
    folder = demo_folder(tmp_path)
    for anchor in json.loads((ROOT / "configs/digits_vit.json").read_text())["anchors"]:
        place = folder / anchor["checkpoint"]
        place.parent.mkdir()
        torch.save({"state_dict": timm.create_model(anchor["name"], **anchor["kwargs"]).state_dict()}, place)
    monkeypatch.chdir(folder)
    words = [words for program, *words in commands(PAGE.read_text()) if words[0] == "choose"]
    assert words
    assert all(main(each) == 0 for each in words)
    assert (folder / "outputs/chosen.scores.csv").exists()
