"""Training and evaluation from Python, and the plan of a run."""

import logging
from inspect import isfunction

import pytest
import timm
import torch

import stitchkit
from stitchkit.cli import main
from stitchkit.errors import InputError
from stitchkit.training.api import _as_flag
from stitchkit.training.inputs import read_run
from tests.support import FLAGS, pico_config, write_config

PAIR = pico_config()["anchors"][:2]

SETTINGS = {
    **{"pretrained": False, "batch_size": 8, "workers": 0, "epochs": 1, "opt": "adamw", "lr": 1e-3},
    **{"warmup_epochs": 0, "stitch_init_bs": 16, "device": "cpu"},
}


def test_training_and_evaluation_from_python(images, tmp_path):
    config = write_config(tmp_path / "pico.json")
    run = stitchkit.train(images, stitch_config=config, output=tmp_path, mean=(0.5, 0.5, 0.5), **SETTINGS)
    assert isfunction(stitchkit.train), "a module of this name would be in the way of type checkers"
    assert run.folder == tmp_path / "pico"
    assert run.checkpoint.is_file()
    assert repr([row["epoch"] for row in run.summary]) == "[0]"
    assert run.summary[0]["lr"] == SETTINGS["lr"], "the rate of the last step, not of the next"
    rows = stitchkit.evaluate(
        images,
        stitch_config=config,
        resume=run.checkpoint,
        output=tmp_path,
        device="cpu",
        workers=0,
        eval_stitches=[2, 5],
    )
    assert [row["cfg_id"] for row in rows] == [2, 5]
    assert all(row["images"] == 20 for row in rows)
    with pytest.raises(InputError, match="already contains a run"):
        stitchkit.train(images, stitch_config=config, output=tmp_path, **SETTINGS)
    with pytest.raises(InputError, match="did you mean 'epochs'"):
        stitchkit.train(images, stitch_config=config, epoch=3)
    with pytest.raises(InputError, match="give stitch_config"):
        stitchkit.evaluate(images, model="resnet18", pretrained=True)


@pytest.mark.parametrize(
    ("given", "chosen"), [("2,5", "2,5"), ([2, 5], "2,5"), (range(2, 4), "2,3"), (7, "7"), ([], ""), (None, None)]
)
def test_stitches_are_chosen_by_their_numbers(given, chosen, tmp_path):
    recipe, _ = read_run({key: _as_flag(key, value) for key, value in {
        "data_dir": tmp_path, "model": "vit", "pretrained": True, "eval": True, "eval_stitches": given,
    }.items()})  # fmt: skip
    assert recipe.run.eval_stitches == chosen


def test_a_dry_run_says_what_a_run_would_do_and_writes_nothing(images, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    config = write_config(tmp_path / "pico.json")
    flags = ["train", images, *FLAGS, "--output", tmp_path / "outputs", "--dry-run"]
    before = sorted(tmp_path.rglob("*"))
    assert (
        main([*map(str, flags), "--stitch_config", str(config), "--grad-accum-steps", "3", "--warmup-epochs", "1"]) == 0
    )
    for said in (
        "anchor ti: ", "network: 17 stitches, ", "data: 64 training images, 20 validation images, 4 classes",
        "cost bins: ", "routes are drawn by --sampler cost_bins, and learn by --loss task with --preserve none",
        "training: 2 epochs of 3 steps, 6 steps in total, 24 images in a step, 16 in the last of an epoch",
        "learning rate: 0.001 by adamw", "schedule cosine, 1 epoch of warm-up\n",
    ):  # fmt: skip
        assert said in caplog.text
    teacher = ["--teacher-model", "regnety_160", "--distillation-type", "hard"]
    assert main([*map(str, flags), "--stitch_config", str(config), *teacher]) == 0
    assert "teacher 'regnety_160' knows 1000 classes, the data have 4: training continues without it" in caplog.text
    assert main([*map(str, flags), "--model", "test_resnet", "--pretrained"]) == 0  # nothing is downloaded
    assert "network: test_resnet: " in caplog.text
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.full
def test_a_dry_run_refuses_what_the_run_would_refuse(images, tmp_path, capsys):
    config = write_config(tmp_path / "pico.json", anchors=PAIR)
    flags = ["train", images, *FLAGS, "--stitch_config", config, "--output", tmp_path]
    assert main([*map(str, flags), "--epochs", "1"]) == 0
    last, dry = tmp_path / "pico/last.pth.tar", [*map(str, flags), "--dry-run"]
    judged = ["--eval", "--resume", str(last), "--experiment", "judged", "--eval-stitches"]
    assert main([*map(str, flags), *judged, "0"]) == 0
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "teacher.pth")
    before = sorted(tmp_path.rglob("*"))
    teacher = ["--teacher-model", "test_vit", "--distillation-type", "hard", "--teacher-path", tmp_path / "teacher.pth"]
    other = write_config(tmp_path.parent / "other.json", anchors=PAIR, stitch_kernel_size=3)
    mistakes = {
        "already contains a run": [],
        "was trained with another configuration: stitch_kernel_size": ["--resume", last, "--stitch_config", other],
        "was trained with --opt adamw, not sgd": ["--resume", last, "--opt", "sgd"],
        "was trained with --sampler cost_bins, not uniform; use": ["--resume", last, "--sampler", "uniform"],
        "was trained with --preserve none, not frozen; use": ["--resume", last, "--preserve", "frozen"],
        "--class-weights was removed: timm has no such flag": ["--experiment", "new", "--class-weights", "1,2"],
        "teacher: unknown timm model": ["--teacher-model", "dei_tiny", "--distillation-type", "hard"],
        "--aa is 'foo', which timm cannot read": ["--aa", "foo"],
        "does not fit the kwargs": ["--experiment", "new", "--pretrained"],
        f"the data are given twice, as '{images}' and as --data b; give one": ["--data", "b"],
        "teacher.pth' belongs to another": ["--experiment", "new", *teacher],
        "was measured with mean None, now [0.5]": [*judged, "0", "--mean", "0.5"],
        "cfg_id 999": [*judged, "999"],
        "--preserve replay was removed: studies/samplers shows": ["--experiment", "new", "--preserve", "replay"],
    }
    for said, more in mistakes.items():
        assert main([*dry, *map(str, more)]) == 2
        assert said in capsys.readouterr().err
    assert main([*dry, "--resume", "auto", "--epochs", "3"]) == 0
    assert main([*dry, "--eval", "--resume", str(last)]) == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_does_not_advise_to_download(tmp_path, capsys):
    flags = ["train", tmp_path, "--dataset", "cifar10", "--model", "test_resnet", *FLAGS, "--dry-run"]
    assert main([*map(str, flags)]) == 2
    assert "or add --download" in capsys.readouterr().err
    assert main([*map(str, flags), "--download"]) == 2
    assert "or omit --dry-run, which downloads nothing\n" in capsys.readouterr().err


def test_an_evaluation_of_a_plain_model_says_how_it_was_measured(images, tmp_path, caplog):
    caplog.set_level("INFO")
    torch.save(timm.create_model("test_resnet", num_classes=4).state_dict(), tmp_path / "net.pth")
    flags = ["train", images, "--model", "test_resnet", *FLAGS, "--output", tmp_path, "--eval"]
    command = [*map(str, [*flags, "--initial-checkpoint", tmp_path / "net.pth"])]
    for _ in range(2):
        assert main(command) == 0
    folder = tmp_path / "test_resnet"
    names = {"per_class.csv", "per_class.yaml", "eval_args.yaml", "log.txt"}
    assert {path.name for path in folder.iterdir()} == names
    caplog.clear()
    assert main([*command, "--mean", "0.1"]) == 0
    assert f"'{folder / 'per_class.csv'}' of an earlier evaluation is replaced" in caplog.text
    assert "mean:\n- 0.1\n" in (folder / "per_class.yaml").read_text()


def test_a_run_has_its_log_and_handlers_get_no_more_than_they_asked_for(images, tmp_path, caplog, capsys):
    config = write_config(tmp_path / "pico.json", anchors=PAIR)
    ours, seen = logging.getLogger("stitchkit"), []
    assert ours.getEffectiveLevel() == logging.WARNING, "nobody has configured logging"
    stitchkit.train(images, stitch_config=config, output=tmp_path, experiment="quiet", **SETTINGS)
    log = (tmp_path / "quiet/log.txt").read_text()
    for said in ("64 images", "stitching layers fitted", "epoch 1/1  step 8/8  loss ", "done; the weights are "):
        assert said in log
    assert (capsys.readouterr(), caplog.records) == (("", ""), [])
    assert (ours.level, ours.handlers) == (logging.NOTSET, [])

    handler = logging.Handler()
    handler.emit = seen.append
    for level, wanted in ((logging.ERROR, False), (logging.INFO, True)):
        with caplog.at_level(level, "stitchkit"):
            ours.addHandler(handler)
            stitchkit.train(images, stitch_config=config, output=tmp_path, experiment=str(level), **SETTINGS)
            ours.removeHandler(handler)
        assert "stitching layers fitted" in (tmp_path / str(level) / "log.txt").read_text()
        assert bool(seen) == wanted == any("stitching layers fitted" in message for message in caplog.messages)
    assert not handler.filters


def test_a_file_cannot_make_a_run_dry(images, tmp_path):
    (tmp_path / "args.yaml").write_text("dry_run: true\n")
    with pytest.raises(InputError, match="a file cannot set it; give --dry-run"):
        stitchkit.train(images, model="vit", config=tmp_path / "args.yaml")
