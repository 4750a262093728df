"""Bad input: one clear line that names the value and what to do, status 2, nothing overwritten."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from stitchkit.cli import main
from tests.commands import refused
from tests.once import trained_snnet
from tests.support import FLAGS, pico_config, write_config, write_images


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path / "pico.json")


def train(capsys, data, config, folder, *flags):
    return refused(capsys, "train", data, "--stitch_config", config, *FLAGS, "--output", folder, *flags)


def test_a_missing_data_folder(capsys, config, tmp_path):
    line = train(capsys, tmp_path / "nowhere", config, tmp_path)
    assert "nowhere' does not exist" in line
    assert "train/ and validation/" in line


def test_an_empty_data_folder(capsys, config, tmp_path):
    (tmp_path / "empty").mkdir()
    line = train(capsys, tmp_path / "empty", config, tmp_path)
    assert "empty" in line
    for split in ("train", "validation"):
        (tmp_path / "empty" / split / "class0").mkdir(parents=True)
    assert "has no images in class folders" in train(capsys, tmp_path / "empty", config, tmp_path)


def test_a_folder_without_the_split(capsys, config, tmp_path):
    data = write_images(tmp_path / "data")
    shutil.rmtree(data / "validation")
    assert "has no validation/ folder" in train(capsys, data, config, tmp_path)


def test_a_class_that_validation_lacks(capsys, config, tmp_path):
    data = write_images(tmp_path / "data")
    shutil.rmtree(data / "validation/class2")
    assert "lacks 1 class folder: class2" in train(capsys, data, config, tmp_path)


def test_a_class_that_validation_alone_has(capsys, config, tmp_path):
    data = write_images(tmp_path / "data")
    shutil.copytree(data / "validation/class1", data / "validation/class1b")
    assert "also has 1 class folder: class1b" in train(capsys, data, config, tmp_path)


def test_classes_that_the_checkpoint_does_not_know(capsys, images, config, trained, tmp_path):
    data = write_images(tmp_path / "other")
    for split in ("train", "validation"):
        (data / split / "class0").rename(data / split / "zebra")
    line = refused(capsys, *evaluate(data, config, trained / "last.pth.tar", tmp_path / "x"))
    assert "the first that differs was 'class0' and is 'class1'" in line


def test_a_class_that_validation_lacks_is_missed_in_evaluation_too(capsys, config, trained, tmp_path):
    data = write_images(tmp_path / "data")
    shutil.rmtree(data / "validation/class2")
    line = refused(capsys, *evaluate(data, config, trained / "last.pth.tar", tmp_path / "x"))
    assert "lacks 1 class folder: class2" in line


def test_less_than_a_batch(capsys, config, images, tmp_path):
    assert "has 64 images, fewer than one step needs (100 = --batch-size 100 x 1 rank x 1 accumulated batch)" in train(
        capsys, images, config, tmp_path, "-b", "100"
    )


def test_more_classes_than_outputs(capsys, config, images, tmp_path):
    assert "4 classes, but the network has 3 outputs" in train(capsys, images, config, tmp_path, "--num-classes", "3")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"anchors": [{"name": "vit_tiny_patch16_242"}, {"name": "vit_small_patch16_224"}]},
            "did you mean 'vit_tiny_patch16_224'",
        ),
        ({"anchors": ["vit_tiny_patch16_224", "resnet50"]}, "no usually stitched stage in common"),
        ({"stitch_stride": 0}, "stitch_stride is 0"),
        ({"stitch_kernel_size": 4}, "stitch_kernel_size is 4"),
        ({"kernel_size": 4}, "did you mean 'stitch_kernel_size'"),
        ({"anchors": pico_config()["anchors"][:1]}, "line 1: anchors is ["),
        ({"recipe": {"epochs": "many"}}, "line 1: recipe.epochs is 'many'; it must be a whole number"),
    ],
)
def test_a_wrong_configuration(capsys, change, message, images, tmp_path):
    path = write_config(tmp_path / "wrong.json", **change)
    assert message in train(capsys, images, path, tmp_path)


def test_a_missing_anchor_checkpoint_names_the_anchor(capsys, images, tmp_path):
    anchors = pico_config()["anchors"]
    anchors[0]["checkpoint"] = str(tmp_path / "gone.pth")
    path = write_config(tmp_path / "config.json", anchors=anchors)
    line = train(capsys, images, path, tmp_path, "--pretrained")
    assert "anchor 'ti'" in line
    assert "gone.pth' does not exist" in line


def test_weights_that_cannot_be_fetched(capsys, images, tmp_path, monkeypatch):
    """The one mock of these tests: a hub that is out of reach."""

    def unreachable(*_, **__):
        raise OSError("no route to the hub")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    path = write_config(tmp_path / "config.json", anchors=["deit_tiny_patch16_224", "deit_small_patch16_224"])
    line = train(capsys, images, path, tmp_path, "--pretrained")
    assert "no route to the hub" in line
    assert "local checkpoint" in line


def test_wrong_settings(capsys, images, config, tmp_path):
    assert "no GPU" in train(capsys, images, config, tmp_path, "--device", "cuda:99")
    assert "device 'gpu' is not supported" in train(capsys, images, config, tmp_path, "--device", "gpu")


def test_mistakes_on_the_command_line(capsys, images, config):
    assert "did you mean '--stitch_config'" in refused(capsys, "train", images, "--stich_config", "x.json")
    assert "argument 'more'; usage: stitchkit train [DATA] [FLAG ...]; see" in refused(
        capsys, "train", images, "more", "--model", "x"
    )
    assert "unexpected argument 'b'; usage: stitchkit pick LEDGER [FLAG ...]; see" in refused(capsys, "pick", "a", "b")
    assert "--epochs" in refused(capsys, "train", images, "--epochs", "many")
    assert "unknown command 'trian'; did you mean 'train'?" in refused(capsys, "trian", images)
    assert "unknown kind 'recipes'; did you mean 'recipe'?" in refused(capsys, "schema", "recipes")
    assert "did you mean '--learning-rate'?" in refused(capsys, "train", images, "--leraning-rate", "1")
    assert "key=value" in refused(capsys, "train", images, "--model", "x", "--model-kwargs", "depth")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--opt", "adamv"], "--opt: unknown value 'adamv'; did you mean 'adam'?"),
        (["--opt", "adamw", "--opt-kwargs", "caution=1"], "timm cannot create optimizer 'adamw'"),
        (["--sched", "cosin"], "--sched: unknown value 'cosin'; did you mean 'cosine'?"),
        (["--distillation-type", "hard", "--teacher-model", "regnety_16"], "teacher: unknown timm model 'regnety_16'"),
        (["--interpolation", "foo"], "--interpolation: unknown value 'foo'; allowed: nearest, "),
        (["--train-crop-mode", "foo"], "'foo'; allowed: rrc, rkrc, rkrr"),
        (["--aa", "rand-q9"], "--aa is 'rand-q9', which timm cannot read; give original, "),
        (["--aa", "foo"], "rand or augmix, and options after dashes: rand-m9-mstd0.5-inc1"),
        (["--model", "resnet81"], "unknown timm model 'resnet81'; did you mean 'resnet18'?"),
    ],
)
def test_names_are_checked_before_data_are_opened(flags, says, capsys, config, tmp_path):
    subject = [] if "--model" in flags else ["--stitch_config", config]
    line = refused(capsys, "train", tmp_path, *subject, "--output", tmp_path / "outputs", *flags)
    assert says in line
    assert not (tmp_path / "outputs").exists()


def test_an_anchor_is_checked_before_data_are_opened(capsys, tmp_path):
    path = write_config(tmp_path / "wrong.json", anchors=["vit_tiny_patch16_224", "vit_smal_patch16_224"])
    line = refused(capsys, "train", tmp_path, "--stitch_config", path)
    assert "anchor 'vit_smal_patch16_224': unknown timm model" in line


def test_the_settings_of_a_resumed_run_begin_another_one(images, config, tmp_path):
    flags = ["--stitch_config", config, *FLAGS, "--output", tmp_path]
    run = ["train", images, *flags, "--experiment", "one"]
    assert main([*map(str, run), "--epochs", "1"]) == 0
    assert main([*map(str, run), "--resume", "auto"]) == 0
    (tmp_path / "one/last.pth.tar").unlink()
    again = ["train", "-c", tmp_path / "one/args.yaml", "--experiment", "two", "--epochs", "1"]
    assert main([*map(str, again)]) == 0
    assert (tmp_path / "two/summary.csv").read_text().splitlines()[1].startswith("0,")


@pytest.fixture
def trained(config, tmp_path, tmp_path_factory):
    """A finished run of this configuration, as if it had been trained here."""
    shutil.copytree(trained_snnet(tmp_path_factory) / "run", tmp_path / "pico", symlinks=True)
    return tmp_path / "pico"


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_second_run_does_not_overwrite_the_first(capsys, images, config, trained, tmp_path):
    before = content(trained)
    line = train(capsys, images, config, tmp_path)
    assert "already contains a run" in line
    assert "--resume" in line
    assert content(trained) == before


def test_resuming_another_run_into_this_folder(capsys, images, config, trained, tmp_path):
    other = shutil.copytree(trained, tmp_path / "other")
    before = content(trained)
    line = train(capsys, images, config, tmp_path, "--resume", other / "last.pth.tar")
    assert "already contains a run" in line
    assert content(trained) == before


def test_a_truncated_checkpoint(capsys, images, config, trained, tmp_path):
    bad = tmp_path / "bad.pth.tar"
    bad.write_bytes((trained / "last.pth.tar").read_bytes()[:5000])
    before = content(trained)
    line = train(capsys, images, config, tmp_path, "--experiment", "x", "--resume", bad)
    assert "is damaged (File is not a zip file)" in line
    assert content(trained) == before


def test_a_checkpoint_of_another_configuration(capsys, images, config, trained, tmp_path):
    last = trained / "last.pth.tar"
    other = write_config(tmp_path / "other.json", stitch_kernel_size=1)
    assert "stitch_kernel_size is 1 here, but 2 in" in train(capsys, images, other, tmp_path, "--resume", last)
    other = write_config(tmp_path / "other.json", anchors=pico_config()["anchors"][:2])
    assert "keys differ" in train(capsys, images, other, tmp_path, "--resume", last)
    assert "was trained with --opt adamw" in train(capsys, images, config, tmp_path, "--resume", last, "--opt", "sgd")
    assert "has no moving average" in train(capsys, images, config, tmp_path, "--resume", last, "--model-ema")
    # The same keys and another meaning.
    other = write_config(tmp_path / "other.json", stitched_final_norm=False)
    line = train(capsys, images, other, tmp_path, "--resume", last)
    assert "stitched_final_norm is False here, but True in" in line


def test_weights_of_others_cannot_be_resumed(capsys, images, config, trained, tmp_path):
    foreign = {"model": torch.load(trained / "last.pth.tar", weights_only=True)["state_dict"], "epoch": 49}
    torch.save(foreign, tmp_path / "released.pth")
    line = train(capsys, images, config, tmp_path, "--experiment", "x", "--resume", tmp_path / "released.pth")
    assert "--initial-checkpoint" in line


def evaluate(images, config, checkpoint, folder, *flags):
    arguments = ["train", images, "--stitch_config", config, "--eval", "--resume", checkpoint, "--output", folder]
    return [*arguments, "-j", "0", "--device", "cpu", *flags]


def test_results_of_another_configuration_or_checkpoint_are_kept(capsys, images, config, trained, tmp_path):
    last = trained / "last.pth.tar"
    few = ["--eval-stitches", "0-3"]
    assert main([str(x) for x in evaluate(images, config, last, tmp_path, *few)]) == 0
    results = (trained / "stitches_res.txt").read_bytes()
    anchors = pico_config()["anchors"]
    anchors[0]["label"] = "other"
    other = write_config(tmp_path / "other.json", anchors=anchors)
    line = refused(capsys, *evaluate(images, other, last, tmp_path, "--experiment", "pico"))
    assert "from another configuration" in line
    line = refused(capsys, *evaluate(images, config, trained / "checkpoint-0.pth.tar", tmp_path))
    assert "measured with weights_sha256" in line
    assert (trained / "stitches_res.txt").read_bytes() == results


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(capsys, images, config, tmp_path):
    """A learning rate at which the second epoch diverges; the first one's checkpoint stays."""
    flags = ["--opt", "sgd", "--lr", "1e18", "--epochs", "3", "--sched", "none"]
    line = train(capsys, images, config, tmp_path, *flags)
    assert "the loss is" in line
    assert "at step" in line
    assert "with route" in line


def test_a_diverged_epoch_is_never_saved(capsys, images, config, trained, tmp_path):
    """One step an epoch: the loss of the step was fine, and its update broke the weights."""
    before = (trained / "last.pth.tar").read_bytes()
    flags = ["-b", "64", "--lr", "1e30", "--epochs", "3"]
    line = train(capsys, images, config, tmp_path, "--resume", trained / "last.pth.tar", *flags)
    assert "not finite after epoch 3" in line
    assert (trained / "last.pth.tar").read_bytes() == before


def test_folders_that_cannot_be_written(capsys, images, config, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "cannot be created" in train(capsys, images, config, tmp_path / "file")
    assert "check the path" in refused(
        capsys, "profile", "--stitch_config", config, "--output", tmp_path / "file/x.txt"
    )
    assert "check the path" in refused(capsys, "demo-data", "digits", tmp_path / "file/digits")
    assert (tmp_path / "file").read_text() == "mine"


def test_profile_does_not_overwrite(capsys, config, tmp_path):
    (tmp_path / "costs.txt").write_text("mine")
    line = refused(capsys, "profile", "--stitch_config", config, "--output", tmp_path / "costs.txt")
    assert "exists" in line
    assert (tmp_path / "costs.txt").read_text() == "mine"


def test_pareto_of_costs_alone(capsys, config, tmp_path):
    assert main(["profile", "--stitch_config", str(config), "--output", str(tmp_path / "c.txt")]) == 0
    assert "no 'acc1'" in refused(capsys, "pareto", tmp_path / "c.txt")


def test_demo_data_does_not_touch_a_folder_of_others(capsys, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    assert "not empty" in refused(capsys, "demo-data", "digits", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


PIPE = """
import logging, sys
from stitchkit import cli
def run(*_):
    logging.basicConfig(level=logging.INFO, handlers=[cli._Lines(sys.stdout)])
    logging.getLogger().info('a line')
    return 0
cli._run = run
sys.exit(cli.main([]))
"""


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["-m", "stitchkit", "datasets", "list"], marks=pytest.mark.full, id="print"),
        pytest.param(["-c", PIPE], id="log"),
    ],
)
def test_a_pipe_that_nobody_reads_ends_a_command_quietly(command):
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([sys.executable, *command], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, b"")
