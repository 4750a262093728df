"""A stitch of every family as a file of every format: it computes what the SN-Net does."""

import json
import os
import re
import shutil
from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.data import resolve_model_data_config

import stitchkit
from stitchkit.cli import main
from stitchkit.errors import InputError
from stitchkit.measure.ledger import read_rows
from stitchkit.measure.per_image import PerImage
from stitchkit.measure.scores import AccuracyScore
from stitchkit.settings.recipe import ModelRecipe, Recipe
from stitchkit.ship.description import portable
from stitchkit.ship.export import export
from stitchkit.ship.stitch_files import FORMATS
from stitchkit.ship.trained_snnet import Trained, describe, open_trained, sample_images
from tests.networks import TRACED
from tests.results import pareto_like
from tests.support import (
    FAMILIES,
    QUICK_SPACES,
    SPACES,
    family_snnet,
    mostly_full,
    pico_config,
    pico_snnet,
    randomize,
    weights,
    write_config,
    write_images,
)

# One of each published family, and all paths of networks that are traced, for the formats that take seconds to write.
# A file for ONNX is made from a program of torch.export, so that what cannot be in .pt2 cannot be in .onnx.
SLOW_FORMATS = [
    *(
        (family, ".onnx")
        for family in (
            *("vit without final norm, all pairs", "swin", "resnet", "resnet to swin", "levit"),
            *("vits of other grids and tokens, both ways", "resnet and vit, both ways"),
            *[*TRACED][::2],
        )
    ),
    *((family, ".pt2") for family in ("swin", "resnet", "levit", "NCHW, batch norm", "NLC, 5 prefix tokens")),
]


pytestmark = pytest.mark.usefixtures("short_timing")


def trained(family):
    return Trained(family_snnet(family), stitchkit.StitchConfig.parse(SPACES[family]), Recipe(), ("a", "b", "c", "d"))


def images_for(model, number=5):
    return torch.randn(number, *model.input_size, generator=torch.Generator().manual_seed(3))


def exported(subject, cfg_id, path):
    return export(subject.model, cfg_id, path, images_for(subject.model), describe(subject, cfg_id))


def shortest(model):
    """The stitch of the fewest blocks that is not an anchor."""
    routes = [
        (sum(part.stop - part.start for part in stitch.segments), i) for i, stitch in model.space.stitches.items()
    ]
    return min(routes[model.space.num_anchors :])[1]


@pytest.mark.parametrize(
    ("opset", "form", "runtime"),
    mostly_full([(None, 10, "1.18"), (18, 8, "1.14"), (17, 8, "1.12")], quick=[]),
)
def test_an_onnx_file_says_which_runtime_reads_it(opset, form, runtime, tmp_path):
    """And `--opset` lowers that; the file still equals the SN-Net, as whoever writes it compares."""
    subject, path = trained("vit"), tmp_path / "net.onnx"
    report = export(subject.model, 4, path, images_for(subject.model), describe(subject, 4), opset=opset)
    model = onnx.load(path)
    (found,) = (each.version for each in model.opset_import)
    assert model.ir_version == form
    assert opset in (None, found)
    assert report.reader == f"opset {found}, read by ONNX Runtime {runtime} and newer"


@pytest.mark.full
def test_an_opset_that_is_too_low_is_refused(tmp_path):
    subject, path = trained("vit"), tmp_path / "net.onnx"
    with pytest.raises(InputError, match=r"--opset 11 lacks operators of this network; give a higher one, such as \d+"):
        export(subject.model, 4, path, images_for(subject.model), describe(subject, 4), opset=11)
    assert not path.exists()


def test_an_opset_is_for_onnx(tmp_path, capsys):
    assert main(["export", "--cfg_id", "1", "-o", str(tmp_path / "net.pt2"), "--opset", "17"]) == 2
    assert "--opset is for .onnx files, not .pt2" in capsys.readouterr().err


@pytest.mark.parametrize("family", mostly_full(QUICK_SPACES, quick=["vit without final norm, all pairs", "levit"]))
def test_safetensors_of_every_family_equal_the_snnet(family, tmp_path):
    subject = trained(family)
    model, images = subject.model, images_for(subject.model, 2)
    for cfg_id in {0, shortest(model), model.space.ids[-1]}:
        path = tmp_path / f"{cfg_id}.safetensors"
        report = exported(subject, cfg_id, path)
        net, alone = stitchkit.load_stitch(path), model.extract(cfg_id)
        assert all(found.largest == 0 for found in report.differences.values())
        assert (report.same_top1, report.images) == (5 if model.num_classes else None, 5)
        assert torch.equal(net(images), model(images, cfg_id))
        assert {name: value.shape for name, value in net.named_parameters()} == {
            name: value.shape for name, value in alone.named_parameters()
        }


@pytest.mark.parametrize(
    ("family", "suffix"),
    mostly_full(
        SLOW_FORMATS,
        quick=[],  # the command below writes .onnx; .pt2 and the other formats take seconds each
    ),
)
def test_slow_formats_of_every_family_agree_with_the_snnet(family, suffix, tmp_path):
    subject = trained(family)
    cfg_id, path = shortest(subject.model), tmp_path / f"net{suffix}"
    report = exported(subject, cfg_id, path)
    assert all(found.largest <= 1e-4 for found in report.differences.values())
    assert report.same_top1 == (5 if subject.model.num_classes else None)
    net = FORMATS[suffix].read(path)
    for number in (1, 2, 7):
        images = images_for(subject.model, number)
        found = net(images) if subject.model.num_classes else net(images)["pooled"]
        torch.testing.assert_close(found, subject.model(images, cfg_id), atol=1e-4, rtol=0)
    extra = {"stitchkit.json": ""}
    if suffix == ".pt2":
        torch.export.load(path, extra_files=extra)
    else:
        extra["stitchkit.json"] = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map["stitchkit"]
    assert json.loads(extra["stitchkit.json"])["stitch"] == subject.model.space[cfg_id].name
    content = path.read_bytes()
    for place in (os.getcwd(), str(tmp_path), "site-packages"):
        assert place.encode() not in content


def test_a_stitch_is_loaded_without_other_anchors_files_or_network(tmp_path, monkeypatch):
    config = json.loads(json.dumps(FAMILIES["vit"]))
    for anchor in config["anchors"]:
        anchor["checkpoint"] = "/nowhere/weights.pth"
    subject = Trained(family_snnet("vit"), stitchkit.StitchConfig.parse(config), Recipe(), ())
    cfg_id = next(i for i, s in enumerate(subject.model.space) if {g.anchor for g in s.segments} == {"ti", "s"})
    exported(subject, cfg_id, tmp_path / "net.safetensors")
    built = []
    create = stitchkit.ship.description.create_anchor
    monkeypatch.setattr(
        "stitchkit.ship.description.create_anchor", lambda *a, **k: built.append(a[0].label) or create(*a, **k)
    )
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    net = stitchkit.load_stitch(tmp_path / "net.safetensors")
    assert sorted(built) == ["s", "ti"]
    assert not net.training
    assert net.about["stitch"] == subject.model.space[cfg_id].name
    assert b"nowhere" not in (tmp_path / "net.safetensors").read_bytes()


def test_settings_that_shape_a_network_go_into_the_file(tmp_path):
    """Other classes, size, channels, pooling and epsilon than the configuration's."""
    recipe = Recipe(model=ModelRecipe(gp="avg", bn_eps=0.1))
    config = stitchkit.StitchConfig.parse(FAMILIES["resnet"])
    options = {"num_classes": 7, "img_size": 32, "in_chans": 1}
    model = stitchkit.create_snnet(config, **options).eval()
    randomize(model)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.eps = 0.1
    exported(Trained(model, config, recipe, ()), 3, tmp_path / "resnet.safetensors")
    net = stitchkit.load_stitch(tmp_path / "resnet.safetensors")
    assert resolve_model_data_config(net)["input_size"] == (1, 32, 32)
    vit = stitchkit.StitchConfig.parse(pico_config())
    model = stitchkit.create_snnet(vit, global_pool="avg", img_size=32, **{"num_classes": 5}).eval()
    exported(Trained(model, vit, recipe, ()), 3, tmp_path / "vit.safetensors")
    assert stitchkit.load_stitch(tmp_path / "vit.safetensors")(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


@pytest.fixture(scope="module")
def judged():
    """An SN-Net and its ledger."""
    model = pico_snnet()
    return model, pareto_like(model)


@pytest.fixture
def run(tmp_path, images, judged):
    """The files of a run: configuration, checkpoint, ledger; and a way to export from them."""
    config = write_config(tmp_path / "pico.json", recipe={"mean": [0.2], "std": [0.4]})
    model, rows = judged[0], [dict(row) for row in judged[1]]
    classes = [f"class{number}" for number in range(4)]
    plain = stitchkit.StitchConfig.load(config).to_dict()
    state = {"state_dict": model.state_dict(), "stitch_config": plain, "classes": classes, "input_size": [3, 16, 16]}
    torch.save(state, tmp_path / "last.pth.tar")
    (tmp_path / "ledger.txt").write_text("".join(json.dumps(row) + "\n" for row in rows))

    class Run:
        def __init__(self):
            self.folder, self.model, self.rows, self.classes = tmp_path, model, rows, classes
            self.flags = ["--stitch_config", config, "--resume", tmp_path / "last.pth.tar"]

        def export(self, *flags):
            return main([str(flag) for flag in ("export", *self.flags, *flags)])

        def files(self):
            return {path.name for path in tmp_path.iterdir()}

    return Run()


def test_the_command_compares_on_images_of_the_validation_split(run, images, capsys):
    path = run.folder / "net.safetensors"
    assert run.export("--cfg_id", 9, "--data", images, "-o", path) == 0
    output = capsys.readouterr().out
    assert f"stitch 9, {run.model.space[9]}, is in {path}; compared on 20 images from the validation split" in output
    assert "same top-1 class on 20 of 20" in output
    assert len(re.findall(r"\d+\.\d+ MiB +\d+\.\d+ ms an image", output)) == 2
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["stitchkit"])
    assert about["classes"] == run.classes
    assert about["input"]["mean"] == [0.2, 0.2, 0.2]
    assert path.stat().st_mode & 0o777 == (run.folder / "ledger.txt").stat().st_mode & 0o777


def test_the_sample_is_prepared_as_in_evaluation_and_spread_over_the_classes(run, images):
    settings = {"stitch_config": str(run.flags[1]), "resume": str(run.flags[3]), "data_dir": str(images)}
    found, where = sample_images(open_trained(settings), 4)
    levels = found.mean((1, 2, 3)) * 0.4 + 0.2
    # In the image folder a class is a brightness.
    torch.testing.assert_close(levels, (torch.arange(4) * 60 + 30) / 255, atol=0.02, rtol=0)
    assert "validation split" in where


def test_unreadable_images_are_left_out_of_the_sample(run, tmp_path, capsys):
    images = write_images(tmp_path / "images", train=1, validation=5)
    export = ["--cfg_id", 9, "--data", images, "-o", run.folder / "net.safetensors"]
    files = sorted((images / "validation").rglob("*.png"))
    files[7].write_bytes(b"")
    Image.new("RGB", (20_000, 1)).save(files[8])
    assert run.export(*export) == 0
    assert "compared on 18 images from the validation split" in capsys.readouterr().out
    for file in files:
        file.write_bytes(b"")
    assert run.export(*export[:-1], run.folder / "other.safetensors") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "6 of 20 images of the validation split cannot be read or have no class, such as 'class" in line


def test_the_ledger_and_a_budget_choose_the_stitch(run, capsys):
    limit = sorted(row["flops"] for row in run.rows)[6]
    best = max((row for row in run.rows if row["flops"] <= limit), key=lambda row: row["acc1"])
    flags = ["--ledger", run.folder / "ledger.txt", "--max-flops", limit]
    assert run.export(*flags, "-o", run.folder / "net.safetensors") == 0
    output = capsys.readouterr().out
    assert f"stitch {best['cfg_id']}, {best['stitch']}, is in" in output
    assert "64 images of seeded noise, since there is no --data" in output
    assert stitchkit.load_stitch(run.folder / "net.safetensors").about["cfg_id"] == best["cfg_id"]


def test_the_command_writes_onnx_that_runs_elsewhere(run, images, capsys):
    path = run.folder / "net.onnx"
    assert run.export("--cfg_id", 9, "--data", images, "-o", path, "--opset", 17) == 0
    output = capsys.readouterr().out
    assert len(output.splitlines()) == 6
    assert "opset 17, read by ONNX Runtime 1.12 and newer" in output
    assert not [
        place for place in (os.getcwd(), str(run.folder), "site-packages") if place.encode() in path.read_bytes()
    ]
    session = onnxruntime.InferenceSession(path)
    assert [(value.name, value.shape) for value in session.get_inputs()] == [("images", ["batch", 3, 16, 16])]
    batch = images_for(run.model, 6)
    (logits,) = session.run(["logits"], {"images": batch.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), run.model(batch, 9).detach(), atol=1e-4, rtol=0)
    assert json.loads(session.get_modelmeta().custom_metadata_map["stitchkit"])["stitch"] == run.model.space[9].name


def test_the_moving_average_is_exported_on_request(run):
    state = torch.load(run.flags[3], weights_only=True)
    average = {name: value * 0.5 for name, value in state["state_dict"].items()}
    torch.save(state | {"state_dict_ema": average}, run.flags[3])
    assert run.export("--cfg_id", 0, "--model-ema", "-o", run.folder / "net.safetensors") == 0
    found = load_file(run.folder / "net.safetensors")["head.part.head.weight"]
    assert torch.equal(found, weights(run.flags[3])["anchors.0.head.weight"] * 0.5)


@pytest.mark.parametrize("wrong", mostly_full(["other logits", "no number", "other shape"], quick=["no number"]))
def test_a_file_that_computes_something_else_does_not_stay(run, monkeypatch, capsys, wrong):
    changes = {
        "other logits": lambda y: y + 1e-3,
        "no number": lambda y: y * torch.nan,
        "other shape": lambda y: y[:, 1:],
    }

    class Wrong(torch.nn.Module):
        def forward(self, x):
            return changes[wrong](run.model(x, 9))

    monkeypatch.setitem(FORMATS, ".safetensors", FORMATS[".safetensors"]._replace(read=lambda path: Wrong()))
    before = run.files()
    assert run.export("--cfg_id", 9, "-o", run.folder / "net.safetensors") == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert run.files() == before


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("no such\noperator"), "RuntimeError: no such operator; try another suffix"),
        (
            OSError(28, "No space left on device"),
            "net.onnx' cannot be written: No space left on device; check the disk",
        ),
    ],
)
def test_an_exporter_that_gives_up_leaves_nothing(run, monkeypatch, capsys, error, message):
    def write(net, about, path):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setitem(FORMATS, ".onnx", FORMATS[".onnx"]._replace(write=write))
    before = run.files()
    assert run.export("--cfg_id", 9, "-o", run.folder / "net.onnx") == 2
    assert message in capsys.readouterr().err
    assert run.files() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cfg_id", "9", "-o", "net.onx"], "did you mean '.onnx'?"),
        (["--cfg_id", "9", "-o", "net"], "allowed: .safetensors, .onnx, .pt2"),
        (["--cfg_id", "17", "-o", "net.pt2"], "cfg_id 17 does not exist; this space has 0 to 16"),
        (["--cfg_id", "-1", "-o", "net.pt2"], "cfg_id -1 does not exist"),
        (["-o", "net.pt2"], "give either --cfg-id N, or --ledger FILE"),
        (["--cfg_id", "9", "--ledger", "ledger.txt", "-o", "net.pt2"], "give either --cfg-id N, or --ledger FILE"),
        (["--cfg_id", "9", "--max-flops", "1G", "-o", "net.pt2"], "already names a stitch"),
        (["--ledger", "ledger.txt", "--max-flops", "5", "-o", "net.pt2"], "the nearest miss is cfg_id 0"),
        (["--cfg_id", "9", "-o", "ledger.txt"], "suffix of an export"),
        (["--cfg_id", "9", "-o", "there.onnx"], "exists; choose another file"),
        (["--cfg_id", "9", "-o", "nowhere/net.onnx"], "folder 'nowhere' does not exist"),
        (["--cfg_id", "9", "--data", "nowhere", "-o", "net.pt2"], "data folder 'nowhere' does not exist"),
        (["--cfg_id", "9", "--img-size", "64", "-o", "net.pt2"], "belongs to another configuration"),
        (["--cfg_id", "9", "--model-ema", "-o", "net.pt2"], "holds no moving average"),
        (["--cfg_id", "9", "--resume", "ledger.txt", "-o", "net.pt2"], "it is truncated, or not a checkpoint"),
    ],
)
def test_bad_input_ends_with_one_line_and_no_file(run, flags, message, monkeypatch, capsys):
    monkeypatch.chdir(run.folder)
    (run.folder / "there.onnx").touch()
    before = run.files()
    assert run.export(*flags) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert message in error[0]
    assert run.files() == before


def test_a_stitch_that_does_not_exist_is_refused_before_weights_are_read(run, capsys):
    run.flags[3].write_text("damaged")
    assert run.export("--cfg_id", 99, "-o", run.folder / "net.onnx") == 2
    assert "cfg_id 99 does not exist; this space has 0 to 16" in capsys.readouterr().err


def test_a_checkpoint_of_another_rule_is_refused(run, capsys):
    state = torch.load(run.flags[3], weights_only=True)
    state["stitch_config"]["stitched_final_norm"] = False
    torch.save(state, run.flags[3])
    assert run.export("--cfg_id", 9, "-o", run.folder / "net.onnx") == 2
    assert "stitched_final_norm is True here, but False in the checkpoint" in capsys.readouterr().err


def test_anchors_of_the_same_shapes_that_compute_something_else_are_refused(run, capsys):
    config = json.loads(run.flags[1].read_text())
    config["anchors"][1]["kwargs"]["num_heads"] = 4
    config["anchors"][2]["name"] = "deit_tiny_patch16_224"
    run.flags[1].write_text(json.dumps(config))
    budget = ["--ledger", run.folder / "ledger.txt", "--max-flops", "1G", "-o", run.folder / "net.safetensors"]
    assert run.export(*budget) == 2
    line = capsys.readouterr().err
    assert "num_heads of anchor 's' is 4 here, but 2 in the checkpoint" in line
    assert "anchor 'b' is 'deit_tiny_patch16_224' here, but " in line
    assert not (run.folder / "net.safetensors").exists()


def test_other_labels_tags_and_sizes_are_the_same_network(run):
    state = torch.load(run.flags[3], weights_only=True)
    for anchor in state["stitch_config"]["anchors"]:
        anchor |= {"name": anchor["name"] + ".augreg_in21k", "label": "old", "checkpoint": "gone.pth"}
        anchor["kwargs"] |= {"img_size": 224, "num_classes": 1000, "drop_path_rate": 0.1}
    torch.save(state, run.flags[3])
    assert run.export("--cfg_id", 9, "-o", run.folder / "net.safetensors") == 0


def test_a_recalibrated_stitch_is_exported_as_it_was_measured(tmp_path, images, capsys):
    """`--eval --recalibrate-bn` and the export of the same stitch: one accuracy."""
    config, checkpoint = tmp_path / "resnet.json", tmp_path / "last.pth.tar"
    config.write_text(json.dumps(FAMILIES["resnet"] | {"recipe": {"img_size": 32, "batch_size": 8, "workers": 0}}))
    model = stitchkit.create_snnet(config, img_size=32).eval()
    randomize(model)
    torch.save({"state_dict": model.state_dict()}, checkpoint)
    flags = ["--stitch_config", str(config), "--resume", str(checkpoint), "--recalibrate-bn", "3"]
    evaluation = ["train", str(images), *flags, "--eval", "--device", "cpu", "--output", str(tmp_path)]
    assert main([*evaluation, "--eval-stitches", "4"]) == 0
    (row,) = read_rows(tmp_path / "resnet/stitches_res.txt")

    path, ledger = tmp_path / "net.safetensors", str(tmp_path / "resnet/stitches_res.txt")
    export_flags = ["-o", str(path), "--data", str(images), "--ledger", ledger]
    assert main(["export", *flags[:-2], *export_flags, "--recalibrate-bn", "0"]) == 2
    assert "measured with recalibrate_bn 3, not 0; give the same --recalibrate-bn" in capsys.readouterr().err
    for given in (flags, flags[:-2]):
        assert main(["export", *given, "-o", str(path), "--cfg_id", "4"]) == 2
        said = "recalibrating the batch norms of stitch 4, as in --eval, requires training images; add --data DIR"
        assert said in capsys.readouterr().err
    alone = tmp_path / "alone.safetensors"  # an uncut anchor, and a stitch as the checkpoint has it
    assert main(["export", *flags[:-2], "-o", str(alone), "--cfg_id", "1"]) == 0
    kept = tmp_path / "kept.safetensors"
    assert main(["export", *flags[:-2], "-o", str(kept), "--cfg_id", "4", "--recalibrate-bn", "0"]) == 0
    assert main(["export", *flags[:-2], *export_flags[:2], *export_flags[4:]]) == 0, "as the ledger was measured"
    settings = {"stitch_config": str(config), "resume": str(checkpoint), "data_dir": str(images), "img_size": 32}
    everything, _ = sample_images(open_trained(settings), 20)
    labels = torch.arange(4).repeat_interleave(5)
    logits = stitchkit.load_stitch(path)(everything)
    assert torch.nn.functional.cross_entropy(logits, labels).item() == pytest.approx(row["loss"], rel=1e-4)
    assert not torch.allclose(logits, model(everything, 4))
    assert torch.equal(stitchkit.load_stitch(kept)(everything), model(everything, 4))
    assert torch.equal(stitchkit.load_stitch(alone)(everything), model(everything, 1))


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ("weights_sha256: '00'", "measured with other weights than"),
        ("model_ema: true", "measured with model_ema True, not False; give the same --model-ema"),
        ("- ]", "ledger.txt', cannot be read: "),
    ],
)
def test_a_ledger_of_other_weights_chooses_nothing(run, capsys, origin, message):
    (run.folder / "ledger.yaml").write_text(origin)
    assert run.export("--ledger", run.folder / "ledger.txt", "-o", run.folder / "net.onnx") == 2
    assert message in capsys.readouterr().err


def test_a_ledger_of_another_network_chooses_nothing(run, capsys):
    (run.folder / "ledger.txt").write_text(json.dumps(run.rows[4] | {"stitch": "ti[0:2] > s[2:3]"}) + "\n")
    assert run.export("--ledger", run.folder / "ledger.txt", "-o", run.folder / "net.onnx") == 2
    assert "another SN-Net: its cfg_id 4 has stitch" in capsys.readouterr().err


def test_without_a_budget_the_most_accurate_is_taken_and_reported(run, capsys):
    assert run.export("--ledger", run.folder / "ledger.txt", "-o", run.folder / "net.safetensors") == 0
    assert "no budget was given; exporting the most accurate of 17 stitches" in capsys.readouterr().out


def test_the_cheapest_that_cannot_be_told_from_the_best_is_exported(run, capsys):
    flags = ["--ledger", run.folder / "ledger.txt", "--confident", "-o", run.folder / "net.safetensors"]
    assert run.export(*flags) == 2
    assert "ledger.txt' has no hits beside it, which --confident requires" in capsys.readouterr().err
    rows = sorted(run.rows, key=lambda row: row["acc1"])
    right = np.arange(100) < np.array([[row["acc1"]] for row in rows])  # one has an image more right than the next
    cfg_ids, labels = [row["cfg_id"] for row in rows], np.zeros((100, 1), np.int64)
    PerImage.of_all(cfg_ids, AccuracyScore(), right[..., None], labels).write(run.folder / "ledger.hits")
    assert run.export(*flags) == 0
    output = capsys.readouterr().out
    assert f"cfg_id {rows[-1]['cfg_id']} is the most accurate of 17 stitches; cfg_id {rows[-6]['cfg_id']} has" in output
    assert stitchkit.load_stitch(run.folder / "net.safetensors").about["cfg_id"] == rows[-6]["cfg_id"]


def test_a_ledger_without_latencies_gets_them(run, capsys):
    flags = ["--ledger", run.folder / "ledger.txt", "--max-latency-ms", "1e6", "-o", run.folder / "net.safetensors"]
    assert run.export(*flags) == 0
    best = max(run.rows, key=lambda row: row["acc1"])
    output = capsys.readouterr().out
    assert f"stitch {best['cfg_id']}, {best['stitch']}, is in" in output
    assert "measuring the latencies of 17 stitches here" in output
    assert "latency of batches of 1 on cpu" in output


def test_an_anchor_of_the_hub_is_described_by_its_architecture():
    model = family_snnet("vit")
    spec = stitchkit.AnchorSpec("hf-hub:somebody/model", label="ti", kwargs={"depth": 3})
    found = portable(spec, model)
    assert found["name"] == "vit_tiny_patch16_224"
    assert found["kwargs"] == {"depth": 3, "num_classes": 4, "img_size": 16}


def test_settings_of_the_run_come_from_its_file(run):
    (run.folder / "args.yaml").write_text("mean: [0.1]\ncrop_pct: 0.5\n")
    assert run.export("-c", run.folder / "args.yaml", "--cfg_id", 9, "-o", run.folder / "net.safetensors") == 0
    about = stitchkit.load_stitch(run.folder / "net.safetensors").about["input"]
    assert (about["mean"], about["std"], about["crop_pct"]) == ([0.1] * 3, [0.4] * 3, 0.5)


def test_a_missing_package_is_named_with_its_extra(run, monkeypatch, capsys):
    monkeypatch.setattr("stitchkit.optional.find_spec", lambda name: None if name == "onnxscript" else True)
    assert run.export("--cfg_id", 9, "-o", run.folder / "net.onnx") == 2
    assert "needs onnxscript, which is not installed; pip install 'stitchkit[ship]'" in capsys.readouterr().err


def damaged(path, change):
    """Change what an exported file says of itself, and write it back."""
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["stitchkit"])
    change(about)
    save_file(load_file(path), path, metadata={"stitchkit": json.dumps(about)})


@cache
def described(folder):
    """An exported file, written once."""
    path = folder / "described.safetensors"
    exported(trained("vit"), 0, path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about: about.update(format="stitchkit stitch 9"), "its format is 'stitchkit stitch 9'"),
        (lambda about: about.pop("anchors"), "description is damaged"),
        (lambda about: about.update(stitch="ti"), "description is damaged"),
        (lambda about: about.update(stitch="ti[0:9]"), "does not fit its anchors"),
        (lambda about: about.update(stitch="x[0:3]"), "does not fit its anchors"),
        (lambda about: about["anchors"][0].update(name="hf-hub:somebody/model"), "somebody/model'; refused"),
        (lambda about: about["anchors"][0].update(name="local-dir:/tmp"), "refused"),
        (lambda about: about["anchors"][0].update(checkpoint="x.pth"), "'x.pth'; refused"),
        (lambda about: about["anchors"][0]["kwargs"].update(checkpoint_path="x.pth"), "damaged"),
        (lambda about: about["anchors"][0]["kwargs"].update(embed_dim=24), "belongs to another configuration"),
    ],
)
def test_a_file_that_says_something_odd_is_refused(tmp_path, tmp_path_factory, change, message, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    shutil.copy(described(tmp_path_factory.getbasetemp()), tmp_path / "net.safetensors")
    damaged(tmp_path / "net.safetensors", change)
    with pytest.raises(stitchkit.InputError, match=re.escape(message)):
        stitchkit.load_stitch(tmp_path / "net.safetensors")


def test_what_is_not_an_export_is_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(stitchkit.InputError, match="is not an exported stitch"):
        stitchkit.load_stitch(tmp_path / "plain.safetensors")
    with pytest.raises(stitchkit.InputError, match="does not exist"):
        stitchkit.load_stitch(tmp_path / "none.safetensors")
    with pytest.raises(stitchkit.InputError, match="is not a file"):
        stitchkit.load_stitch(tmp_path)
    content = (tmp_path / "plain.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(stitchkit.InputError, match="damaged"):
        stitchkit.load_stitch(tmp_path / "half.safetensors")
