"""The way of a user, small: anchors, stitching, evaluation, front, and everything that the README shows."""

import argparse
import itertools
import json
import re
import shlex

import pytest
import torch
from PIL import Image

import stitchkit
from stitchkit.cli import _parser, main
from stitchkit.measure.ledger import read_rows
from stitchkit.settings.flags import add_flags, resolve
from tests.distributed.forks import end, start
from tests.pages import commands
from tests.support import FLAGS, ROOT, demo_folder, pico_config, pico_images, weights

DOCUMENTS = [ROOT / name for name in ("README.md", "docs/training.md", "docs/configuration.md")]
DOCUMENTS += [*sorted(ROOT.glob("stitching_*/README.md")), *sorted(ROOT.glob("results/*/README.md"))]


def run(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits"
    run("demo-data", "digits", folder)
    return folder


def test_the_digits_are_real_complete_and_disjoint(digits, capsys):
    from sklearn.datasets import load_digits

    scans = load_digits()
    paths = sorted(digits.rglob("*.png"))
    assert len(paths) == 1797
    assert {path.parts[-3] for path in paths} == {"train", "validation"}
    numbers = [int(path.stem) for path in paths]
    assert len(set(numbers)) == 1797
    for path in paths[::100]:
        number = int(path.stem)
        assert int(path.parent.name) == scans.target[number]
        with Image.open(path) as image:
            small = image.resize((8, 8), Image.Resampling.NEAREST)
            assert image.size == (32, 32)
            pixels = torch.tensor(list(small.tobytes())).reshape(8, 8)
        torch.testing.assert_close(pixels / 255 * 16, torch.tensor(scans.images[number]).float(), atol=0.04, rtol=0)
    for digit in range(10):
        share = [sum(1 for _ in (digits / split / str(digit)).iterdir()) for split in ("train", "validation")]
        assert share[1] == pytest.approx(sum(share) * 600 / 1797, abs=1)
    before = [path.stat().st_mtime_ns for path in paths]
    run("demo-data", "digits", digits)
    assert "already exists" in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in paths] == before


@pytest.mark.full  # its parts are quick elsewhere: anchors, two ranks, the printed command, a front
def test_from_anchors_to_the_front_on_two_ranks(images, tmp_path, capsys):
    """What `make demo` does, at pico size: train anchors, stitch them, measure every stitch, draw the front."""
    config = pico_config()
    for anchor in config["anchors"]:
        arguments = [f"{key}={value}" for key, value in anchor["kwargs"].items()]
        flags = ["--model", anchor["name"], "--model-kwargs", *arguments, "--output", tmp_path]
        run("train", images, *FLAGS[1:], *flags, "--experiment", anchor["label"], "--epochs", "1")
        anchor["checkpoint"] = str(tmp_path / anchor["label"] / "last.pth.tar")
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(config))

    said = tmp_path / "said"
    command = ["train", images, "--stitch_config", path, *FLAGS[1:], "--output", tmp_path]
    assert end(start(command, ranks=2, said=said)) == [0, 0], said.read_text()
    assert "stitching layers fitted at 14 joints" in said.read_text()
    last = tmp_path / "mine/last.pth.tar"
    started = weights(tmp_path / "ti/last.pth.tar")["blocks.1.mlp.fc1.weight"]
    trained = weights(last)["anchors.0.blocks.1.mlp.fc1.weight"]
    assert 0 < (trained - started).abs().max() < 0.1, "the anchor starts from its checkpoint and learns"
    assert "model_acc1" not in (tmp_path / "mine/summary.csv").read_text()
    assert (tmp_path / "mine/summary.csv").read_text().splitlines()[0].count("_acc1") == 3

    launcher = "torchrun --standalone --nproc-per-node 2 -m stitchkit"
    (suggested,) = re.findall(rf"next, measure every stitch: {launcher} (.*)", said.read_text())
    evaluation = shlex.split(suggested)
    run(*evaluation)
    ledger = tmp_path / "mine/stitches_res.txt"
    rows = read_rows(ledger)
    assert [row["cfg_id"] for row in rows] == list(range(17))
    assert all(row["images"] == 20 for row in rows)
    # What a ledger lacks is added; fewer stitches at once may sum in another order.
    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[:5]))
    run(*evaluation)
    for again, row in zip(read_rows(ledger), rows, strict=True):
        assert again == {**row, "loss": pytest.approx(row["loss"], rel=1e-6)}

    capsys.readouterr()
    run("pareto", ledger, "--plot", tmp_path / "front.png")
    assert "of 17 stitches; * marks anchors" in capsys.readouterr().out
    with Image.open(tmp_path / "front.png") as image:
        assert image.size[0] > 800


def test_a_single_model_can_be_evaluated(images, tmp_path, caplog):
    arguments = ["img_size=16", "patch_size=8", "depth=2", "embed_dim=8", "num_heads=2"]
    flags = [images, "--model", "vit_tiny_patch16_224", "--model-kwargs", *arguments]
    run("train", *flags, *FLAGS[1:], "--output", tmp_path, "--experiment", "one", "--epochs", "1")
    with caplog.at_level("INFO"):
        run("train", *flags, "--eval", "--resume", tmp_path / "one/last.pth.tar", *FLAGS[1:], "--output", tmp_path)
    assert json.loads(caplog.messages[-1])["images"] == 20


@pytest.mark.full
def test_only_the_layers_train_without_fulltune(images, tmp_path):
    path = tmp_path / "pico.json"
    path.write_text(json.dumps(pico_config()))
    flags = ["--stitch_config", path, *FLAGS, "--output", tmp_path, "--weight-decay", "0"]
    run("train", images, *flags, "--no-fulltune", "--epochs", "1", "--experiment", "one")
    run("train", images, *flags, "--no-fulltune", "--epochs", "2", "--experiment", "two")
    one, two = (weights(tmp_path / name / "last.pth.tar") for name in ("one", "two"))
    changed = {name for name in one if not torch.equal(one[name], two[name])}
    assert any(name.startswith("stitch_layers") for name in changed)
    assert {name.split(".")[2] for name in changed if name.startswith("anchors")} <= {"cls_token"}


def test_every_command_in_the_documents_is_one():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    shown = [[*commands(path.read_text())] for path in DOCUMENTS]
    assert all(shown)
    begun = {}  # the flags of each experiment, which its run writes to args.yaml
    for words in itertools.chain(*shown):
        if words[0] == "make":
            assert set(words[1:]) <= targets, words
        elif words[0] == "./distributed_train.sh" or words[:2] == ["stitchkit", "train"]:
            flags = words[2:]
            if flags[0] == "-c" and flags[1].startswith("outputs/"):
                flags = [*begun[flags[1].removesuffix("/args.yaml")], *flags[2:]]
            parser = argparse.ArgumentParser()
            add_flags(parser)
            given = vars(parser.parse_args(flags))
            begun[f"outputs/{given.get('experiment')}"] = flags
            resolve(given)
        else:
            assert words[0] in ("source", "stitchkit", "cp", "cd", "git", "python", "python3"), words
            assert words[0] != "stitchkit" or not _parser(words[1]).parse_known_args(words[1:])[1], words


@pytest.mark.full
def test_the_python_of_the_readme_and_of_training_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (training,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/training.md").read_text(), re.S)
    monkeypatch.chdir(demo_folder(tmp_path))
    released = stitchkit.create_snnet("configs/deit_ti_s_b.json").state_dict()
    torch.save({"model": released}, "snnet_deit.pth")
    names = {"images": torch.zeros(1, 3, 224, 224)}
    with torch.no_grad():
        exec(code, names)
    assert capsys.readouterr().out.endswith("71 deit_tiny_patch16_224[0:8] > deit_small_patch16_224[7:12]\n")
    assert torch.equal(names["logits"], names["net"](names["images"]))
    assert [*names["some"]] == [0, 24, 60]
    exec(training, names)
    assert len(names["rows"]) == 35
    assert names["run"].checkpoint == tmp_path.joinpath("outputs/longer/last.pth.tar").relative_to(tmp_path)


def test_the_configuration_of_the_page_is_one(tmp_path):
    (text,) = re.findall(r"```json\n(.*?)```", (ROOT / "docs/configuration.md").read_text(), re.S)
    (tmp_path / "mine.json").write_text(text)
    recipe, config = resolve({"data": "images", "stitch_config": str(tmp_path / "mine.json")})
    assert config is not None
    assert [anchor.label for anchor in config.anchors] == ["deit_tiny_patch16_224", "mine"]
    assert (recipe.optim.opt, recipe.schedule.epochs) == ("adamw", 50)


def test_python_minus_m_is_the_same_program():
    import subprocess
    import sys

    command = [sys.executable, "-X", "importtime", "-m", "stitchkit", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0
    slow = re.findall(r"\| +(matplotlib|onnx|pandas|plotly|sklearn)$", result.stderr, re.M)
    assert slow == [], "every start of a command would wait for these"
    assert {"train", "profile", "pareto", "demo-data"} <= set(result.stdout.replace(",", " ").split())


def test_the_published_ledger_can_be_read(shared, capsys):
    run("pareto", shared / "published/deit_ti_s_b.jsonl")
    assert "of 71 stitches" in capsys.readouterr().out


def test_images_are_what_the_api_takes():
    model = stitchkit.create_snnet(pico_config())
    assert model.eval()(pico_images(), 3).shape == (2, 4)


@pytest.mark.full
def test_anchors_that_expect_other_images_are_pointed_out(images, tmp_path, caplog):
    anchors = pico_config()["anchors"]
    anchors[0]["name"] = "deit_tiny_patch16_224"  # normalised with ImageNet's figures, the others with 0.5
    path = tmp_path / "pico.json"
    path.write_text(json.dumps({"anchors": anchors}))
    flags = ["train", images, "--stitch_config", path, *FLAGS, "--output", tmp_path, "--epochs", "1"]
    run(*flags)
    assert "different mean and std" in caplog.text
    caplog.clear()
    run(*flags, "--experiment", "normalised", "--mean", "0.5", "0.5", "0.5", "--std", "0.5", "0.5", "0.5")
    assert "different mean and std" not in caplog.text


def test_a_model_of_any_size_takes_the_image_size_too(images, tmp_path):
    flags = ["--model", "test_resnet", "--img-size", "32", *FLAGS[1:], "--output", tmp_path, "--epochs", "1"]
    run("train", images, *flags)
    assert (tmp_path / "test_resnet/last.pth.tar").exists()


@pytest.mark.full
def test_settings_that_few_people_use_go_together(images, tmp_path):
    path = tmp_path / "pico.json"
    path.write_text(json.dumps(pico_config()))
    flags = ["--channels-last", "--amp", "--clip-mode", "agc", "--clip-grad", "0.01", "--mixup", "0.2", "--cutmix", "1"]
    flags += [
        "--mixup-off-epoch",
        "2",
        "--val-interval",
        "3",
        "--reprob",
        "0.5",
        "--recount",
        "2",
        "--aug-repeats",
        "2",
    ]
    flags += [
        "--aug-repeats",
        "2",
        "--grad-checkpointing",
        "--drop",
        "0.1",
        "--sched",
        "step",
        "--decay-epochs",
        "1",
        "-vb",
        "3",
    ]
    run("train", images, "--stitch_config", path, *FLAGS, *flags, "--output", tmp_path, "--epochs", "4")
    rows = (tmp_path / "pico/summary.csv").read_text().splitlines()
    assert [bool(row.split(",")[2]) for row in rows[1:]] == [False, False, True, True]
    assert all(value.isfinite().all() for value in weights(tmp_path / "pico/last.pth.tar").values())
