"""Batch-norm statistics of one network alone."""

import copy

import pytest
import torch
import yaml
from torch import nn

from stitchkit.cli import main
from stitchkit.measure.ledger import read_rows
from stitchkit.measure.recalibrate import own_norms, renew, with_calibration
from stitchkit.settings.by_name import make_recipe
from stitchkit.settings.stitch_config import StitchConfig
from stitchkit.training.own_statistics import spread
from stitchkit.training.preserve import freeze_anchors
from stitchkit.training.run import TrainRun
from tests.support import FAMILIES, FLAGS, ROOT, family_snnet, pico_images, pico_snnet, write_config


def test_statistics_are_the_plain_mean_over_batches():
    norm = nn.BatchNorm2d(1, momentum=0.3)
    norm.running_mean.fill_(9)
    batches = [torch.full((2, 1, 2, 2), 1.0), torch.full((2, 1, 2, 2), 4.0)]
    renew(norm, batches)
    assert norm.running_mean.item() == 2.5
    assert norm.running_var.item() == 0.0
    assert norm.momentum == 0.3


def test_only_batch_norms_are_in_training_mode():
    seen = {}
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.9))
    for name, part in net.named_children():
        part.register_forward_hook(lambda part, *_, name=name: seen.update({name: part.training}))
    renew(net.train(), [pico_images()])
    assert seen == {"0": False, "1": True, "2": False}
    assert net.training
    assert net[2].training


def test_networks_without_batch_norm_need_no_image():
    def none():
        raise AssertionError("an image was read")
        yield

    renew(pico_snnet().extract(4), none())


def test_a_stitch_gets_its_own_and_the_sn_net_keeps_its_statistics():
    """In training mode a norm sees its batch; recalibrated on that batch, evaluation sees the same."""
    model = family_snnet("resnet")
    before = copy.deepcopy(model.state_dict())
    x = pico_images(8, size=64)
    for cfg_id in (1, 3):
        net = model.extract(cfg_id)
        renew(net, [x])
        # Training mode divides by n, running statistics hold the variance by n - 1.
        torch.testing.assert_close(net(x), copy.deepcopy(net).train()(x), rtol=0.05, atol=0.05)
        assert (net(x) - model(x, cfg_id)).abs().max() > 0.1
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recalibrate")
    config = write_config(folder / "resnet.json", anchors=FAMILIES["resnet"]["anchors"])
    common = ["train", str(images), "--stitch_config", str(config), *FLAGS, "--output", str(folder)]
    assert main([*common, "--epochs", "1"]) == 0
    return folder, [*common, "--eval", "--resume", str(folder / "resnet/last.pth.tar")]


@pytest.mark.full
def test_an_evaluation_recalibrates_stitched_routes_alone(trained):
    folder, command = trained
    weights = (folder / "resnet/last.pth.tar").read_bytes()
    rows, numbers = {}, {"shared": "0", "two": "2", "default": ""}
    for name, number in numbers.items():
        given = ["--recalibrate-bn", number] if number else []
        assert main([*command, *given, "--experiment", name]) == 0
        rows[name] = read_rows(folder / name / "stitches_res.txt")
        said = {"shared": "", "default": "5 routes, chosen on held-out training images: "}
        assert (
            said.get(name, "5 routes are renewed, as --recalibrate-bn says") in (folder / name / "log.txt").read_text()
        )
    for pair in zip(rows["two"][:2], rows["shared"][:2], strict=True):
        # Others have other accuracies, with which these are compared.
        own, shared = ({key: row[key] for key in row if key not in ("p_front", "tied_with")} for row in pair)
        assert own == shared | {"loss": pytest.approx(shared["loss"], rel=1e-6)}, "uncut anchors stay as they are"
    assert all(own["loss"] != shared["loss"] for own, shared in zip(rows["two"][2:], rows["shared"][2:], strict=True))
    assert [row["flops"] for row in rows["two"]] == [row["flops"] for row in rows["shared"]]
    assert (folder / "resnet/last.pth.tar").read_bytes() == weights
    assert [row.get("recalibrate_bn") for row in rows["two"]] == [None, None, 2, 2, 2, 2, 2]
    for name in ("stitches_res.yaml", "eval_args.yaml"):
        assert yaml.safe_load((folder / "default" / name).read_text())["recalibrate_bn"] is None, "they compete"
        assert yaml.safe_load((folder / "two" / name).read_text())["recalibrate_bn"] == 2
    assert yaml.safe_load((folder / "resnet/args.yaml").read_text())["recalibrate_bn"] is None, "an evaluation decides"


@pytest.mark.full
def test_law_8_an_evaluation_in_parts_is_one_in_one_go(trained):
    folder, command = trained
    for stitches in ("0,4", "1-6"):
        assert main([*command, "--experiment", "parts", "--eval-stitches", stitches]) == 0
    assert main([*command, "--experiment", "whole"]) == 0
    parts, whole = (read_rows(folder / name / "stitches_res.txt") for name in ("parts", "whole"))
    assert sorted(parts, key=lambda row: row["cfg_id"]) == sorted(whole, key=lambda row: row["cfg_id"])


def calibration(anchors, **changes):
    config = StitchConfig.parse({"anchors": anchors, **changes})
    dense = config.dense.settings if config.dense else {}
    recipe = make_recipe({"stitch_config": "-", "eval": True, **config.recipe, **dense})
    return with_calibration(recipe, config).run.recalibrate_bn


def test_the_anchors_decide_unless_the_configuration_does():
    resnets, vits = FAMILIES["resnet"]["anchors"], FAMILIES["vit"]["anchors"]
    assert calibration(resnets) is calibration(FAMILIES["levit"]["anchors"]) is None, "statistics compete"
    assert calibration(vits) == 0
    assert calibration(resnets, recipe={"recalibrate_bn": 0}) == 0
    assert calibration(resnets, epochs=30, data_set="IMNET") == 0, "a file of the published code"
    assert calibration(resnets, epochs=30) is None, "one's own, with a published key"
    config = StitchConfig.parse({"anchors": resnets})
    assert TrainRun().completed(make_recipe({"stitch_config": "-"}), config, {}).run.recalibrate_bn is None
    assert with_calibration(make_recipe({"model": "resnet18", "eval": True}), None).run.recalibrate_bn == 0


def test_a_head_with_batch_norms_decides_as_well():
    """All routes share it, whatever the anchors have."""
    vits = FAMILIES["vit"]["anchors"]
    for head in ("setr", "linear"):
        assert calibration(vits, dense={"task": "segmentation", "head": head}) is None
    dense = {"task": "segmentation", "head": "setr"}
    assert calibration(vits, dense=dense, recipe={"recalibrate_bn": 0}) == 0
    assert calibration(vits, dense={"task": "depth", "head": "dpt"}) == 0
    assert calibration(FAMILIES["resnet"]["anchors"], dense={"task": "depth", "head": "dpt"}) is None


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.json")), ids=lambda path: path.stem)
def test_published_results_are_those_of_shared_statistics(path):
    """Those of the paper, and of digits in `results`; the demo of scenes has batch norms, and nothing published."""
    config = StitchConfig.load(path)
    if path.stem.startswith(("ade20k", "coco_stuff", "nyuv2")):
        assert config.recipe["recalibrate_bn"] == 0, "it is said, whatever the default is"
    recipe = make_recipe({**config.recipe, "eval": True})
    assert with_calibration(recipe, config).run.recalibrate_bn == (None if path.stem == "scenes_resnet" else 0)


def test_an_evaluation_without_training_images_says_what_to_do(trained, images, tmp_path, capsys):
    _, command = trained
    (tmp_path / "validation").symlink_to(images / "validation")
    alone = ["train", str(tmp_path), *command[2:], "--experiment", "alone"]
    assert main(alone) == 2
    assert "recalibrated with training images, or kept with --recalibrate-bn 0: " in capsys.readouterr().err
    assert main([*alone, "--recalibrate-bn", "0", "--eval-stitches", "2"]) == 0


def test_routes_without_batch_norms_get_no_statistics():
    model, vits = family_snnet("resnet to swin"), pico_snnet()
    assert [cfg_id for cfg_id in model.space.ids if own_norms(model, cfg_id)] == [2, 3, 4, 5]
    assert not any(own_norms(model, cfg_id, keeps_anchors=True) for cfg_id in model.space.ids)
    assert not any(own_norms(vits, cfg_id) for cfg_id in vits.space.ids)


def test_recalibration_belongs_to_evaluation(images, trained, capsys):
    _, command = trained
    training = [flag for flag in command if flag != "--eval"]
    assert main([*training, "--recalibrate-bn", "2"]) == 2
    assert "--recalibrate-bn has no effect on its own; add --eval" in capsys.readouterr().err


def test_a_ledger_keeps_to_one_calibration_of_which_all_rows_have_the_images(trained, capsys):
    folder, command = trained
    command = [*command, "--experiment", "batches", "--recalibrate-bn"]
    assert main([*command, "2", "--eval-stitches", "2,4"]) == 0
    assert main([*command, "3"]) == 2
    assert "was measured with recalibrate_bn 2, now 3" in capsys.readouterr().err
    assert main([*command, "2", "--seed", "7"]) == 2
    assert "was measured with seed 42, now 7" in capsys.readouterr().err
    assert main([*command[:-2], "again", "--recalibrate-bn", "2", "--eval-stitches", "4"]) == 0
    (again,) = read_rows(folder / "again/stitches_res.txt")
    both = read_rows(folder / "batches/stitches_res.txt")
    assert again["loss"] == both[-1]["loss"], "the same images for every stitch and every run"


def test_networks_of_frozen_anchors_keep_their_statistics():
    """Only the stitching layers learn, so nothing that belongs to an anchor moves."""
    for family in ("resnet", "levit"):
        model = family_snnet(family)
        freeze_anchors(model)
        model.train()
        before = {name: value.clone() for name, value in model.anchors.state_dict().items()}
        model(pico_images(4, size=64), len(model.anchors))
        assert all(torch.equal(value, before[name]) for name, value in model.anchors.state_dict().items())
        assert model.train().stitch_layers.training


def test_calibration_batches_make_no_step(trained):
    """A recipe that accumulates gradients over more batches than are asked for says nothing about an evaluation."""
    _, command = trained
    assert (
        main(
            [
                *command,
                "--experiment",
                "one",
                "--eval-stitches",
                "2",
                "--recalibrate-bn",
                "1",
                "--grad-accum-steps",
                "8",
            ]
        )
        == 0
    )


@pytest.mark.full
def test_an_export_with_more_loader_processes_than_cores_says_nothing_of_them(tmp_path, images, monkeypatch):
    """Warnings are errors in tests."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    config, checkpoint = tmp_path / "resnet.json", tmp_path / "last.pth.tar"
    write_config(config, **FAMILIES["resnet"] | {"recipe": {"img_size": 32, "batch_size": 8, "workers": 2}})
    torch.save({"state_dict": family_snnet("resnet").state_dict()}, checkpoint)
    flags = ["--stitch_config", str(config), "--resume", str(checkpoint), "--recalibrate-bn", "1", "--cfg_id", "4"]
    assert main(["export", *flags, "--data", str(images), "-o", str(tmp_path / "net.safetensors")]) == 0


def test_windows_of_a_batch_are_spread_over_portions_that_fit():
    windows = torch.arange(9.0)[:, None, None, None]
    portions = [part.flatten().tolist() for part in spread(windows, 4)]
    assert portions == [[0, 3, 6], [1, 4, 7], [2, 5, 8]], "each has windows of all images"
    assert [len(part) for part in spread(windows, 9)] == [9], "one window of each image: as it is"
