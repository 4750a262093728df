"""Every reader decodes an image in one way: depth, transparency, EXIF orientation, first frame, colour mode."""

import io
import logging
import shutil
import struct
import tarfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.train.data import open_data
from stitchkit.data.decoding import Change, Decoding
from stitchkit.data.dense.maps import read_depth
from stitchkit.data.open_dataset import open_dataset
from stitchkit.data.source import Source
from stitchkit.data.unreadable import CheckedImages
from stitchkit.distributed import World
from stitchkit.errors import InputError
from stitchkit.settings.fields import COLOUR_MODES
from stitchkit.ship.predictors import Files, Transform
from stitchnet.data import image_folder, read_image
from tests.jobs import job_config

SIDE = 16
GREY = np.linspace(0, 255, SIDE * SIDE).round().astype(np.uint8).reshape(SIDE, SIDE)
PLAIN = Image.fromarray(GREY)
CONFIG = {
    "input_size": (3, SIDE, SIDE), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "crop_pct": 1.0,
    "crop_mode": "center", "input_img_mode": "RGB", "background": "white", "exif": True,
}  # fmt: skip


def hidden(mode):
    """The picture as transparency: white shows through, and what lies hidden below is noise."""
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    bands = [Image.fromarray(np.where(GREY == 255, noise, 0).astype(np.uint8))] * (len(mode) - 1)
    return Image.merge(mode, [*bands, Image.fromarray(255 - GREY)])


def palette():
    image = Image.fromarray(GREY)
    image.putpalette([shade for shade in range(256) for _ in range(3)])
    return image


def turned(number):
    """The picture stored on its side or head, with the orientation that turns it back."""
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    return PLAIN.transpose(back[number])


def exif(number):
    data = Image.Exif()
    data[0x112] = number
    return data


def png(to, rows, bits, colour, transparent=()):
    """A PNG of a depth that Pillow does not write; the transparent colour is in the units of the file."""
    rows = np.asarray(rows)
    digits = np.unpackbits(rows.astype(">u2").view(np.uint8).reshape(*rows.shape, 2), axis=-1)[..., -bits:]
    packed = np.packbits(digits.reshape(len(rows), -1), axis=1)
    chunks = {
        b"IHDR": struct.pack(">2I5B", rows.shape[1], rows.shape[0], bits, colour, 0, 0, 0),
        b"tRNS": struct.pack(f">{len(transparent)}H", *transparent),
        b"IDAT": zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed)),
        b"IEND": b"",
    }
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks.items():
        if data or kind == b"IEND":
            content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    to.write_bytes(content)


FILES = {
    "16 bits.png": lambda to: Image.fromarray(GREY.astype(np.uint16) * 257).save(to),
    "16 bits.tif": lambda to: Image.fromarray(GREY.astype(np.uint16) * 257).save(to),
    "big-endian.tif": lambda to: Image.fromarray(GREY.astype(">u2") * 257).save(to),
    "16 bits.jp2": lambda to: Image.fromarray(GREY.astype(np.uint16) * 257).save(to),
    "10 bits.pgm": lambda to: to.write_bytes(b"P5 16 16 1020\n" + (GREY * np.uint16(4)).astype(">u2").tobytes()),
    "32 bits.tif": lambda to: Image.fromarray(GREY.astype(np.int32) * 257).save(to),
    "signed.tif": lambda to: Image.fromarray((GREY * (32_767 / 255)).round().astype("<u2")).save(to, tiffinfo={339: 2}),
    "shares.tif": lambda to: Image.fromarray(GREY.astype(np.float32) / 255).save(to),
    "shades.tif": lambda to: Image.fromarray(GREY.astype(np.float32)).save(to),
    "rgba.png": lambda to: hidden("RGBA").save(to),
    "la.png": lambda to: hidden("LA").save(to),
    "rgba.webp": lambda to: hidden("RGBA").save(to, lossless=True, exact=True),
    "palette.png": lambda to: palette().save(to, transparency=255),
    "opaque.png": lambda to: PLAIN.convert("RGBA").save(to),
    "deep and clear.png": lambda to: Image.fromarray(GREY.astype(np.uint16) * 257).save(to, transparency=65535),
    "rotated.png": lambda to: turned(6).save(to, exif=exif(6)),
    "on its head.webp": lambda to: turned(3).save(to, exif=exif(3), lossless=True),
    "rotated.tif": lambda to: turned(8).save(to, exif=exif(8)),
    "many.gif": lambda to: PLAIN.save(to, save_all=True, append_images=[Image.new("L", (SIDE, SIDE))]),
    "pages.tif": lambda to: PLAIN.save(to, save_all=True, append_images=[Image.new("L", (SIDE, SIDE))]),
    "animated.png": lambda to: PLAIN.save(to, save_all=True, append_images=[Image.new("L", (SIDE, SIDE))]),
}


def written(name, folder):
    folder.mkdir(parents=True)
    PLAIN.save(folder / "0.png")
    FILES[name](folder / f"1.{name.rpartition('.')[2]}")
    return folder


def of_folder(folder, transform):
    images = open_dataset(Source("", folder.parent.parent), "train")
    images.transform = transform
    return [image for image, _ in images]


def of_checked(folder, transform):
    images = CheckedImages(open_dataset(Source("", folder.parent.parent), "train"), num_classes=1, is_training=False)
    images.transform = transform
    return [image for image, label in images if label == 0]


def of_stream(folder, transform):
    (folder.parent.parent / "shards").mkdir()
    with tarfile.open(folder.parent.parent / "shards/train-0000.tar", "w") as archive:
        for number, path in enumerate(sorted(folder.iterdir())):
            for suffix, content in (("cls", b"0"), ("jpg", path.read_bytes())):
                entry = tarfile.TarInfo(f"{number}.{suffix}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    options = {"num_samples": 2, "batch_size": 1}
    images = open_dataset(Source("wds/", folder.parent.parent / "shards"), "train-{0000..0000}.tar", **options)
    images.transform = transform
    return [image for image, _ in images]


def of_job(folder, _):
    shutil.copytree(folder.parent, folder.parent.parent / "validation")
    config = job_config(folder.parent.parent, data_preprocessing={"image_size": SIDE})
    (data,) = open_data(JobConfig.parse(config), World(0, 1, torch.device("cpu")))
    return [image for images, _ in data.test for image in images]


READERS = {
    "image folder": of_folder,
    "unreadable images are skipped": of_checked,
    "stream": of_stream,
    "job": of_job,
    "predict": lambda folder, _: [
        row[1] for row in Files(sorted(map(str, folder.iterdir())), Transform(CONFIG).read, torch.empty(0))
    ],
    "serve": lambda folder, _: [Transform(CONFIG)(str(path)) for path in sorted(folder.iterdir())],
    "stitchnet": lambda folder, _: [read_image(path, (SIDE, SIDE)) for path in sorted(folder.iterdir())],
    "compose": lambda folder, _: [image for image, _ in image_folder(folder.parent, SIDE)],
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_sees_the_same_picture_whatever_file_holds_it(reader, tmp_path):
    wrong = []
    for name in FILES:
        folder = written(name, tmp_path / name / "train/a")
        usual, other = READERS[reader](folder, create_transform((3, SIDE, SIDE), is_training=False, crop_pct=1.0))
        if not torch.equal(usual, other):
            wrong.append(name)
    assert not wrong


@pytest.mark.parametrize("mode", ["RGB", "L", "YCbCr", "RGBA", "1", "HSV"])
@pytest.mark.parametrize("stored", ["RGB", "L", "P", "1", "CMYK", "RGBA"])
def test_ordinary_images_stay_bit_identical_to_pillow(stored, mode, tmp_path):
    noise = np.random.default_rng(1).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    file = tmp_path / ("a.tif" if stored == "CMYK" else "a.png")
    Image.fromarray(noise).convert(stored).save(file)
    ours, change = Decoding(mode).read(file)
    between = Image.open(file) if stored != "RGBA" else Image.open(file).convert("RGB" if mode != "RGBA" else "RGBA")
    assert (ours.mode, ours.tobytes(), change) == (mode, between.convert(mode).tobytes(), 0)


@pytest.mark.parametrize(("suffix", "loss"), [("jpg", 3), ("tif", 0)])
def test_the_colours_of_cmyk_come_out_right(suffix, loss, tmp_path):
    """Pillow writes the JPEG as Adobe's programs do: with inverted inks."""
    Image.new("RGB", (16, 16), (200, 30, 60)).convert("CMYK").save(tmp_path / f"a.{suffix}", quality=95)
    if suffix == "jpg":
        assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()
    shown = Decoding()(tmp_path / f"a.{suffix}").getpixel((8, 8))
    assert np.abs(np.subtract(shown, (200, 30, 60))).max() <= loss


def test_flags_change_the_background_and_leave_images_as_they_are_stored(tmp_path):
    hidden("RGBA").save(tmp_path / "a.png", exif=exif(6))
    black = Decoding("L", background="black")(tmp_path / "a.png")
    assert black.getextrema()[1] < 255
    ours, change = Decoding(exif=False).read(tmp_path / "a.png")
    assert (np.asarray(ours)[..., 0] == GREY).all()
    assert change == Change.COMPOSITED
    kept, change = Decoding("RGBA", exif=False).read(tmp_path / "a.png")
    assert (kept.tobytes(), change) == (hidden("RGBA").tobytes(), 0)


@pytest.mark.parametrize("values", [[-5.0, 1.0], [0.0, 1e9], [float("nan"), 1.0]])
def test_floats_that_are_no_shades_of_grey_are_refused(values, tmp_path):
    Image.fromarray(np.array([values], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"its values are .* no shades of grey; save values from 0 to 1"):
        Decoding()(tmp_path / "a.tif")


def test_damaged_exif_data_turn_nothing(tmp_path):
    PLAIN.save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    assert Decoding().read(tmp_path / "a.jpg")[1] == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_the_log_says_once_how_many_images_were_changed_and_how(workers, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "train/a").mkdir(parents=True)
    for name, save in FILES.items():
        save(tmp_path / "train/a" / name)
    images = CheckedImages(open_dataset(Source("", tmp_path), "train"), num_classes=1, is_training=True)
    images.transform = np.array
    for _ in range(2):
        for _ in torch.utils.data.DataLoader(images, None, num_workers=workers):
            pass
        images.report()
    message = (
        "of the 21 images of the train split: 3 turned by EXIF orientation, 10 scaled to 8 bits, "
        "5 composited on white, 3 with several frames (only the first is used)"
    )
    assert [text for text in caplog.messages if "EXIF" in text] == [message]


def test_a_deep_grey_tiff_whose_white_is_zero_is_not_inverted(tmp_path):
    values = np.array([[0, 32_768, 65_535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo={262: 0})
    assert np.asarray(Decoding("L")(tmp_path / "a.tif")).tolist() == [[255, 127, 0]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
@pytest.mark.parametrize(("bits", "colour"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2)])
def test_the_transparent_colour_of_a_png_of_any_depth_shows_the_background(bits, colour, mode, tmp_path):
    most, bands = 2**bits - 1, 3 if colour else 1
    least = most // 7  # of 16 bits, the lower half is not 0
    rows = [[[least] * bands, [most] * bands]]
    png(tmp_path / "a.png", rows, bits, colour, transparent=[least] * bands)
    png(tmp_path / "b.png", rows, bits, colour, transparent=[most] * bands)
    if mode.endswith("A"):
        alpha = [np.asarray(Decoding(mode)(tmp_path / f"{one}.png"))[0, :, -1].tolist() for one in "ab"]
        assert alpha == [[0, 255], [255, 0]]
    else:
        seen = [Decoding(mode, "red")(tmp_path / f"{one}.png").convert("RGB") for one in "ab"]
        red = Image.new("RGB", (1, 1), "red").convert(mode).convert("RGB").getpixel((0, 0))
        grey = (round(least * 255 / most),) * 3
        assert [[image.getpixel((x, 0)) for x in (0, 1)] for image in seen] == [[red, (255,) * 3], [grey, red]]


def test_the_white_of_signed_values_is_half_that_of_unsigned_ones(tmp_path):
    values = np.array([[0, 16_384, 32_767]], "<u2")
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo={339: 2})
    assert Image.open(tmp_path / "a.tif").mode == "I"
    assert np.asarray(Decoding("L")(tmp_path / "a.tif")).tolist() == [[0, 128, 255]]
    Image.fromarray(np.array([[0, 65_535]], "<u2")).save(tmp_path / "b.tif", tiffinfo={339: 2})
    with pytest.raises(InputError, match="its values are -1 to 0, which are no shades of grey"):
        Decoding("L")(tmp_path / "b.tif")


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("suffix", ["tif", "png", "jpg", "webp"])
def test_the_stored_orientation_decides_the_pixels(suffix, number, tmp_path):
    """However a file is given: Pillow maps TIFF files that it opens itself, and mixes up those on their side."""
    shades, file = GREY[:, :12], tmp_path / f"a.{suffix}"
    turn = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose,
        6: lambda a: np.rot90(a, 3), 7: lambda a: np.rot90(a, 2).T, 8: np.rot90,
    }[number]  # fmt: skip
    Image.fromarray(shades).save(
        file, exif=exif(number), **({"lossless": True} if suffix == "webp" else {"quality": 100})
    )
    stored = np.asarray(Image.open(file)) if suffix == "jpg" else shades
    for source in (file, str(file), io.BytesIO(file.read_bytes()), file.open("rb")):
        for is_obeyed in (True, False):
            if hasattr(source, "seek"):
                source.seek(0)
            image, change = Decoding("L", exif=is_obeyed).read(source)
            is_turned = is_obeyed and number > 1
            assert np.asarray(image).tolist() == (turn(stored) if is_turned else stored).tolist()
            assert change == (Change.TURNED if is_turned else 0)


@pytest.mark.parametrize("is_obeyed", [True, False])
def test_the_depth_of_a_turned_tiff_is_that_of_the_file(is_obeyed, tmp_path):
    values = np.array([[0, 32_767]] * 3, "<u2")
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo={339: 2, 274: 6})
    expected = [[0] * 3, [255] * 3] if is_obeyed else [[0, 255]] * 3
    assert np.asarray(Decoding("L", exif=is_obeyed)(tmp_path / "a.tif")).tolist() == expected


def tiff(to, data, bits, *, compression=1, form=1, planes=1):
    """A big-endian TIFF of 2 x 1 pixels, of a kind that Pillow does not write."""
    tags = {
        256: 2, 257: 1, 258: bits, 259: compression, 262: 1 if planes == 1 else 2, 273: 8, 277: planes, 278: 1,
        279: len(data), 284: min(planes, 2), 339: form,
    }  # fmt: skip
    rows = b"".join(struct.pack(">2HI2H", tag, 3, 1, value, 0) for tag, value in tags.items())
    to.write_bytes(b"MM\0*" + struct.pack(">I", 8 + len(data)) + data + struct.pack(">H", len(tags)) + rows + b"\0" * 4)


def test_values_of_8_bits_with_a_sign_are_read_with_it(tmp_path):
    tiff(tmp_path / "a.tif", bytes([0, 127]), 8, form=2)
    assert np.asarray(Decoding("L")(tmp_path / "a.tif")).tolist() == [[0, 255]]
    tiff(tmp_path / "b.tif", bytes([0, 255]), 8, form=2)
    with pytest.raises(InputError, match="its values are -1 to 0, which are no shades of grey"):
        Decoding("L")(tmp_path / "b.tif")


@pytest.mark.parametrize(("bits", "form", "values"), [(16, 2, ">i2"), (32, 2, ">i4"), (32, 3, ">f4")])
def test_a_tiff_whose_bytes_pillow_swaps_twice_is_refused(bits, form, values, tmp_path):
    content = zlib.compress(np.array([0, 1], values).tobytes())
    tiff(tmp_path / "a.tif", content + b"\0" * (len(content) % 2), bits, compression=8, form=form)
    with pytest.raises(InputError, match="Pillow decodes no compressed big-endian TIFF of signed values or floats"):
        Decoding("L")(tmp_path / "a.tif")
    with pytest.raises(InputError, match="Pillow decodes no compressed"):
        read_depth("d", str(tmp_path / "a.tif"))


def test_fits_is_refused_since_pillow_swaps_its_bytes(tmp_path):
    cards = [b"SIMPLE  =  T", b"BITPIX  = 16", b"NAXIS   =  2", b"NAXIS1  =  2", b"NAXIS2  =  1", b"END"]
    header = b"".join(card.ljust(80) for card in cards).ljust(2880)
    (tmp_path / "a.fits").write_bytes(header + np.array([0, 1], ">i2").tobytes().ljust(2880, b"\0"))
    with pytest.raises(InputError, match="Pillow decodes no FITS of more than 8 bits; save it as PNG"):
        Decoding("L")(tmp_path / "a.fits")


def test_floats_of_pfm_are_shares_of_white(tmp_path):
    (tmp_path / "a.pfm").write_bytes(b"Pf\n2 1\n-1.0\n" + np.array([0, 1], "<f4").tobytes())
    assert np.asarray(Decoding("L")(tmp_path / "a.pfm")).tolist() == [[0, 255]]


@pytest.mark.parametrize("mode", COLOUR_MODES)
def test_every_image_becomes_one_of_every_mode_of_networks(mode):
    shown = Image.new("RGB", (4, 4), (200, 30, 60))
    for stored in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16", "F"):
        image = shown.convert("L") if stored in ("LA", "PA", "I;16") else shown
        read = Decoding(mode)(image.convert(stored))
        assert (read.mode, np.asarray(read).dtype) == (mode, np.uint8)
        read.resize((3, 3), Image.Resampling.BICUBIC)
