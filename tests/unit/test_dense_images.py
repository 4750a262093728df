"""Images with masks and depth maps: their layouts, their formats, and every fault in one line."""

import io
import logging
import os
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from stitchkit.data.decoding import Change, Decoding
from stitchkit.data.dense.maps import header_of, read_depth, read_image, read_mask
from stitchkit.data.dense.pairs import open_pairs
from stitchkit.errors import InputError

SIZE = (6, 4)  # width, height
NUMBERS = np.arange(24, dtype=np.uint8).reshape(4, 6) % 5
METRES = np.linspace(0.5, 9.5, 24, dtype=np.float32).reshape(4, 6)


def saved(path, content, **options):
    """A file of an image or an array, in new folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, content)
    else:
        (content if isinstance(content, Image.Image) else Image.fromarray(content)).save(path, **options)
    return path


def photo(path, shade=90, size=SIZE, mode="RGB"):
    return saved(path, Image.new("RGB", size, (shade, 10, 200)).convert(mode))


def png(values, *, bits, colour, palette=b"", promised=()):
    """A PNG of any width of pixel, written by hand; its header may promise other sides."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape
    rows = []
    for row in values:
        digits = "".join(f"{value:0{bits}b}" for value in row)
        digits += "0" * (-len(digits) % 8)
        rows.append(b"\0" + int(digits, 2).to_bytes(len(digits) // 8, "big"))
    header = struct.pack(">IIBBBBB", *(promised or (width, height)), bits, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *([chunk(b"PLTE", palette)] if palette else [])]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IDAT", zlib.compress(b"".join(rows))), chunk(b"IEND", b"")])


def folders(root, *, names=("a", "b"), flat=True, kind="masks", target=NUMBERS, suffix=".png"):
    """Paired folders with a training and a validation split."""
    for split in ("train", "val"):
        for name in names:
            place = (
                (lambda what, split=split: root / split / what)
                if flat
                else (lambda what, split=split: root / what / split)
            )
            photo(place("images") / f"{name}.jpg")
            saved(place(kind) / f"{name}{suffix}", target)
    return root


@pytest.mark.parametrize("flat", [True, False])
def test_paired_folders(flat, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    root = folders(tmp_path, names=("b", "a", "deep/c"), flat=flat)
    saved(next(root.rglob("train" if flat else "masks/train")) / ("masks/x.png" if flat else "x.png"), NUMBERS)
    (root / "classes.txt").write_text("sky\nsea\nroad\n tree \nhouse\n\n")
    pairs, judged = open_pairs(root, "train", "segmentation"), open_pairs(root, "validation", "segmentation")
    assert (pairs.split, judged.split) == ("train", "val")
    assert pairs.names == ("a.jpg", "b.jpg", os.path.join("deep", "c.jpg"))
    assert pairs.classes == ("sky", "sea", "road", "tree", "house")
    assert pairs.num_classes == 5
    found = list(pickle.loads(pickle.dumps(pairs)))
    assert len(found) == len(pairs) == 3
    for image, mask in found:
        assert (image.mode, image.size, mask.dtype) == ("RGB", SIZE, np.uint8)
        np.testing.assert_array_equal(mask, NUMBERS)
    assert "train: 3 images with masks, 5 classes (sky, sea, road, tree, house); 1 mask without an image ignored" in (
        caplog.messages
    )
    pairs.transform = lambda image, mask: (image.size, int(mask.max()))
    assert pairs[-1] == (SIZE, 4)


def test_classes_are_counted_in_the_training_masks(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    root = folders(tmp_path)
    saved(root / "train/masks/b.png", np.full((4, 6), 255, np.uint8))
    saved(root / "val/masks/a.png", np.zeros((4, 6), np.uint8))
    assert open_pairs(root, "val", "segmentation").num_classes == 5
    assert any(
        line.startswith("reading the 2 masks of the train") and "classes.txt" in line for line in caplog.messages
    )
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]
    assert open_pairs(root, "val", "segmentation", num_classes=9).num_classes == 9
    saved(root / "train/masks/a.png", np.full((4, 6), 300, np.uint16))
    with pytest.raises(InputError, match=r"a.png' has the class number 300; the masks .* from 0 to 254"):
        open_pairs(root, "val", "segmentation")


def test_ade20k(tmp_path):
    numbers = np.array([[0, 1, 150], [2, 255, 0]], dtype=np.uint8)
    for split, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        photo(tmp_path / f"images/{split}/{name}.jpg", size=(3, 2))
        saved(tmp_path / f"annotations/{split}/{name}.png", numbers)
    train = open_pairs(tmp_path, "train", "segmentation")
    assert (train.split, train.num_classes, train.classes) == ("training", 150, ())
    np.testing.assert_array_equal(train[0][1], [[255, 0, 149], [1, 255, 255]])
    rows = "".join(f"{number}\t0.1\t10\t1\tclass {number}, other name          \n" for number in range(1, 151))
    (tmp_path / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n" + rows)
    judged = open_pairs(tmp_path, "validation", "segmentation")
    assert (judged.split, len(judged.classes), judged.classes[149]) == ("validation", 150, "class 150, other name")
    saved(tmp_path / "annotations/training/ADE_train_00000001.png", np.full((2, 3), 151, np.uint8))
    with pytest.raises(InputError, match=r"class number 151; the data set has 150 classes, numbered from 1"):
        train[0]


def test_folders_of_ade20k_with_other_files_are_not_taken_for_it(tmp_path):
    photo(tmp_path / "images/training/21.png")
    saved(tmp_path / "annotations/training/21.png", NUMBERS)
    with pytest.raises(InputError, match="has no split 'train' of images and masks; it needs train/images/"):
        open_pairs(tmp_path, "train", "segmentation")


@pytest.mark.parametrize(("year", "judged", "first"), [(2014, "test2014", 1), (2017, "val2017", 0)])
def test_coco_stuff(year, judged, first, tmp_path):
    for split in (f"train{year}", judged):
        photo(tmp_path / f"images/{split}/001.jpg", size=(3, 1))
        saved(tmp_path / f"annotations/{split}/001.png", np.full((1, 3), 182, np.uint8))
        saved(tmp_path / f"annotations/{split}/001_labelTrainIds.png", np.array([[first, 170 + first, 255]], np.uint8))
    train, other = (open_pairs(tmp_path, split, "segmentation") for split in ("train", "validation"))
    assert (train.split, other.split, train.num_classes) == (f"train{year}", judged, 171)
    for pairs in (train, other):
        np.testing.assert_array_equal(pairs[0][1], [[0, 170, 255]])
    saved(tmp_path / f"annotations/{judged}/001_labelTrainIds.png", np.zeros((1, 3), np.uint8))
    assert (other[0][1] == (255 if first else 0)).all()


@pytest.mark.parametrize("suffix", [".png", ".npy"])
def test_paired_depths(suffix, tmp_path):
    metres = METRES.copy()
    metres[0, :2] = 0
    stored = np.round(metres * 1000).astype(np.uint16) if suffix == ".png" else metres.astype(">f8")
    if suffix == ".npy":
        stored[0, :2] = [np.nan, np.inf]
    pairs = open_pairs(folders(tmp_path, kind="depths", target=stored, suffix=suffix), "train", "depth")
    assert (pairs.num_classes, pairs.classes) == (0, ())
    _, found = pairs[0]
    assert (type(found), found.dtype) == (np.ndarray, np.float32)
    np.testing.assert_allclose(found, metres, atol=0.0006 if suffix == ".png" else 0)


def test_nyu(tmp_path):
    for name in ("x_1", "x_2"):
        photo(tmp_path / f"kitchen/{name}.jpg")
        saved(tmp_path / f"kitchen/d_{name}.png", np.full((4, 6), 2500, np.uint16))
    lines = [
        "/kitchen/x_2.jpg /kitchen/d_x_2.png 518.8579",
        "kitchen/x_1.jpg kitchen/d_x_1.png 518.8579",
        "kitchen/x_1.jpg None 518.8579",
    ]
    (tmp_path / "nyu_train.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "nyu_test.txt").write_text(lines[1])
    train, judged = open_pairs(tmp_path, "train", "depth"), open_pairs(tmp_path, "validation", "depth")
    assert (train.names, judged.split) == (("kitchen/x_2.jpg", "kitchen/x_1.jpg"), "test")
    np.testing.assert_array_equal(train[0][1], np.float32(2.5))
    for line, words in (
        ("../a.jpg kitchen/d_x_1.png 1", r"line 1 of '.*' names '../a.jpg', outside"),
        ("kitchen/x_1.jpg kitchen/../../d.png 1", "names '../d.png', outside"),
        ("/etc/passwd kitchen/d_x_1.png 1", r"1 file in '.*' do not exist: .*/etc/passwd"),
        ("kitchen/x_1.jpg", "it needs an image, a depth map and a focal length"),
        ("kitchen/x_1.jpg None 1", "lists no image with a depth map"),
    ):
        (tmp_path / "nyu_train.txt").write_text(line)
        with pytest.raises(InputError, match=words):
            open_pairs(tmp_path, "train", "depth")


def test_a_hugging_face_data_set(tmp_path):
    datasets = pytest.importorskip("datasets")
    images, masks = [photo(tmp_path / f"{n}.jpg", 10 * n) for n in range(3)], []
    for number in range(3):
        file = io.BytesIO()
        Image.fromarray(NUMBERS + number).save(file, "PNG")
        masks.append({"bytes": file.getvalue(), "path": None})
    columns = {"image": [*map(str, images)], "annotation": masks, "name": ["a", "b", "c"]}
    kinds = datasets.Features(
        {"image": datasets.Image(), "annotation": datasets.Image(), "name": datasets.Value("string")}
    )
    (tmp_path / "set").mkdir()
    for split in ("train", "validation"):
        table = datasets.Dataset.from_dict(columns, kinds)
        table.to_parquet(tmp_path / f"set/{split}.parquet")
    name = f"hfds/{tmp_path / 'set'}"
    judged = open_pairs(name, "val", "segmentation")
    assert (judged.split, judged.num_classes, judged.names) == ("validation", 7, ("0", "1", "2"))
    for number, (image, mask) in enumerate(judged):
        np.testing.assert_array_equal(mask, NUMBERS + number)
        assert image.getpixel((3, 2))[0] == pytest.approx(10 * number, abs=3)
    few = open_pairs(name, "train", "segmentation", num_classes=5)
    with pytest.raises(InputError, match="mask 'row 1 of train' has the class number 5"):
        few[1]
    with pytest.raises(
        InputError, match=r"none of the columns depth_map, depth; .*columns with images: image, annotation"
    ):
        open_pairs(name, "train", "depth")
    with pytest.raises(InputError, match="column 'name' does not hold images; choose one of"):
        open_pairs(name, "train", "segmentation", target_key="name")


def damaged(root, change):
    """The first pair of a good data set, after something has been changed."""
    folders(root)
    (root / "classes.txt").write_text("\n".join("abcde"))
    change(root / "train")
    return open_pairs(root, "train", "segmentation")[0]


def _cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def _bomb(path):
    path.write_bytes(png(NUMBERS, bits=8, colour=0, promised=(100_000, 100_000)))


FAULTS = {
    "no mask": (lambda at: (at / "masks/a.png").unlink(), r"1 of 2 images in .* have no mask in .*: a.jpg; .*NAME.png"),
    "other size": (
        lambda at: saved(at / "masks/a.png", NUMBERS[:3]),
        r"a.jpg' has 6 x 4 pixels, but its mask '.*a.png' has 6 x 3",
    ),
    "no such class": (
        lambda at: saved(at / "masks/a.png", NUMBERS + 1),
        r"a.png' has the class number 5; the data set has 5 classes, numbered from 0",
    ),
    "colours": (
        lambda at: photo(at / "masks/a.png"),
        r"mask '.*a.png' is a colour image \(mode RGB\), not class numbers",
    ),
    "transparency": (
        lambda at: photo(at / "masks/a.png", mode="LA"),
        r"is an image with transparency \(mode LA\), not class numbers",
    ),
    "JPEG as a mask": (
        lambda at: (at / "masks/a.png").write_bytes((at / "images/a.jpg").read_bytes()),
        r"mask '.*a.png' cannot be read \(it is not a PNG\); repair it",
    ),
    "cut mask": (lambda at: _cut(at / "masks/a.png"), r"mask '.*a.png' cannot be read"),
    "cut image": (lambda at: _cut(at / "images/a.jpg"), r"image '.*a.jpg' cannot be read"),
    "bomb": (lambda at: _bomb(at / "masks/a.png"), r"mask '.*a.png' cannot be read \(DecompressionBomb"),
    "empty": (lambda at: (at / "images/a.jpg").write_bytes(b""), r"a.jpg' cannot be read \(it is not an image\)"),
    "narrow": (
        lambda at: [saved(at / f"{kind}", Image.new("L", (900, 1))) for kind in ("images/a.jpg", "masks/a.png")],
        r"at most 100 to 1 is allowed",
    ),
    "link to nothing": (
        lambda at: [(at / "masks/a.png").unlink(), (at / "masks/a.png").symlink_to(at / "none.png")],
        r"mask '.*a.png' cannot be read .*does not exist",
    ),
    "pipe": (
        lambda at: [(at / "images/a.jpg").unlink(), os.mkfifo(at / "images/a.jpg")],
        r"image '.*a.jpg' cannot be read .*not a file",
    ),
    "two of a name": (lambda at: photo(at / "images/a.png"), "differ only in their suffix"),
    "no images": (lambda at: [path.unlink() for path in (at / "images").iterdir()], "has no images"),
    "twice": (lambda at: (at.parent / "classes.txt").write_text("a\nb\na"), "names 'a' twice"),
    "a link": (
        lambda at: [(at.parent / "classes.txt").unlink(), (at.parent / "classes.txt").symlink_to("/etc/hosts")],
        "classes.txt' links out of its folder",
    ),
    "empty line": (lambda at: (at.parent / "classes.txt").write_text("a\n\nb"), r"line 2 of .*classes.txt' is empty"),
    "not text": (lambda at: (at.parent / "classes.txt").write_bytes(b"\xff\xfe\0"), r"classes.txt' cannot be read"),
    "many": (
        lambda at: (at.parent / "classes.txt").write_text("\n".join(map(str, range(256)))),
        "names 256 classes; masks have at most 255",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line(name, tmp_path):
    change, words = FAULTS[name]
    with pytest.raises(InputError, match=words) as caught:
        damaged(tmp_path, change)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 700


def test_a_folder_of_no_layout(tmp_path):
    with pytest.raises(InputError, match="no/where' does not exist; it needs train/images/ and train/masks/"):
        open_pairs(tmp_path / "no/where", "train", "segmentation")
    for task, wanted in (
        ("segmentation", "masks/, .* ADE20K or of COCO-Stuff"),
        ("depth", "depths/, .* nyu_train.txt"),
    ):
        with pytest.raises(InputError, match=f"has no split 'train' .* it needs train/images/ and train/{wanted}"):
            open_pairs(tmp_path, "train", task)
    with pytest.raises(InputError, match="unknown task 'segment'; did you mean 'segmentation'"):
        open_pairs(tmp_path, "train", "segment")
    with pytest.raises(InputError, match="begins with a scheme"):
        open_pairs("https://x/y", "train", "depth")


@pytest.mark.parametrize(("bits", "colour"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (1, 3), (2, 3), (4, 3), (8, 3)])
def test_masks_of_every_width_of_pixel(bits, colour):
    """Pillow stretches narrow grey values; palettes must not become colours."""
    numbers = np.arange(15).reshape(3, 5) % 2**bits
    content = png(numbers, bits=bits, colour=colour, palette=bytes(range(48)) if colour == 3 else b"")
    np.testing.assert_array_equal(read_mask("m", content), numbers)


def test_a_palette_with_transparency_is_read_by_its_places(tmp_path):
    image = Image.fromarray(NUMBERS)
    image.putpalette([7, 7, 7] * 256)
    path = saved(tmp_path / "a.png", image, transparency=bytes([0, 128, 255]))
    np.testing.assert_array_equal(read_mask("m", str(path)), NUMBERS)
    image, change = read_image("i", str(path), Decoding(background="#070707"))
    assert (image.getextrema(), change) == (((7, 7),) * 3, Change.COMPOSITED)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("1", "png"), ("L", "png"), ("P", "gif"), ("RGBA", "png"), ("CMYK", "jpg")]
)
def test_images_of_every_mode_become_rgb(mode, suffix, tmp_path):
    path = saved(tmp_path / f"a.{suffix}", Image.new("RGB", SIZE, (255, 255, 255)).convert(mode))
    image, change = read_image("i", str(path), Decoding())
    assert not change
    assert (image.mode, image.size, image.getextrema()) == ("RGB", SIZE, ((255, 255),) * 3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (METRES.astype(np.int32), "has the shape .* and the type int32"),
        (METRES[None], r"has the shape \(1, 4, 6\)"),
        (-METRES, "has the negative depth -9.5 m"),
        (np.array([{}], dtype=object), "cannot be read"),
    ],
)
def test_arrays_that_are_no_depth(content, words, tmp_path):
    path = saved(tmp_path / "a.npy", content)
    with pytest.raises(InputError, match=words):
        read_depth("d", str(path))


def test_a_header_that_promises_more_than_the_file_has(tmp_path):
    path = saved(tmp_path / "a.npy", METRES)
    path.write_bytes(path.read_bytes().replace(b"(4, 6), }      ", b"(400000, 60000)"))
    with pytest.raises(InputError, match="cannot be read"):
        read_depth("d", str(path))
    saved(tmp_path / "b.png", NUMBERS)
    with pytest.raises(InputError, match=r"is an 8-bit image \(mode L\); save it as a PNG of 16 bits in millimetres"):
        read_depth("d", str(tmp_path / "b.png"))


def test_headers_of_all_pairs_or_of_some_evenly_spread(tmp_path, monkeypatch):
    """Not the pixels, which one of the images here does not have."""
    place = tmp_path / "train"
    for number in range(5):
        photo(place / f"images/{number}.png")
        saved(place / f"depths/{number}.npy", METRES)
    content = (place / "images/1.png").read_bytes()
    (place / "images/1.png").write_bytes(content[: content.index(b"IDAT") + 6])
    pairs = open_pairs(tmp_path, "train", "depth")
    pairs.check_headers()
    with pytest.raises(InputError, match=r"1\.png' cannot be read"):
        pairs[1]
    saved(place / "depths/3.npy", METRES[:2])
    with pytest.raises(
        InputError, match=r"3\.png' has 6 x 4 pixels, but its depth map '.*3\.npy' has 6 x 2; both must"
    ):
        pairs.check_headers()
    monkeypatch.setattr("stitchkit.data.dense.pairs._MOST_HEADERS", 2)  # those of 0 and 2
    pairs.check_headers()
    photo(place / "images/2.png", size=(4, 6))
    with pytest.raises(InputError, match=r"2\.png' has 4 x 6 pixels"):
        pairs.check_headers()


def test_values_of_all_masks_or_of_some_evenly_spread(tmp_path, monkeypatch):
    for number in range(5):
        photo(tmp_path / f"train/images/{number}.png")
        saved(tmp_path / f"train/masks/{number}.png", NUMBERS + (number == 3))
    pairs = open_pairs(tmp_path, "train", "segmentation", num_classes=5)
    with pytest.raises(InputError, match=r"mask '.*3\.png' has the class number 5; the data set has 5 classes"):
        pairs.check_values()
    for name, most in (("_MOST_MASKS", 2), ("_MOST_PIXELS", 2 * NUMBERS.size)):  # those of 0 and 2
        with monkeypatch.context() as patch:
            patch.setattr(f"stitchkit.data.dense.pairs.{name}", most)
            pairs.check_values()


def test_images_are_decoded_as_everywhere(tmp_path):
    deep = Image.fromarray(np.full((4, 6), 40 * 257, np.uint16))
    image, change = read_image("i", str(saved(tmp_path / "a.png", deep)), Decoding())
    assert (image.mode, image.getextrema(), change) == ("RGB", ((40, 40),) * 3, Change.SCALED)


@pytest.mark.parametrize("number", range(2, 9))
def test_a_tiff_with_an_orientation_is_read_as_it_is_stored(number, tmp_path):
    """Pillow turns it as it loads it."""
    grey = (METRES * 20).astype(np.uint8)
    photo = str(saved(tmp_path / "photo.tif", grey, exif=oriented(number)))
    depths = str(saved(tmp_path / "depths.tif", METRES, exif=oriented(number)))
    assert header_of("image", "i", photo) == header_of("depth map", "d", depths) == ((4, 6), number)
    for content in (photo, (tmp_path / "photo.tif").read_bytes()):
        image, change = read_image("i", content, Decoding("L"))
        assert (np.asarray(image).tolist(), change) == (grey.tolist(), 0)
    np.testing.assert_array_equal(read_depth("d", depths), METRES)


def oriented(number):
    data = Image.Exif()
    data[0x112] = number
    return data


@pytest.mark.parametrize(
    ("size", "of_image", "of_mask", "is_read"),
    [
        (SIZE, 3, 1, False), (SIZE, 3, 3, True), (SIZE, 1, 3, True), ((6, 6), 6, 1, False), ((6, 6), 6, 6, True),
        (SIZE, 6, 1, True),
    ],
)  # fmt: skip
def test_an_image_whose_exif_data_turn_it_against_its_mask_is_refused(size, of_image, of_mask, is_read, tmp_path):
    """An image on its side that is not square fits its mask only if both are stored alike."""
    for kind, shade, number in (("images", 90, of_image), ("masks", 1, of_mask)):
        place = tmp_path / "train" / kind / "a.png"
        place.parent.mkdir(parents=True)
        Image.new("L", size, shade).save(place, exif=oriented(number))
    pairs = open_pairs(tmp_path, "train", "segmentation", num_classes=2)
    for check in (pairs.check_headers, lambda: pairs[0]):
        if is_read:
            check()
        else:
            with pytest.raises(
                InputError, match=r"a.png' is turned by its EXIF .* and its mask is not; save it upright"
            ):
                check()
    pairs.decoding = Decoding(exif=False)
    assert np.asarray(pairs[0][0]).shape == (size[1], size[0], 3)
