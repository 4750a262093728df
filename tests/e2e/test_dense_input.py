"""What dense prediction refuses, in one line, before anything is computed."""

import shutil

import pytest
from PIL import Image

from stitchkit.cli import main
from stitchkit.data.dense.pairs import open_pairs
from tests.commands import refused
from tests.jobs import job_config, write_job
from tests.support import FLAGS, write_config, write_scene_pairs


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Images with masks and depth maps."""
    return write_scene_pairs(tmp_path_factory.mktemp("pairs") / "pairs")


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path / "pico.json")


def train(capsys, data, config, folder, *flags):
    return refused(capsys, "train", data, "--stitch_config", config, *FLAGS, "--output", folder / "out", *flags)


def turned(folder, place):
    """The same data with the splits within `images/`, `masks/` and `depths/`."""
    for split in ("train", "validation"):
        for kind in ("images", "masks", "depths"):
            shutil.copytree(folder / split / kind, place / kind / split)
    return place


def test_masks_and_depth_maps_are_no_classes(pairs, config, tmp_path, capsys):
    said = "train/ has images/ beside masks/ and depths/, which are not classes of images; add --task segmentation or"
    assert said in train(capsys, pairs, config, tmp_path)
    assert said in train(capsys, pairs, config, tmp_path, "--task", "classification")
    assert said in train(capsys, pairs, config, tmp_path, "--loss", "features")
    assert "train/' has images/ beside" not in train(capsys, pairs / "nope", config, tmp_path)
    shutil.copytree(pairs, tmp_path / "one", ignore=shutil.ignore_patterns("masks"))
    line = train(capsys, tmp_path / "one", config, tmp_path)
    assert "train/ has images/ beside depths/, which are not classes of images; add --task depth, or in" in line
    line = train(capsys, turned(pairs, tmp_path / "turned"), config, tmp_path)
    assert f"'{tmp_path / 'turned'}' has images/ beside masks/ and depths/, which are not classes" in line
    assert not (tmp_path / "out").exists()


def test_a_class_may_be_called_images(pairs, config, tmp_path, capsys):
    shutil.copytree(pairs / "train/images", tmp_path / "data/train/images")
    shutil.copytree(pairs / "train/images", tmp_path / "data/train/others")
    shutil.copytree(tmp_path / "data/train", tmp_path / "data/validation")
    command = ["train", tmp_path / "data", "--stitch_config", config, *FLAGS, "--output", tmp_path, "--dry-run"]
    assert main([*map(str, command)]) == 0


def test_a_split_of_another_name_has_masks_too(pairs, config, tmp_path, capsys):
    for split in ("train", "validation"):
        shutil.copytree(pairs / split, tmp_path / f"data/my-{split}")
    flags = ["--train-split", "my-train", "--val-split", "my-validation"]
    assert "my-train/ has images/ beside masks/ and depths/" in train(
        capsys, tmp_path / "data", config, tmp_path, *flags
    )


def test_a_job_without_a_task_on_masks(pairs, tmp_path, capsys):
    path = write_job(tmp_path, job_config(pairs.parent, dataset=str(pairs)))
    line = refused(capsys, "job", "-c", path, "-o", tmp_path / "out", "--no-pretrained")
    assert "train/ has images/ beside masks/ and depths/" in line
    assert "or in a job task: segmentation or task: depth" in line


def test_a_dense_configuration_is_not_for_classification(pairs, tmp_path, capsys):
    config = write_config(tmp_path / "dense.json", dense={"task": "segmentation", "head": "linear"})
    line = train(capsys, pairs, config, tmp_path, "--task", "classification")
    assert "dense.json' is for --task segmentation, not classification; omit --task, or" in line


def test_joints_are_chosen_by_classes_of_images(pairs, config, tmp_path, capsys):
    dense = write_config(tmp_path / "dense.json", dense={"task": "depth", "head": "linear"})
    rest = ["-o", tmp_path / "chosen.json", "--no-pretrained"]
    line = refused(capsys, "choose", pairs, "--stitch_config", dense, *rest)
    assert "dense.json' is for depth, not for classes of whole images; choose needs these; remove" in line
    line = refused(capsys, "choose", pairs, "--stitch_config", config, *rest)
    assert "train/ has images/ beside masks/ and depths/" in line
    assert not (tmp_path / "chosen.json").exists()


def test_windows_with_gaps_are_refused_before_training(pairs, config, tmp_path, capsys):
    line = train(capsys, pairs, config, tmp_path, "--task", "depth", "--head", "linear", "--window-stride", "17")
    assert "--window-stride 17 would leave gaps between windows of 16 x 16 pixels; give at most 16" in line
    assert not [*tmp_path.rglob("*.tar"), *tmp_path.rglob("*.csv")]
    flags = ["--task", "segmentation", "--head", "linear", "--window-stride", "17", "--dry-run"]
    assert "--window-stride 17 would leave gaps" in train(capsys, pairs, config, tmp_path, *flags)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (
            "segmentation",
            "it needs train/images/ and train/masks/, or images/train/ and masks/train/, or the folders of",
        ),
        ("depth", "it needs train/images/ and train/depths/, or images/train/ and depths/train/, or nyu_train.txt and"),
    ],
)
def test_a_folder_that_does_not_exist(task, said, config, tmp_path, capsys):
    place = tmp_path / "nope"
    assert f"data folder '{place}' does not exist; {said}" in train(capsys, place, config, tmp_path, "--task", task)
    line = train(capsys, config, config, tmp_path, "--task", task)
    assert f"data folder '{config}' is not a folder; {said}" in line
    assert f"'{place}' does not exist; {said}" in refused(
        capsys, "train", "--dataset", place, "--stitch_config", config, "--task", task
    )


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_class_number_that_is_too_large_is_found_before_a_run_begins(split, pairs, config, tmp_path, capsys):
    data = shutil.copytree(pairs, tmp_path / "data")
    (data / "classes.txt").write_text("dark\nmiddle\nbright\n")
    stray = data / split / "masks/3.png"
    with Image.open(stray) as mask:
        mask.putpixel((5, 20), 77)
        mask.save(stray)
    flags = ["--task", "segmentation", "--head", "linear"]
    said = f"mask '{stray}' has the class number 77; the data set has 3 classes, numbered from 0, and 255 is ignored"
    assert said in train(capsys, data, config, tmp_path, *flags)
    assert said in train(capsys, data, config, tmp_path, *flags, "--dry-run")
    assert not [*tmp_path.rglob("*.csv")]


def test_a_stray_number_does_not_become_classes_in_silence(pairs, tmp_path, caplog):
    """Without names of classes, the highest number in the training masks says how many there are."""
    data = shutil.copytree(pairs, tmp_path / "data")
    stray = data / "train/masks/3.png"
    for number, said in ((4, "5 classes; 1 never occurs in"), (77, "78 classes; 74 never occur in")):
        with Image.open(stray) as mask:
            mask.putpixel((5, 20), number)
            mask.save(stray)
        caplog.clear()
        assert open_pairs(data, "train", "segmentation").num_classes == number + 1
        (line,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
        assert f"{said} the masks of the train split; the highest, {number}, is in '{stray}'; if that is a mist" in line
        assert "name the classes in classes.txt" in line


def test_a_configuration_for_another_number_of_classes(pairs, tmp_path, capsys):
    """The flag in the message is enough to go on."""
    data, dense = shutil.copytree(pairs, tmp_path / "data"), {"task": "segmentation", "head": "linear"}
    (data / "classes.txt").write_text("dark\nmiddle\nbright\n")
    config = write_config(tmp_path / "pico.json", dense=dense, recipe={"num_classes": 10})
    named = f"but '{data / 'classes.txt'}' names 3 classes; "
    line = train(capsys, data, config, tmp_path)
    assert f"num_classes is 10 (from '{config}'), {named}add --num-classes 3" in line
    run = ["train", data, "--stitch_config", config, *FLAGS, "--output", tmp_path, "--dry-run"]
    assert main([*map(str, run), "--num-classes", "3"]) == 0
    line = train(capsys, data, config, tmp_path, "--num-classes", "4")
    assert f"num_classes is 4, {named}omit it, or give 3" in line


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_a_folder_of_another_layout(task, pairs, config, tmp_path, capsys):
    """One level too deep, masks in a folder of another name, or images alone: never advice on classes of images."""
    folder = {"segmentation": "masks", "depth": "depths"}[task]
    for kind, other in (("images", "images"), (folder, "annotations")):
        shutil.copytree(pairs / "train" / kind, tmp_path / "renamed/train" / other)
        shutil.copytree(pairs / "train" / kind, tmp_path / "turned" / other / "train")
    flags = ["--task", task, "--head", "linear"]
    for place in (pairs / "train", tmp_path / "renamed", tmp_path / "turned", pairs / "train/images"):
        said = f"data folder '{place}' has no split 'train' of images and {folder if task != 'depth' else 'depth maps'}"
        said += f"; it needs train/images/ and train/{folder}/, or images/train/ and {folder}/train/, or "
        assert said in train(capsys, place, config, tmp_path, *flags)
        assert said in train(capsys, place, config, tmp_path, *flags, "--dry-run")
    assert not [*tmp_path.rglob("*.csv")]


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_a_bad_pair_is_found_before_a_run_begins(task, pairs, config, tmp_path, capsys):
    """Also one of the validation split, and in a dry run; by their headers, without pixels."""
    data, noun = shutil.copytree(pairs, tmp_path / "data"), {"segmentation": "masks", "depth": "depths"}[task]
    last = data / "validation" / noun / "4.png"
    Image.open(last).crop((0, 0, 32, 20)).save(last)
    said = f"validation/images/4.png' has 32 x 32 pixels, but its {noun[:-1]}"
    flags = ["--task", task, "--head", "linear"]
    assert said in train(capsys, data, config, tmp_path, *flags)
    assert said in train(capsys, data, config, tmp_path, *flags, "--dry-run")
    assert not [*tmp_path.rglob("*.csv")]
    (data / "train/images/7.png").write_bytes(b"no image")
    assert "train/images/7.png' cannot be read (it is not an image)" in train(capsys, data, config, tmp_path, *flags)
