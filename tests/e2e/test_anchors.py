"""`--anchors`: from two checkpoints to an SN-Net that is trained, resumed, evaluated and picked from."""

import json
import logging

import pytest

import stitchkit
from stitchkit.cli import main
from stitchkit.measure.ledger import read_rows
from stitchkit.settings.stitch_config import StitchConfig
from tests.support import FLAGS, launch, write_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two trained models of one architecture, and an SN-Net of them, all by the commands."""
    folder = tmp_path_factory.mktemp("anchors")
    images = write_images(folder / "images")
    for width, depth in ((8, 3), (16, 4)):
        arguments = ("patch_size=8", f"embed_dim={width}", f"depth={depth}", "num_heads=2")
        train = ["train", images, "--model", "vit_tiny_patch16_224", "--model-kwargs", *arguments, "--img-size", "16"]
        assert run(*train, *FLAGS, "--output", folder, "--experiment", f"a{width}") == 0
    return folder


def run(*arguments):
    return main([str(argument) for argument in arguments])


def train(folder, *flags):
    both = ",".join(str(folder / name / "last.pth.tar") for name in ("a16", "a8"))
    return run("train", folder / "images", "--anchors", both, *FLAGS, "--output", folder, *flags)


def test_two_checkpoints_become_an_sn_net(folder, capsys, caplog):
    caplog.set_level(logging.INFO, "stitchkit")
    assert train(folder, "--dry-run") == 0
    said = caplog.text
    assert "blocks of the anchors, from cheap to costly: a8 3, a16 4; they were given in another order" in said
    assert "rule: proportional, 4 stitches" in said
    assert "network: 4 stitches, 20.3k to 80.6k FLOPs" in said
    place = folder / "a16+a8"
    assert not place.exists()

    assert train(folder) == 0
    log = (place / "log.txt").read_text()
    assert "rule: proportional" in log
    assert "network: 4 stitches, 20.3k to 80.6k FLOPs" in log
    config = StitchConfig.load(place / "stitch_config.json")
    assert [anchor.label for anchor in config.anchors] == ["a8", "a16"]
    assert config.rule == "proportional"

    settings = ["-c", place / "args.yaml"]
    assert run("train", *settings, "--resume", "auto", "--epochs", "3") == 0
    assert run("train", *settings, "--eval", "--resume", place / "last.pth.tar") == 0
    rows = read_rows(place / "stitches_res.txt")
    assert [row["cfg_id"] for row in rows] == [0, 1, 2, 3]
    capsys.readouterr()
    assert run("pick", place / "stitches_res.txt", "--max-flops", "40k") == 0
    assert f"stitchkit export -c {place}/eval_args.yaml" in capsys.readouterr().out
    assert run("export", "-c", place / "eval_args.yaml", "--cfg_id", "2", "-o", folder / "s2.safetensors") == 0


def test_profile_shows_the_plan_without_training(folder, capsys, caplog):
    caplog.set_level(logging.INFO, "stitchkit")
    both = f"{folder}/a16/last.pth.tar,{folder}/a8/last.pth.tar"
    assert run("profile", "--anchors", both) == 0
    assert "stage 0, a8 > a16: 2 joints" in caplog.text
    assert "4 stitches, 20.3k to 80.6k FLOPs" in capsys.readouterr().out


@pytest.mark.full  # two processes that import torch, and traces
def test_a_family_without_a_view_trains_on_two_ranks_and_is_evaluated(folder):
    both = "convnext_femto,convnext_atto"
    shared = ["--img-size", "32", "--output", folder, "--device", "cpu", "-j", "0"]
    command = [folder / "images", "--anchors", both, "--no-pretrained", *shared, "-b", "4", "--epochs", "1"]
    ran = launch(2, *command, "--warmup-epochs", "0", "--stitch-init-bs", "8")
    assert ran.returncode == 0, ran.stderr
    assert "Warning" not in ran.stderr, "torch has one about the gradients of ConvNeXt's 1x1 convolutions"
    place = folder / "convnext_femto+convnext_atto"
    config = StitchConfig.load(place / "stitch_config.json")
    assert [anchor.label for anchor in config.anchors] == ["convnext_atto", "convnext_femto"]
    assert config.stages == (0, 1, 2)
    assert run("train", "-c", place / "args.yaml", "--eval", "--resume", place / "last.pth.tar") == 0
    assert len(read_rows(place / "stitches_res.txt")) == 9
    model = stitchkit.create_snnet(place / "stitch_config.json", checkpoints=False, img_size=32, num_classes=4)
    stitchkit.load_checkpoint(model, place / "last.pth.tar")


def test_in_python_too(folder):
    model = stitchkit.create_snnet(anchors=[folder / name / "last.pth.tar" for name in ("a8", "a16")])
    assert model.num_classes == 4
    found = stitchkit.train(
        folder / "images", anchors=[str(folder / name / "last.pth.tar") for name in ("a8", "a16")], epochs=1,
        batch_size=8, workers=0, output=str(folder), experiment="python", warmup_epochs=0, device="cpu",
        stitch_init_bs=16,
    )  # fmt: skip
    assert json.loads((found.folder / "stitch_config.json").read_text())["recipe"]["opt"] == "adamw"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--stitch_config", "deit_ti_s_b"], "--stitch-config and --anchors cannot be combined"),
        (
            ["--model", "resnet18"],
            "give one of --stitch-config FILE, --anchors A,B, or --model NAME (a single network)",
        ),
        (["--pretrained-path", "x.pth"], "--pretrained-path is for --model"),
    ],
)
def test_anchors_stand_alone(flags, message, folder, capsys):
    assert train(folder, "--experiment", "refused", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "refused").exists()


def test_a_lost_checkpoint_is_noticed_before_torch_is_needed(folder, capsys):
    assert run("train", folder / "images", "--anchors", "resnet18,gone.pth", *FLAGS, "--output", folder) == 2
    assert "anchor 'gone.pth': checkpoint 'gone.pth' does not exist" in capsys.readouterr().err


def test_a_file_cannot_name_anchors(folder, capsys):
    path = folder / "mine.yaml"
    path.write_text("anchors: [resnet18, resnet50]\n")
    assert run("train", folder / "images", "-c", path) == 2
    assert "this file is a stitch configuration" in capsys.readouterr().err
