"""`--class-map`: names stand at their numbers, and no image is left out without a word."""

import pickle
import re
import shutil

import pytest
from PIL import Image

from stitchkit.data.class_map import read_class_map
from stitchkit.data.open_dataset import open_dataset
from stitchkit.data.source import Source
from stitchkit.errors import InputError
from stitchkit.settings.by_name import make_recipe
from stitchkit.training.data import open_datasets

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0), "yellow": (255, 255, 0)}


@pytest.fixture
def data(tmp_path):
    for split in ("train", "validation"):
        for name, colour in COLOURS.items():
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (16, 16), colour).save(tmp_path / split / name / f"{number}.png")
    return tmp_path


def pickled(data, **numbers):
    (data / "map.pkl").write_bytes(pickle.dumps(numbers))
    return data / "map.pkl"


def text(data, content):
    (data / "map.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    return data / "map.txt"


def opened(data, path):
    recipe = make_recipe({"data_dir": str(data), "model": "resnet18", "class_map": str(path)})
    return open_datasets(recipe)


def labels(images):
    """The label of each class folder."""
    return {path.split("/")[-2]: label for path, label in images.reader.samples}


def test_two_folders_of_one_number_are_one_class(data):
    found = opened(data, pickled(data, red=0, yellow=0, green=1, blue=2))
    assert found.classes == found.train.classes == found.validation.classes == ("red+yellow", "green", "blue")
    assert labels(found.train) == {"red": 0, "yellow": 0, "green": 1, "blue": 2}


def test_a_number_without_a_name_is_named_by_it(data):
    assert opened(data, pickled(data, red=1, yellow=5, green=3, blue=4)).classes == (
        *("unnamed/0", "red", "unnamed/2", "green", "blue", "yellow"),
    )


def test_a_number_without_a_name_is_not_called_as_a_folder(data):
    for split in ("train", "validation"):
        (data / split / "green").rename(data / split / "1")
    classes = opened(data, pickled(data, **{"1": 0, "red": 2, "yellow": 3, "blue": 4})).classes
    assert classes == ("1", "unnamed/1", "red", "yellow", "blue")


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfyellow\nred\ngreen\nblue\n",
        "yellow\nred\ngreen\nblue\n\n\n",
        "\n yellow \r\nred\r\n\r\ngreen\nblue",
    ],
    ids=["byte-order mark", "blank lines at the end", "blank lines within"],
)
def test_marks_and_blank_lines_are_ignored(data, content):
    found = opened(data, text(data, content))
    assert found.classes == ("yellow", "red", "green", "blue")
    assert (len(found.train), len(found.validation)) == (12, 12)


def test_a_class_without_a_folder_is_refused(data):
    message = "names classes without images in '{}': {}; add images of them there, or correct or remove these names"
    with pytest.raises(InputError, match=re.escape(message.format(data / "train", "gren, purple"))):
        opened(data, text(data, "blue\ngren\nred\nyellow\npurple\n"))
    shutil.rmtree(data / "validation/red")
    with pytest.raises(InputError, match=re.escape(message.format(data / "validation", "red"))):
        opened(data, text(data, "blue\ngreen\nred\nyellow\n"))


def test_folders_without_a_class_are_counted(data, caplog):
    caplog.set_level("INFO")
    found = opened(data, text(data, "yellow\nred"))
    assert len(found.train) == 6
    said = "train: 6 images, 2 classes (yellow, red); 6 images skipped, in folders missing from the class map"
    assert f"{said} (blue, green)" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n\n", "names no class; write a class name in each line"),
        ("red\nblue\nred\n", "has a line twice"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_text_that_numbers_nothing_well_is_refused(data, content, message):
    with pytest.raises(InputError, match=message):
        opened(data, text(data, content))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"red": 0, "blue": "1"}, "gives 'blue' no number"),
        ({"red": 0, "blue": -1}, "has a negative number"),
        ({"red": 0, "blue": 10**9}, "has the number 1,000,000,000; the largest allowed is 99,999"),
    ],
)
def test_a_pickle_that_numbers_nothing_well_is_refused(data, numbers, message):
    with pytest.raises(InputError, match=message):
        opened(data, pickled(data, **numbers))


def test_a_missing_map_is_refused_by_its_path(data):
    with pytest.raises(InputError, match=re.escape(f"class map '{data / 'none.txt'}' does not exist; check the path")):
        opened(data, data / "none.txt")


def test_data_with_published_numbers_refuse_a_map(data):
    path = str(text(data, "yellow\nred\ngreen\nblue\n"))
    for name in ("digits", "cifar10"):
        with pytest.raises(
            InputError, match=f"class map '.*' is for class folders .*, and '{name}' has numbers of its"
        ):
            open_dataset(Source(name, data, class_map=path), "validation")


def test_hugging_face_sets_are_numbered_by_the_same_map(data, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [(Image.new("RGB", (16, 16), colour), number) for number, colour in enumerate(COLOURS.values())]
    columns = {"image": [image for image, _ in rows], "label": [number for _, number in rows]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=[*COLOURS])})
    (tmp_path / "hf").mkdir()
    for split in ("train", "validation"):
        datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / f"hf/{split}.parquet")
    path = pickled(data, red=0, yellow=0, green=1, blue=3)
    source = Source(f"hfds/{tmp_path / 'hf'}", tmp_path / "cache", class_map=str(path))
    images = open_dataset(source, "validation")
    assert images.classes == ("red+yellow", "green", "unnamed/2", "blue")
    assert [images[number][1] for number in range(4)] == [3, 1, 0, 0]
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfblue\ngreen\nred\nyellow\n\n")
    assert open_dataset(Source(source.name, source.root, class_map=str(tmp_path / "bom.txt")), "train").classes == (
        *("blue", "green", "red", "yellow"),
    )


@pytest.mark.parametrize("kind", ["names", "texts", "numbers"])
def test_a_class_that_a_hugging_face_set_lacks_is_refused(kind, data):
    datasets = pytest.importorskip("datasets")
    label, labels, numbers = {
        "names": (datasets.ClassLabel(names=["red", "green", "blue"]), [0, 1, 2], {"red": 1, "green": 0, "blue": 2}),
        "texts": (datasets.Value("string"), ["red", "green", "blue"], {"red": 1, "green": 0, "blue": 2}),
        "numbers": (datasets.Value("int64"), [0, 1, 2], {0: 1, 1: 0, 2: 2}),
    }[kind]
    table = datasets.Dataset.from_dict(
        {"image": [Image.new("RGB", (16, 16))] * 3, "label": labels},
        features=datasets.Features({"image": datasets.Image(), "label": label}),
    )
    (data / "hf").mkdir()
    for split in ("train", "validation"):
        table.to_parquet(data / f"hf/{split}.parquet")
    source = Source(f"hfds/{data / 'hf'}", data / "cache", class_map=str(data / "map.pkl"))
    (data / "map.pkl").write_bytes(pickle.dumps(numbers))
    images = open_dataset(source, "train")
    assert [images[number][1] for number in range(3)] == [1, 0, 2]
    (data / "map.pkl").write_bytes(pickle.dumps(numbers | {7 if kind == "numbers" else "purple": 3}))
    message = rf"the class map names classes that '{source.name}' lacks: (7|purple); correct or remove them"
    with pytest.raises(InputError, match=message):
        open_dataset(source, "train")


def test_a_name_in_two_unicode_forms_is_refused(tmp_path):
    (tmp_path / "map.txt").write_text("caf\u00e9\nred\ncafe\u0301\n", encoding="utf-8")
    with pytest.raises(InputError, match="has a name twice"):
        read_class_map(str(tmp_path / "map.txt"))
