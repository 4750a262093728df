"""Runs without labels: what they change and keep, laws 8 and 9, and what checkpoint and summary hold."""

import csv
import json
import shutil

import pytest
import torch

import stitchkit
from stitchkit.cli import main
from stitchkit.measure.ledger import read_rows
from stitchkit.routes import Stitch
from tests.distributed.ranks import run_on_two_ranks
from tests.distributed.subjects import equal
from tests.support import FAMILIES, FLAGS, family_snnet, mostly_full, pico_images, weights

BUSY = ["--reprob", "0.3", "--aa", "rand-m5", "--drop-path", "0.2", "--model-ema", "--sched-on-updates"]


def command(images, folder, name, *flags, family="headless vit"):
    """A run on anchors with weights from files, which `given` has too."""
    config = folder / "config.json"
    if not config.exists():
        anchors, model = [], family_snnet(family)
        for anchor, network in zip(FAMILIES[family]["anchors"], model.anchors, strict=True):
            file = folder / f"{anchor['label']}.pth"
            torch.save(network.state_dict(), file)
            anchors.append({**anchor, "checkpoint": str(file)})
        config.write_text(json.dumps({"anchors": anchors}))
    common = [images, "--stitch_config", config, *FLAGS, "--loss", "features", "--output", folder, "--experiment", name]
    return ["train", *map(str, [*common, *flags])]


def rows(folder):
    with (folder / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.full
@pytest.mark.parametrize("family", ["headless vit", "headless levit"])
def test_frozen_anchors_are_the_same_before_and_after(family, images, tmp_path, caplog):
    """To the last bit; those of LeViT have batch norms."""
    caplog.set_level("INFO")
    assert main(command(images, tmp_path, "run", "--lr", "1e-2", family=family)) == 0
    first, last = (weights(tmp_path / f"run/checkpoint-{epoch}.pth.tar") for epoch in (0, 1))
    changed = {name.partition(".")[0] for name, value in last.items() if not torch.equal(value, first[name])}
    assert changed == {"stitch_layers"}
    model = stitchkit.create_snnet(FAMILIES[family])
    stitchkit.load_checkpoint(model, tmp_path / "run/last.pth.tar")
    released, x = family_snnet(family), pico_images(size=model.input_size[-1])
    for cfg_id, anchor in enumerate(released.views.values()):
        assert torch.equal(model.eval()(x, cfg_id), anchor.model(x))
    assert "parameters are trained" in caplog.text


def test_joints_learn_and_the_summary_shows_it(images, tmp_path, caplog):
    caplog.set_level("INFO")
    assert main(command(images, tmp_path, "run", "--lr", "1e-2", "--epochs", "3", "--no-ls-init", "--model-ema")) == 0
    found = rows(tmp_path / "run")
    assert list(found[0]) == ["epoch", "train_loss", "eval_feature_loss", "eval_feature_loss_ema", "lr"]
    losses = [float(row["eval_feature_loss"]) for row in found]
    said = [message for message in caplog.messages if "feature loss of held-out images" in message]
    assert float(said[0].split()[-1]) > 1.2 * losses[-1]
    average = float(found[-1]["eval_feature_loss_ema"])
    assert said[-1] == f"epoch 3/3  feature loss of held-out images  {losses[-1]:.4f}  ema {average:.4f}"
    content = torch.load(tmp_path / "run/last.pth.tar", weights_only=True)
    assert content["metric"] == -average, "the weights that evaluations use"
    assert content["classes"] == []
    assert content["alone"] == {}


def test_anchors_keep_their_classifiers(images, tmp_path):
    """Classes of the data do not matter, nor does their number."""
    config = FAMILIES["vit"]["anchors"]
    anchors = [{**anchor, "kwargs": anchor["kwargs"] | {"num_classes": 3}} for anchor in config]
    (tmp_path / "config.json").write_text(json.dumps({"anchors": anchors}))
    assert main(command(images, tmp_path, "run", "--epochs", "1")) == 0
    assert weights(tmp_path / "run/last.pth.tar")["anchors.0.head.weight"].shape[0] == 3


def test_labels_need_classes(images, tmp_path, capsys):
    assert main(command(images, tmp_path, "run", "--loss", "features+task", "--num-classes", "0")) == 2
    assert "4 classes, but the network has 0 outputs" in capsys.readouterr().err
    assert main(command(images, tmp_path, "run", "--loss", "features+task", "--epochs", "1")) == 0
    assert float(rows(tmp_path / "run")[0]["eval_ti_acc1"]) >= 0


WAYS = {
    "frozen": [],
    "trained": ["--preserve", "none"],
    "lora": ["--preserve", "lora", "--feature-distance", "cosine"],
    "with labels": ["--loss", "features+task"],
}


@pytest.mark.parametrize("way", mostly_full(WAYS, quick=["trained"]))
def test_law_8_a_run_resumes(way, images, tmp_path):
    """From within an epoch; the copies of trained anchors come from the checkpoint."""
    flags = [*WAYS[way], *BUSY, "--checkpoint-interval", "3", "--log-interval", "3"]
    assert main(command(images, tmp_path, "whole", *flags)) == 0
    whole = torch.load(tmp_path / "whole/last.pth.tar", weights_only=True)
    assert ("copies" in whole) == (way == "trained")
    place = tmp_path / "whole/previous.pth.tar"
    start = torch.load(place, weights_only=True)
    assert "within" in start
    assert not equal(start["state_dict"], whole["state_dict"])
    assert main(command(images, tmp_path, "resumed", *flags, "--resume", str(place))) == 0
    resumed = torch.load(tmp_path / "resumed/last.pth.tar", weights_only=True)
    for part in ("state_dict", "state_dict_ema", "optimizer", "copies"):
        assert equal(resumed.get(part), whole.get(part)), part
    assert rows(tmp_path / "resumed")[-1] == rows(tmp_path / "whole")[-1]


@pytest.mark.full
def test_law_8_photos_train_resume_and_are_evaluated_on_two_ranks(images, tmp_path):
    """Of 12 photos one is held out, so one rank has none to evaluate."""
    (tmp_path / "photos").mkdir()
    for number, file in enumerate(sorted((images / "train").rglob("*.png"))[:12]):
        shutil.copy(file, tmp_path / f"photos/{number}.png")
    flags = ["-b", "2", "--reprob", "0.3"]
    run_on_two_ranks([command(tmp_path / "photos", tmp_path, "whole", *flags)])
    start = str(tmp_path / "whole/checkpoint-0.pth.tar")
    run_on_two_ranks([command(tmp_path / "photos", tmp_path, "again", *flags, "--resume", start)])
    whole, again = (weights(tmp_path / f"{name}/last.pth.tar") for name in ("whole", "again"))
    assert equal(whole, again)
    assert not equal(whole, weights(tmp_path / "whole/checkpoint-0.pth.tar"))
    run = tmp_path / "whole"
    evaluate = ["train", "-c", f"{run}/args.yaml", "--eval", "--resume", f"{run}/last.pth.tar"]
    run_on_two_ranks([evaluate])
    ledger = read_rows(run / "stitches_res.txt")
    assert [row["images"] for row in ledger] == [1] * len(ledger)
    assert all(row["cosine"] == pytest.approx(100) for row in ledger if Stitch.parse(row["stitch"]).is_anchor)


def test_a_run_with_labels_does_not_go_on_without(images, tmp_path, capsys):
    flags = ["--preserve", "none"]
    assert main(command(images, tmp_path, "task", *flags, "--loss", "task", "--epochs", "1", family="vit")) == 0
    capsys.readouterr()
    resume = ["--resume", str(tmp_path / "task/last.pth.tar")]
    assert main(command(images, tmp_path, "features", *flags, *resume, family="vit")) == 2
    assert "was trained with --loss task, not features; use the same, or" in capsys.readouterr().err
    resume += ["--loss", "task", "--feature-distance", "cosine"]
    assert main(command(images, tmp_path, "cosine", *flags, *resume, family="vit")) == 2
    assert "was trained with --feature-distance mse, not cosine; use the same, or" in capsys.readouterr().err


@pytest.mark.full
@pytest.mark.parametrize(
    ("way", "distance"), [("frozen", "mse"), ("trained", "cosine"), ("lora", "cosine"), ("with labels", "mse")]
)
def test_law_9_two_ranks_equal_one_with_twice_the_batch(way, distance, images, tmp_path):
    exact = ["--no-aug", "--smoothing", "0", "--sampling", "shared", "--opt", "sgd", "--lr", "0.05", "--sched", "none"]
    exact += [*WAYS[way], "--feature-distance", distance]
    assert main(command(images, tmp_path, "one", *exact, "-b", "16", "-vb", "4")) == 0
    run_on_two_ranks([command(images, tmp_path, "two", *exact, "-b", "8", "-vb", "3")])
    one, two = (weights(tmp_path / f"{name}/last.pth.tar") for name in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], rtol=1e-4, atol=1e-5)
        assert way == "trained" or not key.startswith("anchors") or torch.equal(value, two[key])
    for left, right in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        for column in left:
            assert float(left[column]) == pytest.approx(float(right[column]), rel=1e-3), column


@pytest.mark.full
@pytest.mark.parametrize("way", [pytest.param("frozen", marks=pytest.mark.nightly), "trained"])
def test_ranks_with_stitches_of_their_own_stay_equal(way, images, tmp_path):
    flags = [*WAYS[way], "--torchcompile", "eager", "--grad-checkpointing", "--lr", "1e-2"]
    run_on_two_ranks([command(images, tmp_path, "own", *flags, family="headless levit")])
    first, last = (weights(tmp_path / f"own/checkpoint-{epoch}.pth.tar") for epoch in (0, 1))
    changed = {name.partition(".")[0] for name, value in last.items() if not torch.equal(value, first[name])}
    assert changed == {"stitch_layers"} | ({"anchors"} if way == "trained" else set())
