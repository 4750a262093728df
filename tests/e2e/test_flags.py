"""What flags of timm leave behind in a run: pictures, epochs, figures, compiled networks, runs of other packages."""

import csv
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from stitchkit.cli import main
from stitchkit.distributed import World
from stitchkit.engine.loop import save_batch, wait_for
from stitchkit.errors import InputError
from stitchkit.measure.ledger import read_rows
from stitchkit.settings.by_name import make_recipe
from stitchkit.training.train import open_tracking
from tests.support import FLAGS, ROOT, mostly_full, pico_anchor, pico_snnet, write_config


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path / "pico.json")


@pytest.fixture
def train(images, config, tmp_path):
    """Train for an epoch; gives the run's folder."""

    def run(name, *flags):
        common = [images, "--stitch_config", config, *FLAGS, "--epochs", "1", "--output", tmp_path]
        assert main(["train", *map(str, [*common, "--experiment", name, *flags])]) == 0
        return tmp_path / name

    return run


def content(folder):
    return torch.load(folder / "last.pth.tar", weights_only=True)


def test_batches_are_saved_as_pictures(train):
    folder = train("pictures", "--save-images", "--log-interval", "3")
    assert {path.name for path in folder.glob("*.jpg")} == {f"train-batch-{number}.jpg" for number in (2, 5, 7)}
    with Image.open(folder / "train-batch-2.jpg") as image:
        assert image.size == (8 * 16, 16)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_pictures_of_any_channels(channels, tmp_path):
    save_batch(torch.rand(4, channels, 8, 8), tmp_path / "batch.jpg")
    with Image.open(tmp_path / "batch.jpg") as image:
        assert image.size == (4 * 8, 8)


def test_a_run_can_start_at_an_epoch(train):
    folder = train("late", "--epochs", "5", "--start-epoch", "3")
    with (folder / "summary.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["3", "4"]
    before = content(folder)
    last = folder / "last.pth.tar"
    train("late", "--epochs", "5", "--start-epoch", "4", "--resume", last)
    assert content(folder)["history"].keys() == {3, 4}
    assert not torch.equal(
        content(folder)["state_dict"]["anchors.0.head.weight"], before["state_dict"]["anchors.0.head.weight"]
    )


def test_the_best_checkpoint_is_best_by_the_figure_asked_for(train):
    found = {name: content(train(name, "--eval-metric", name))["metric"] for name in ("top5", "loss")}
    assert found["top5"] == 100, "four classes"
    assert found["loss"] < 0


def summary(folder):
    with (folder / "summary.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.full
def test_the_best_checkpoint_is_best_by_the_weights_that_are_used(train, caplog):
    """With a moving average, `--eval` uses that, and it may be best in another epoch; on a CPU it is not judged."""
    caplog.set_level("INFO")
    folder = train("averaged", "--model-ema", "--model-ema-decay", "0.9", "--epochs", "2")
    assert "model_best is chosen by the moving average of the weights" in caplog.text
    for epoch, row in enumerate(summary(folder)):
        columns = [float(row[f"eval_{label}_ema_acc1"]) for label in ("ti", "s", "b")]
        assert content(folder)["history"][epoch] == pytest.approx(sum(columns) / 3)
    folder = train("forced", "--model-ema", "--model-ema-force-cpu")
    assert "model_best is chosen by the weights themselves: --model-ema-force-cpu" in caplog.text
    assert content(folder)["metric"] == pytest.approx(
        sum(float(summary(folder)[0][f"eval_{label}_acc1"]) for label in ("ti", "s", "b")) / 3
    )


@pytest.mark.parametrize("labels", mostly_full([["a_ema", "b_ema"], ["a", "a_ema"]], quick=[["a", "a_ema"]]))
def test_labels_may_end_like_those_of_moving_averages(labels, train, config):
    """Each network has a column of its own, and the epoch is ranked by the averages of all."""
    anchors = [pico_anchor(label, width) for label, width in zip(labels, (8, 16), strict=True)]
    write_config(config, anchors=anchors)
    folder = train("ends", "--model-ema")
    (row,) = summary(folder)
    columns = [column for column in row if column.endswith("_acc1")]
    assert columns[:2] == [f"eval_{label}_acc1" for label in labels]
    assert len(set(columns)) == 4
    assert content(folder)["metric"] == pytest.approx(sum(float(row[column]) for column in columns[2:]) / 2)


@pytest.mark.full
def test_printed_commands_run_where_a_path_has_spaces(images, tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    folder = tmp_path / "my runs; all of them"
    folder.mkdir()
    command = ["train", images, "--stitch_config", write_config(folder / "the config.json"), *FLAGS, "--epochs", "1"]
    assert main([*map(str, [*command, "--output", folder])]) == 0
    for begin in ("next, measure every stitch: ", "the front: ", "next, export it: "):
        (line,) = [line for line in [*caplog.messages, *capsys.readouterr().out.splitlines()] if begin in line]
        name, *words = shlex.split(line.partition(begin)[2])
        assert name == "stitchkit"
        caplog.clear()
        assert main(words) == 0
        if words[0] == "pareto":
            capsys.readouterr()
            assert main(["pick", words[1]]) == 0


def test_a_run_on_one_channel_of_another_shape(train):
    folder = train("grey", "--input-size", "1", "16", "24", "--gp", "avg", "--head-init-bias", "-1")
    assert content(folder)["state_dict"]["anchors.0.patch_embed.proj.weight"].shape[1] == 1


def test_low_precision_weights_fit_train_and_are_evaluated(train):
    folder = train("low", "--model-dtype", "bfloat16")
    assert {value.dtype for value in content(folder)["state_dict"].values()} == {torch.bfloat16}
    train("low", "--model-dtype", "bfloat16", "--eval", "--resume", folder / "last.pth.tar")
    assert len(read_rows(folder / "stitches_res.txt")) == len(pico_snnet().space)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_compiled_run_equals_one_that_is_not(train):
    """The blocks are traced and run as they are; weights, names and the ledger stay."""
    compiled = train("compiled", "--torchcompile", "eager", "--model-ema", "--grad-checkpointing")
    plain = train("plain", "--model-ema", "--grad-checkpointing")
    one, other = content(compiled), content(plain)
    for part in ("state_dict", "state_dict_ema"):
        assert one[part].keys() == other[part].keys()
        for key, value in one[part].items():
            torch.testing.assert_close(value, other[part][key], rtol=1e-4, atol=1e-5)
    rows = []
    for name, flags in (("compiled", ["--torchcompile", "eager"]), ("plain", [])):
        train(name, *flags, "--eval", "--resume", plain / "last.pth.tar")
        rows.append(read_rows(plain.parent / name / "stitches_res.txt"))
    for mine, theirs in zip(*rows, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert {**mine, "loss": 0} == {**theirs, "loss": 0}


def test_another_way_to_build_the_network_is_another_ledger(train, capsys, images, config, tmp_path):
    last = tmp_path / "net.pth"
    torch.save({"state_dict": pico_snnet().state_dict()}, last)
    train("built", "--eval", "--resume", last)
    arguments = [images, "--stitch_config", config, *FLAGS, "--output", tmp_path, "--experiment", "built", "--eval"]
    assert main(["train", *map(str, [*arguments, "--resume", last, "--fast-norm"])]) == 2
    assert "was measured with fast_norm False, now True" in capsys.readouterr().err


def test_steps_wait_for_the_device(train, monkeypatch):
    waited = []
    monkeypatch.setattr("stitchkit.engine.loop.wait_for", waited.append)
    folder = train("free")
    assert not waited
    assert not list(folder.glob("*.jpg")), "no pictures either"
    train("steps", "--synchronize-step")
    assert waited == [torch.device("cpu")] * 8


def test_a_gpu_is_waited_for_and_a_cpu_is_not(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    wait_for(torch.device("cpu"))
    assert not waited
    wait_for(torch.device("cuda"))
    assert waited == [torch.device("cuda")]


def test_batch_norms_are_not_synchronised_on_a_cpu(images, config, capsys):
    command = ["train", str(images), "--stitch_config", str(config), *FLAGS, "--sync-bn"]
    assert main(command) == 2
    assert "--sync-bn waits for other ranks, which run different stitches" in capsys.readouterr().err
    assert main([*command, "--sampling", "shared"]) == 2
    assert "--sync-bn needs GPUs, but the device is cpu; use --dist-bn reduce" in capsys.readouterr().err


def test_pretrained_path_names_a_missing_file(images, capsys, tmp_path):
    model = pico_anchor("a", 8)["name"]
    flags = [*FLAGS[1:], "--model", model, "--pretrained-path", str(tmp_path / "gone.pth"), "--output", str(tmp_path)]
    assert main(["train", str(images), *flags]) == 2
    assert "gone.pth' does not exist" in capsys.readouterr().err


def tracked(monkeypatch, folder, init, rank=0, **settings):
    """What `open_tracking` makes of settings, with `init` in place of wandb's."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "init", init)
    world = World(rank, 2, torch.device("cpu"))
    recipe = make_recipe({"log_wandb": True, **settings})
    return open_tracking(SimpleNamespace(recipe=recipe, world=world, folder=folder), 0).run


def test_wandb_resumes_a_run(monkeypatch, tmp_path):
    wanted = tracked(monkeypatch, tmp_path, lambda **options: options, wandb_resume_id="abc", wandb_project="p")
    assert (wanted["id"], wanted["resume"], wanted["project"], wanted["name"]) == ("abc", "must", "p", tmp_path.name)
    assert wanted["config"]["batch_size"] == 128
    fresh = tracked(monkeypatch, tmp_path, lambda **options: options, wandb_tags=["x", "y"])
    assert (fresh["resume"], fresh["tags"]) == (None, ["x", "y"])
    assert tracked(monkeypatch, tmp_path, lambda **_: pytest.fail("the primary rank alone logs"), rank=1) is None
    assert tracked(monkeypatch, tmp_path, lambda **_: pytest.fail("not asked for"), log_wandb=False) is None


def test_a_run_that_wandb_refuses(monkeypatch, tmp_path):
    def refused(**_):
        raise pytest.importorskip("wandb").Error("no such run")

    with pytest.raises(InputError, match="wandb rejects the run: Error: no such run"):
        tracked(monkeypatch, tmp_path, refused)


def test_figures_go_to_tensorboard(images, config, tmp_path):
    """Read back by tensorboard itself; an epoch that is trained again after a stop is there once."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = [*FLAGS, "--log-tensorboard", "--output", tmp_path, "--experiment", "logged"]
    folder = tmp_path / "logged"
    for more in (["--epochs", "2"], ["--epochs", "2", "--resume", folder / "checkpoint-0.pth.tar"]):
        assert main(list(map(str, ["train", images, "--stitch_config", config, *flags, *more]))) == 0
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    with (folder / "summary.csv").open() as file:
        summary = list(csv.DictReader(file))
    for name in ("train_loss", "eval_ti_acc1", "lr"):
        found = board.Scalars(name)
        assert [event.step for event in found] == [0, 1]
        assert [event.value for event in found] == pytest.approx([float(line[name]) for line in summary])
    with (folder / "losses.csv").open() as file:
        for line in csv.DictReader(file):
            found = {event.step: event.value for event in board.Scalars(f"stitch_loss/{line['cfg_id']}")}
            assert found[int(line["epoch"])] == pytest.approx(float(line["loss"]))


@pytest.mark.full
def test_figures_go_to_wandb(images, config, tmp_path):
    """The real package, which writes what it would send into a file."""
    pytest.importorskip("wandb")
    flags = [*FLAGS, "--epochs", "1", "--log-wandb", "--wandb-project", "our-project", "--wandb-tags", "our-tag"]
    command = [sys.executable, "-m", "stitchkit", "train", images, "--stitch_config", config, *flags]
    command += ["--output", tmp_path, "--experiment", "logged"]
    environment = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    result = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (log,) = (tmp_path / "logged/wandb").glob("offline-run-*/*.wandb")
    written = log.read_bytes()
    for expected in (
        b"our-project",
        b"our-tag",
        b"logged",
        b"train_loss",
        b"eval_ti_acc1",
        b"stitch_loss/",
        b"stitch_init_bs",
    ):
        assert expected in written
