"""Sets of Hugging Face whose columns have other names, or whose labels are texts."""

import re

import pytest
from PIL import Image

from stitchkit.cli import main
from stitchkit.data.open_dataset import open_dataset
from stitchkit.data.source import Source
from stitchkit.data.unreadable import CheckedImages
from stitchkit.errors import InputError
from stitchkit.settings.by_name import make_recipe
from stitchkit.training.data import open_datasets
from stitchnet.data import open_split
from tests import archives
from tests.support import FLAGS

datasets = pytest.importorskip("datasets")
datasets.disable_progress_bars()


def write(folder, labels, kind=None, image="image", label="label"):
    """A set with these labels in each split, and its name."""
    features = datasets.Features({image: datasets.Image(), label: kind or datasets.Value("string")})
    Image.new("RGB", (4, 4)).save(folder / "image.png")
    picture = {"bytes": (folder / "image.png").read_bytes(), "path": None}
    for split, values in labels.items():
        rows = {image: [picture] * len(values), label: values}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"hub/{split}.parquet")
    return f"hfds/{folder / 'hub'}"


def opened(name, folder, split="train", **options):
    return open_dataset(Source(name, folder / "cache", options=tuple(options.items())), split)


@pytest.fixture
def renamed(tmp_path):
    kind = datasets.ClassLabel(names=["cat", "dog"])
    return write(tmp_path, {"train": [0, 1], "validation": [1]}, kind, "img", "labels")


def test_other_columns_are_said_and_the_flags_that_take_them(renamed, tmp_path):
    recipe = {"dataset": renamed, "data_dir": str(tmp_path / "cache"), "model": "resnet18"}
    flags = "its columns are img and labels; name those of the images and labels by --input-key and --target-key"
    for keys, missing in (({}, "image"), ({"input_key": "img"}, "label"), ({"target_key": "labels"}, "image")):
        with pytest.raises(InputError, match=re.escape(f"'{renamed}' has no column '{missing}'; {flags}")):
            open_datasets(make_recipe({**recipe, **keys}))
    found = open_datasets(make_recipe({**recipe, "input_key": "img", "target_key": "labels"}))
    assert [label for _, label in found.train] == [0, 1]
    assert found.classes == ("cat", "dog")


def test_where_there_are_no_flags_the_columns_are_to_be_renamed(renamed, tmp_path):
    advice = "its columns are img and labels; rename those of the images and labels to image and label"
    with pytest.raises(InputError, match=re.escape(advice)):
        opened(renamed, tmp_path)
    with pytest.raises(InputError, match=re.escape(advice)):
        open_split(renamed, "train", 4)


def test_a_command_says_it_in_one_line(renamed, tmp_path, capsys):
    flags = ["--dataset", renamed, "--model", "resnet18", *FLAGS, "--output", str(tmp_path)]
    assert main(["train", str(tmp_path / "cache"), *flags]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_texts_are_names_of_classes_in_the_order_of_folders(tmp_path, caplog):
    """Of all splits: one may lack a class, whose number would otherwise be another one's."""
    caplog.set_level("INFO")
    name = write(tmp_path, {"train": ["dog", "cat10", "cat9"], "validation": ["dog", "bee"], "test": ["ant"]})
    train, judged = (opened(name, tmp_path, split) for split in ("train", "validation"))
    assert train.classes == judged.classes == ("ant", "bee", "cat9", "cat10", "dog")
    assert [label for _, label in train] == [4, 3, 2]
    assert [label for _, label in judged] == [4, 1]
    assert "the 5 text labels in the column 'label' are numbered in their order" in caplog.text
    assert open_split(name, "train", 4).classes == train.classes


def test_a_row_without_a_label_is_skipped_and_named_by_its_number(tmp_path, caplog):
    images = opened(write(tmp_path, {"train": ["dog", None, "cat"]}), tmp_path)
    assert images.classes == ("cat", "dog")
    checked = CheckedImages(images, num_classes=2, is_training=False)
    assert [checked[number][1] for number in range(3)] == [1, -1, 0]
    assert "number 1 of the train split is skipped" in caplog.text


def test_a_class_map_numbers_texts(tmp_path):
    name = write(tmp_path, {"train": ["dog", "cat"]})
    (tmp_path / "map.txt").write_text("dog\ncat\n")
    images = open_dataset(Source(name, tmp_path / "cache", class_map=str(tmp_path / "map.txt")), "train")
    assert images.classes == ("dog", "cat")
    assert [label for _, label in images] == [0, 1]


def test_streamed_texts_need_a_class_map(tmp_path):
    name = write(tmp_path, {"train": ["dog", "cat"]}).replace("hfds/", "hfids/")
    datasets.load_dataset(str(tmp_path / "hub"), cache_dir=str(tmp_path / "cache"))  # its columns are known then
    with pytest.raises(
        InputError, match=r"'label' are texts; number them by --class-map FILE, or read the set by hfds/"
    ):
        opened(name, tmp_path, num_samples=2)


def test_labels_of_another_kind_are_not_texts(tmp_path):
    assert opened(archives.write_labels(tmp_path, "float32", [0.5], [1.0]), tmp_path).classes == ()
