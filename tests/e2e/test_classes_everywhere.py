"""Twelve class folders are numbered alike by every command, and a checkpoint's class names are compared wherever."""

import json
import logging
import re

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from stitchkit import create_model
from stitchkit.cli import main
from tests.support import mostly_full, pico_anchor, write_config

NAMES = tuple(f"class{number}" for number in range(12))
NETWORK = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
VIT = "vit_tiny_patch16_224"
FLAGS = ["--no-pretrained", "-b", "12", "-j", "0", "--device", "cpu", "--crop-pct", "1.0", "--hflip", "0"]
TRAINING = ["--epochs", "20", "--opt", "adamw", "--lr", "1e-2", "--warmup-epochs", "0", "--no-aug"]


def write_folder(folder, names=NAMES):
    """An image folder in which a class is a pattern, the same for its place among the names."""
    random = np.random.default_rng(0)
    patterns = random.integers(0, 200, (len(names), 16, 16, 3))
    for split, count in (("train", 4), ("validation", 3)):
        for label, name in enumerate(names):
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = patterns[label] + random.integers(0, 50, (16, 16, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def dozen(tmp_path_factory):
    """Folders `class0` to `class11`."""
    return write_folder(tmp_path_factory.mktemp("dozen"))


@pytest.fixture(scope="module")
def trained(dozen, tmp_path_factory):
    """The folder of a run that knows the twelve classes well."""
    folder = tmp_path_factory.mktemp("trained")
    network = ["--model", VIT, "--model-kwargs", *(f"{key}={value}" for key, value in NETWORK.items())]
    arguments = ["train", dozen, *network, *FLAGS, *TRAINING, "--output", folder, "--experiment", "net"]
    assert main([*map(str, arguments)]) == 0
    return folder / "net"


def train(data, out, *flags):
    """`stitchkit train` of the same network."""
    network = ["--model", VIT, "--model-kwargs", *(f"{key}={value}" for key, value in NETWORK.items())]
    arguments = ["train", data, *network, *FLAGS, "--epochs", "1", "--output", out, "--experiment", "new", *flags]
    return main([*map(str, arguments)])


def accuracy_by_eval(data, out, caplog, *flags):
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert train(data, out, "--eval", *flags) == 0
    return next(json.loads(line)["acc1"] for line in caplog.messages if line.startswith('{"model"'))


def job_file(data, folder, **changes):
    """A job of the same network."""
    net = {"model_name": VIT, **NETWORK, "num_classes": 12, **changes.pop("net", {})}
    images = changes.pop("images", {"image_size": 16, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]})
    training = {"dataset": str(data), "epochs": 1, "batch_size": 12, "data_preprocessing": images}
    config = {"assembly": [{"Net": net}], "workers": 0, "device": "cpu"}
    config |= {"train_config": {**training, "optimizer_args": {"lr": 1e-3}}, **changes}
    path = folder / "job.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def job(path, out, *flags):
    return main([*map(str, ["job", "-c", path, "-o", out, *flags])])


def accuracy_by_job(path, out, *flags):
    assert job(path, out, *flags) == 0
    [column] = [name for name in pd.read_pickle(out / "result.pkl").columns if name.endswith("Test Accuracy")]
    return 100 * pd.read_pickle(out / "result.pkl")[column].iloc[-1]


def refusal(capsys):
    """The one line that a command ended with."""
    line = capsys.readouterr().err
    assert line.startswith("stitchkit: error: ")
    assert line.count("\n") == 1, line
    return line


def with_classes(source, path, classes):
    """A checkpoint with other class names."""
    content = torch.load(source, weights_only=True)
    torch.save(content | {"classes": classes}, path)
    return path


def test_train_and_jobs_number_twelve_folders_alike(dozen, trained, tmp_path, caplog):
    last = trained / "last.pth.tar"
    assert torch.load(last, weights_only=True)["classes"] == list(NAMES)
    accuracy = accuracy_by_eval(dozen, tmp_path / "eval", caplog, "--resume", last)
    assert accuracy > 80
    path = job_file(dozen, tmp_path, net={"ckp_path": str(last)})
    assert accuracy_by_job(path, tmp_path / "part", "--test-only") == pytest.approx(accuracy, abs=1e-3)
    content = torch.load(last, weights_only=True)
    whole = {f"parts.0.net.{name}": value for name, value in content["state_dict"].items()}
    torch.save({"model": whole, "classes": content["classes"]}, tmp_path / "whole.pth")
    path = job_file(dozen, tmp_path)
    flags = ("--no-pretrained", "--test-only", "--load-from", tmp_path / "whole.pth")
    assert accuracy_by_job(path, tmp_path / "loaded", *flags) == pytest.approx(accuracy, abs=1e-3)


REVERSED = list(reversed(NAMES))
OTHERS = [f"other{number}" for number in range(12)]
ORDER = "was trained on the same 12 classes in another order; the first that differs was 'class11' and is 'class0'"
OTHER = "the first that differs was 'other0' and is 'class0'"


@pytest.mark.parametrize(
    "flag", mostly_full(["--resume", "--initial-checkpoint", "--pretrained-path"], quick=["--resume"])
)
def test_an_evaluation_of_other_classes_is_refused(dozen, trained, tmp_path, capsys, flag):
    flags = ["--eval", flag, tmp_path / "w.pth", *(["--pretrained"] if flag == "--pretrained-path" else [])]
    for classes, words in ((REVERSED, ORDER), (OTHERS, OTHER), ([*NAMES, "more"], "was 'more' and is None")):
        with_classes(trained / "last.pth.tar", tmp_path / "w.pth", classes)
        capsys.readouterr()
        assert train(dozen, tmp_path / "out", *flags) == 2
        line = refusal(capsys)
        assert words in line
        assert "labels would not agree" in line


@pytest.mark.parametrize(
    "flag", mostly_full(["--initial-checkpoint", "--pretrained-path"], quick=["--pretrained-path"])
)
def test_training_from_other_classes_is_reported_and_from_another_order_refused(
    dozen, trained, tmp_path, capsys, caplog, flag
):
    flags = [flag, tmp_path / "w.pth", *(["--pretrained"] if flag == "--pretrained-path" else [])]
    with_classes(trained / "last.pth.tar", tmp_path / "w.pth", OTHERS)
    assert train(dozen, tmp_path / "out", *flags) == 0
    [line] = [line for line in caplog.messages if "but different ones" in line]
    assert OTHER in line
    with_classes(trained / "last.pth.tar", tmp_path / "w.pth", REVERSED)
    capsys.readouterr()
    assert train(dozen, tmp_path / "more", *flags) == 2
    assert ORDER in refusal(capsys)


def test_a_run_resumes_with_its_own_classes_only(dozen, trained, tmp_path, capsys):
    for classes, words in ((REVERSED, ORDER), (OTHERS, OTHER)):
        with_classes(trained / "last.pth.tar", tmp_path / "w.pth", classes)
        capsys.readouterr()
        assert train(dozen, tmp_path / "out", "--resume", tmp_path / "w.pth") == 2
        line = refusal(capsys)
        assert words in line
    start = ["--model", VIT, "--pretrained-path", str(tmp_path / "w.pth")]
    assert line.rstrip().endswith(f"it knows, or train on these: {' '.join(start)}")
    assert train(dozen, tmp_path / "out", *start, "--pretrained") == 0


def test_anchors_of_another_order_are_refused(dozen, trained, tmp_path, capsys, caplog):
    arguments = {**NETWORK, "num_classes": 12}
    entry = {"label": "a", "name": VIT, "kwargs": arguments, "checkpoint": str(tmp_path / "w.pth")}
    larger = pico_anchor("b", 32, **{**arguments, "embed_dim": 32})
    config = write_config(tmp_path / "two.json", anchors=[entry, larger], stitch_kernel_size=1, stitch_stride=1)
    flags = [*FLAGS, "--epochs", "1", "--stitch-init-bs", "12", "--output", tmp_path / "out"]
    command = [*map(str, ["train", dozen, "--stitch_config", config, *flags])]
    with_classes(trained / "last.pth.tar", tmp_path / "w.pth", REVERSED)
    capsys.readouterr()
    assert main(command) == 2
    assert ORDER in refusal(capsys)
    with_classes(trained / "last.pth.tar", tmp_path / "w.pth", OTHERS)
    assert main(command) == 0
    assert OTHER in next(line for line in caplog.messages if "but different ones" in line)


def test_a_teacher_of_other_classes_is_refused(dozen, tmp_path, capsys):
    torch.manual_seed(0)
    teacher = create_model("resnet10t", num_classes=12)
    arguments = {**NETWORK, "num_classes": 12}
    anchors = [pico_anchor("a", 8, **arguments | {"embed_dim": 8}), pico_anchor("b", 16, **arguments)]
    config = write_config(tmp_path / "two.json", anchors=anchors, stitch_kernel_size=1, stitch_stride=1)
    flags = ["--distillation-type", "soft", "--teacher-model", "resnet10t", "--teacher-path", tmp_path / "w.pth"]
    flags += ["--stitch-init-bs", "12", "--output", tmp_path / "out"]
    for classes, words in ((REVERSED, ORDER), (OTHERS, OTHER)):
        torch.save({"state_dict": teacher.state_dict(), "classes": classes}, tmp_path / "w.pth")
        capsys.readouterr()
        assert main([*map(str, ["train", dozen, "--stitch_config", config, *FLAGS, *flags])]) == 2
        line = refusal(capsys)
        assert "teacher: " in line
        assert words in line


@pytest.fixture
def foreign(trained, tmp_path):
    """A job whose part has weights of twelve other classes, and their file."""

    def made(dozen, **changes):
        file = with_classes(trained / "last.pth.tar", tmp_path / "w.pth", OTHERS)
        return job_file(dozen, tmp_path, net={"ckp_path": str(file)}, **changes), file

    return made


def test_jobs_compare_the_classes_of_parts(dozen, trained, foreign, tmp_path, capsys, caplog):
    path, file = foreign(dozen)
    assert job(path, tmp_path / "tuned") == 0
    assert OTHER in next(line for line in caplog.messages if "but different ones" in line)
    capsys.readouterr()
    assert job(path, tmp_path / "tested", "--test-only") == 2
    assert OTHER in refusal(capsys)
    with_classes(trained / "last.pth.tar", file, REVERSED)
    for flags in ([], ["--test-only"]):
        assert job(path, tmp_path / "out", *flags) == 2
        assert ORDER in refusal(capsys)


RESUMES = ["--load-from", "--load-from in part", "--resume-from"]


@pytest.mark.parametrize("flag", mostly_full(RESUMES, quick=["--resume-from"]))
def test_jobs_compare_the_classes_of_weights(dozen, tmp_path, capsys, caplog, flag):
    path = job_file(dozen, tmp_path, strict_load=flag != "--load-from in part")
    assert job(path, tmp_path / "begun", "--no-pretrained", "--save-checkpoints") == 0
    newest, given = tmp_path / "begun/checkpoint.pth", tmp_path / "job.pth"
    assert torch.load(newest, weights_only=True)["classes"] == [list(NAMES)]
    start = ["--no-pretrained", flag.split()[0], given]
    for classes, words in ((REVERSED, ORDER), (OTHERS, OTHER)):
        with_classes(newest, given, [classes])
        for flags in (["--test-only"], []):
            if classes is OTHERS and not flags and flag != "--resume-from":
                continue
            capsys.readouterr()
            assert job(path, tmp_path / "on", *start, *flags) == 2
            line = refusal(capsys)
            assert words in line
            if flag == "--resume-from" and classes is OTHERS:
                assert ("or train on these: --load-from " in line) == (not flags)
    if flag != "--resume-from":
        assert job(path, tmp_path / "tuned", *start) == 0
        assert OTHER in next(line for line in caplog.messages if "but different ones" in line)


def test_weights_that_bring_the_classifier_count_and_not_those_before(dozen, foreign, trained, tmp_path, caplog):
    """Of a part that has a file and a job that loads another one over it, the latter's classes are compared."""
    path, _ = foreign(dozen, strict_load=False)
    weights = torch.load(trained / "last.pth.tar", weights_only=True)["state_dict"]
    loaded = {f"parts.0.net.{name}": value for name, value in weights.items()}
    torch.save({"model": loaded, "classes": list(NAMES)}, tmp_path / "over.pth")
    assert accuracy_by_job(path, tmp_path / "out", "--test-only", "--load-from", tmp_path / "over.pth") > 80
    assert "other classes" not in caplog.text


def test_a_part_whose_classifier_is_not_the_network_s_may_know_other_classes(dozen, trained, tmp_path, caplog):
    with_classes(trained / "last.pth.tar", tmp_path / "w.pth", REVERSED)
    inner = {"ckp_path": str(tmp_path / "w.pth")}
    path = job_file(dozen, tmp_path, net=inner, head={"ClassifierHead": {}})
    assert job(path, tmp_path / "head") == 0
    piece = {"model_name": VIT, **NETWORK, "num_classes": 12, **inner, "in_format": "img"}
    body = {"Subnet": {**piece, "block_output": "blocks.0", "out_format": ["bert", [16, 4]]}}
    path = job_file(dozen, tmp_path, assembly=[body], head={"ClassifierHead": {}})
    assert job(path, tmp_path / "body") == 0
    assert not re.search("other classes|another order", caplog.text)


@pytest.mark.parametrize("end", [{}, {"block_output": "head", "out_format": "vector"}])
def test_a_piece_that_ends_with_the_classifier_is_compared(dozen, trained, tmp_path, capsys, end):
    with_classes(trained / "last.pth.tar", tmp_path / "w.pth", REVERSED)
    piece = {"model_name": VIT, **NETWORK, "num_classes": 12, "ckp_path": str(tmp_path / "w.pth"), **end}
    path = job_file(dozen, tmp_path, assembly=[{"Subnet": piece}, {"Function": {"name": "softmax", "dim": 1}}])
    capsys.readouterr()
    assert job(path, tmp_path / "out", "--test-only") == 2
    assert ORDER in refusal(capsys)


def test_a_job_prepares_images_as_the_training_of_its_weights(dozen, trained, tmp_path, caplog):
    expected = accuracy_by_eval(dozen, tmp_path / "eval", caplog, "--resume", trained / "last.pth.tar")
    net = {"ckp_path": str(trained / "last.pth.tar")}
    path = job_file(dozen, tmp_path, net=net, images={})
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert accuracy_by_job(path, tmp_path / "out", "--test-only") == pytest.approx(expected)
    taken = "are prepared as in the training of '.*last.pth.tar': input_size .*16, 16.*; mean .0.5, 0.5, 0.5.; std .0.5"
    assert re.search(taken, caplog.text)
    # What the job sets itself stays, and is said.
    path = job_file(dozen, tmp_path, net=net, images={"image_size": 16, "mean": [0.4], "std": [0.5]})
    caplog.clear()
    assert accuracy_by_job(path, tmp_path / "own", "--test-only") < expected + 1
    assert "prepared with mean (0.5, 0.5, 0.5), here (0.4, 0.4, 0.4)" in caplog.text


def test_a_job_decodes_images_as_the_training_of_its_weights(dozen, trained, tmp_path, caplog):
    content = torch.load(trained / "last.pth.tar", weights_only=True)
    content["image"] |= {"input_img_mode": "YCbCr", "background": "black", "exif": False}
    torch.save(content, tmp_path / "other.pth")
    flags = ("--resume", tmp_path / "other.pth", "--input-img-mode", "YCbCr", "--background", "black", "--no-exif")
    expected = accuracy_by_eval(dozen, tmp_path / "eval", caplog, *flags)
    path = job_file(dozen, tmp_path, net={"ckp_path": str(tmp_path / "other.pth")}, images={})
    assert accuracy_by_job(path, tmp_path / "out", "--test-only") == pytest.approx(expected)
    assert expected < accuracy_by_eval(dozen, tmp_path / "rgb", caplog, "--resume", trained / "last.pth.tar")


def test_weights_for_other_channels_than_those_of_jobs_are_refused(dozen, trained, tmp_path, capsys):
    content = torch.load(trained / "last.pth.tar", weights_only=True)
    content["image"] |= {"input_img_mode": "RGBA", "mean": [0.5] * 4, "std": [0.5] * 4}
    torch.save(content | {"input_size": [4, 16, 16]}, tmp_path / "rgba.pth")
    path = job_file(dozen, tmp_path, net={"ckp_path": str(tmp_path / "rgba.pth"), "in_chans": 4}, images={})
    capsys.readouterr()
    assert job(path, tmp_path / "out", "--test-only") == 2
    assert "rgba.pth' was trained on images of 4 channels, and those of jobs have 3" in refusal(capsys)


def test_the_weights_of_a_head_decide_last_how_images_are_prepared(dozen, trained, tmp_path, caplog):
    net, head = {"ckp_path": str(trained / "last.pth.tar")}, {"head": {"ClassifierHead": {}}}
    path = job_file(dozen, tmp_path, net=net, images={"image_size": 16, "mean": [0.9], "std": [0.9]}, **head)
    assert job(path, tmp_path / "begun", "--save-checkpoints") == 0
    start = {"load_from": {"head": str(tmp_path / "begun/checkpoint.pth")}}
    path = job_file(dozen, tmp_path, net=net, images={}, **head, **start)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert job(path, tmp_path / "out", "--test-only") == 0
    assert "as in the training of '" + net["ckp_path"] in caplog.text
    assert "checkpoint.pth' was trained on images prepared with mean (0.9, 0.9, 0.9), here (0.5, 0.5" in caplog.text


def test_a_checkpoint_of_a_job_says_how_images_were_prepared(dozen, trained, tmp_path, caplog):
    path = job_file(dozen, tmp_path, net={"ckp_path": str(trained / "last.pth.tar")}, images={})
    begun = accuracy_by_job(path, tmp_path / "begun", "--save-checkpoints")
    newest = tmp_path / "begun/checkpoint.pth"
    content = torch.load(newest, weights_only=True)
    assert content["input_size"] == [3, 16, 16]
    assert content["image"][0]["mean"] == [0.5, 0.5, 0.5]
    bare = job_file(dozen, tmp_path, images={})
    flags = ("--no-pretrained", "--test-only", "--load-from", newest)
    assert accuracy_by_job(bare, tmp_path / "bare", *flags) == pytest.approx(begun)
    other = job_file(dozen, tmp_path, images={"image_size": 16, "mean": [0.4], "std": [0.5]})
    caplog.clear()
    assert job(other, tmp_path / "other", *flags) == 0
    assert "checkpoint.pth' was trained on images prepared with mean (0.5, 0.5, 0.5), here (0.4" in caplog.text


def test_a_job_resumes_with_the_preparation_of_its_checkpoint(dozen, trained, tmp_path, caplog):
    (tmp_path / "w.pth").write_bytes((trained / "last.pth.tar").read_bytes())
    path = job_file(dozen, tmp_path, net={"ckp_path": str(tmp_path / "w.pth")}, images={})
    begun = accuracy_by_job(path, tmp_path / "begun", "--save-checkpoints")
    (tmp_path / "w.pth").unlink()
    flags = ("--test-only", "--resume-from", tmp_path / "begun/checkpoint.pth")
    assert accuracy_by_job(path, tmp_path / "tested", *flags) == pytest.approx(begun)
    other = job_file(
        dozen, tmp_path, net={"ckp_path": str(tmp_path / "w.pth")}, images={"image_size": 16, "mean": [0.4]}
    )
    caplog.clear()
    assert job(other, tmp_path / "other", *flags) == 0
    assert "checkpoint.pth' was trained on images prepared with mean (0.5, 0.5, 0.5), here (0.4" in caplog.text


@pytest.mark.parametrize(
    "classes",
    [
        "class0",
        [["class0"], 3],
        *(pytest.param(each, marks=pytest.mark.full) for each in (None, 12, [1.5], {"a": 1}, [torch.zeros(2)])),
    ],
)
def test_damaged_names_of_classes_are_refused(dozen, trained, tmp_path, classes, capsys):
    with_classes(trained / "last.pth.tar", tmp_path / "w.pth", classes)
    capsys.readouterr()
    assert train(dozen, tmp_path / "out", "--eval", "--resume", tmp_path / "w.pth") == 2
    assert "w.pth' is damaged: classes" in refusal(capsys)
