"""From an evaluation with latencies to a network in use: step by step, and as the pages show it."""

import json
import re
import shlex
from importlib.util import find_spec

import pytest
import torch

import stitchkit
from stitchkit.cli import main
from stitchkit.measure.ledger import read_rows
from stitchkit.ship.trained_snnet import open_trained
from tests.browser import open_page, serving
from tests.distributed.forks import end, start
from tests.pages import commands
from tests.support import FAMILIES, FLAGS, ROOT, demo_folder, family_snnet, pico_snnet, write_config

LEDGER = "stitches_res.txt"


pytestmark = pytest.mark.usefixtures("short_timing")


@pytest.fixture(scope="module")
def evaluate(images, tmp_path_factory):
    """The folder of all evaluations, and the command of one without its name."""
    folder = tmp_path_factory.mktemp("latency")
    config, weights = write_config(folder / "pico.json"), folder / "net.pth"
    torch.save({"state_dict": pico_snnet().state_dict()}, weights)
    flags = [images, "--stitch_config", config, *FLAGS, "--eval", "--resume", weights, "--output", folder]
    return folder, [*map(str, ["train", *flags, "--experiment"])]


def without_latency(rows):
    return [
        {key: value for key, value in row.items() if key != "images_per_s" and not key.startswith("latency_")}
        for row in rows
    ]


@pytest.mark.full
def test_an_evaluation_with_latencies_leads_to_a_stitch(evaluate, tmp_path, capsys):
    folder, command = evaluate
    assert main([*command, "one", "--latency"]) == 0
    ledger, page = folder / "one" / LEDGER, tmp_path / "report.html"
    rows = read_rows(ledger)
    assert len(rows) == 17
    assert all(row["images_per_s"] == pytest.approx(1e3 / row["latency_ms"]) for row in rows)
    limit = sorted(row["latency_ms"] for row in rows)[8]
    best = max(row["acc1"] for row in rows if row["latency_ms"] <= limit)
    capsys.readouterr()
    assert main(["pick", str(ledger), "--max-latency-ms", str(limit), "--json"]) == 0
    picked = json.loads(capsys.readouterr().out)
    assert (picked["best"]["acc1"], picked["fitting"]) == (best, 9)
    budgeted = stitchkit.BudgetedModel(pico_snnet(), ledger)
    assert rows[budgeted.choose(f"{limit}ms")]["acc1"] == best

    assert main(["report", str(ledger), "-o", str(page)]) == 0
    content = re.search(r'<script id="data"[^>]*>(.*?)</script>', page.read_text())[1]
    assert [row["latency_ms"] for row in json.loads(content)["ledgers"][0]["rows"]] == [
        row["latency_ms"] for row in rows
    ]
    with open_page(page.as_uri()) as (browser, wrong):
        browser.locator("#axis").select_option("latency_ms")
        browser.locator("#max-latency_ms").fill(str(limit))
        assert browser.locator("#count").inner_text() == "9 of 17 shown"
        assert wrong == []


def test_the_command_on_the_page_works_as_pasted(evaluate, tmp_path, capsys):
    """With the settings of the evaluation, on its images."""
    folder, command = evaluate
    settings = ["--mean", "0.2", "0.3", "0.4", "--crop-pct", "0.9", "--eval-stitches", "5"]
    assert main([*command, "pasted", *settings]) == 0
    page, file = tmp_path / "report.html", tmp_path / "stitch5.safetensors"
    assert main(["report", str(folder / "pasted" / LEDGER), "-o", str(page)]) == 0
    content = json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', page.read_text())[1])
    words = shlex.split(content["ledgers"][0]["rows"][0]["command"])
    capsys.readouterr()
    assert main(["pick", str(folder / "pasted" / LEDGER)]) == 0
    assert f"export it: {shlex.join(words)}\n" in capsys.readouterr().out
    assert words[-4:] == ["--cfg-id", "5", "-o", "stitch5.onnx"]
    assert main([*words[1:-1], str(file)]) == 0
    assert "compared on 20 images from the validation split" in capsys.readouterr().out
    about = stitchkit.load_stitch(file).about
    assert (about["cfg_id"], about["input"]["mean"], about["input"]["crop_pct"]) == (5, [0.2, 0.3, 0.4], 0.9)
    assert about["classes"] == [f"class{number}" for number in range(4)], "from the folder, where the weights know none"


def test_the_size_of_an_evaluation_is_that_of_its_exports(images, tmp_path):
    """Not that of the training."""
    model, config = family_snnet("resnet"), tmp_path / "resnet.json"
    config.write_text(json.dumps(FAMILIES["resnet"]))
    torch.save({"state_dict": model.state_dict(), "input_size": [3, 64, 64]}, tmp_path / "net.pth")
    flags = ["--stitch_config", config, "--resume", tmp_path / "net.pth", "--img-size", "32", "--output", tmp_path]
    evaluation = ["train", images, *flags, "--eval", "--eval-stitches", "1", "-b", "8", "-j", "0", "--device", "cpu"]
    assert main([*map(str, evaluation)]) == 0
    given = {"config": str(tmp_path / "resnet/eval_args.yaml")}
    assert open_trained(given).model.input_size == (3, 32, 32)
    alone = {"stitch_config": str(config), "resume": str(tmp_path / "net.pth")}
    assert open_trained(alone).model.input_size == (3, 64, 64)


def test_latencies_are_added_to_a_finished_ledger_and_kept(evaluate):
    folder, command = evaluate
    ledger = folder / "later" / LEDGER
    assert main([*command, "later", "--eval-stitches", "0-4"]) == 0
    first = read_rows(ledger)
    assert main([*command, "later", "--eval-stitches", "0-4", "--latency", "4"]) == 0
    rows = read_rows(ledger)
    assert without_latency(rows) == first
    assert all(row["images_per_s"] * row["latency_ms"] == pytest.approx(4e3) for row in rows)
    assert {row["latency_batch_size"] for row in rows} == {4}
    assert main([*command, "later", "--eval-stitches", "0-4"]) == 0
    assert read_rows(ledger) == rows, "an evaluation without latencies leaves them"
    assert main([*command, "later", "--eval-stitches", "0-5", "--latency"]) == 0
    rows = read_rows(ledger)
    assert len(rows) == 6
    assert {round(row["images_per_s"] * row["latency_ms"]) for row in rows} == {1000}, "all are of one sitting"


@pytest.mark.full
def test_a_run_killed_while_it_measures_resumes(evaluate, monkeypatch):
    folder, command = evaluate
    ledger = folder / "killed" / LEDGER

    def add_some(rows, *_, **__):
        rows[0]["latency_ms"] = 1.0
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("stitchkit.training.evaluation.add_latencies", add_some)
        assert main([*command, "killed", "--eval-stitches", "0-3", "--latency"]) == 130
    before = read_rows(ledger)
    assert len(before) == 4
    assert not any("latency_ms" in row for row in before)
    assert main([*command, "killed", "--eval-stitches", "0-3", "--latency"]) == 0
    assert without_latency(read_rows(ledger)) == before
    assert all("latency_ms" in row for row in read_rows(ledger))


@pytest.mark.full
def test_one_of_two_ranks_measures(evaluate, tmp_path):
    folder, command = evaluate
    said = tmp_path / "said"
    assert end(start([*command, "two", "--latency", "--eval-stitches", "0-2"], ranks=2, said=said)) == [0, 0]
    assert said.read_text().count("latency of batches of 1 on cpu") == 1
    assert [row["latency_ms"] > 0 for row in read_rows(folder / "two" / LEDGER)] == [True] * 3


def test_weights_of_low_precision_are_measured_as_they_are(evaluate):
    folder, command = evaluate
    assert main([*command, "low", "--latency", "--eval-stitches", "3", "--model-dtype", "bfloat16"]) == 0
    (row,) = read_rows(folder / "low" / LEDGER)
    assert row["latency_ms"] > 0
    assert row["latency_precision"] == "bfloat16"


def test_latencies_need_an_evaluation_of_stitches(evaluate, images, capsys):
    _, command = evaluate
    assert main([*[word for word in command if word != "--eval"], "none", "--latency"]) == 2
    assert "--latency has no effect on its own; add --eval" in capsys.readouterr().err
    plain = ["train", str(images), "--model", "vit_tiny_patch16_224", "--pretrained", "--eval", "--latency"]
    assert main(plain) == 2
    assert "--latency requires an SN-Net" in capsys.readouterr().err
    assert main([*command, "none", "--latency", "-3"]) == 2
    assert "--latency is -3; it must be at least 0" in capsys.readouterr().err


@pytest.mark.full
def test_the_section_of_the_training_page_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    """Every command of it, on the demo's data and networks with weights that were not trained; serve without gradio
    says what it lacks."""
    section = (
        (ROOT / "docs/training.md").read_text().split("## From the ledger to a network in use\n")[1].split("\n## ")[0]
    )
    monkeypatch.chdir(demo_folder(tmp_path))
    monkeypatch.setattr("stitchkit.measure.latency._milliseconds", lambda *_: 1.0)  # within the limit, on any machine
    done = []
    for program, *words in commands(section):
        assert program == "stitchkit"
        done.append(words[0])
        if words[0] != "serve":
            assert main(words) == 0, words
        elif find_spec("gradio") is None:
            assert main(words) == 2
            assert "pip install 'stitchkit[serve]'" in capsys.readouterr().err
        else:
            with serving(words[1:], tmp_path) as address:
                assert address.startswith("http://127.0.0.1:")
    assert done == ["train", "pick", "pick", "report", "export", "predict", "serve"]
    made = {path.name for path in (tmp_path / "outputs").iterdir() if path.is_file()}
    assert made == {"report.html", "stitch12.onnx", "predictions.csv"}
    assert len(read_rows(f"outputs/digits_vit/{LEDGER}")) == 35


@pytest.mark.full
def test_four_commands_of_the_readme_lead_from_a_folder_to_a_file(images, tmp_path, monkeypatch):
    """As they stand, but with a short training from random weights."""
    section = (ROOT / "README.md").read_text().split("## Your own images\n")[1].split("\n## ")[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(images)
    for number, (program, *words) in enumerate(commands(section)):
        assert program == "stitchkit"
        assert main(words if number else [*words, *FLAGS, "--img-size", "32"]) == 0, words
    assert (tmp_path / "net.onnx").is_file()
