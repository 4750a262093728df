"""The rendered data set that is split by typeface; with matplotlib's fonts only."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib import get_data_path

from stitchkit.data.open_dataset import open_dataset
from stitchkit.data.source import Source
from stitchkit.errors import InputError
from studies.typefaces.__main__ import main
from studies.typefaces.folder import TYPEFACES, write_glyphs
from studies.typefaces.fonts import (
    CHARACTERS,
    SHARES,
    Typeface,
    _by_design,
    _Face,
    default_folders,
    find_typefaces,
    split_typefaces,
)
from studies.typefaces.glyphs import class_name, render_split

FONTS = Path(get_data_path(), "fonts/ttf")
FEW = {"train": 2, "validation": 1, "test": 1}


@pytest.fixture(scope="module")
def found():
    return find_typefaces([FONTS], least=1)


@pytest.fixture(scope="module")
def splits(found):
    """As if there were more typefaces: each face of the few is one."""
    faces = [Typeface(face.stem, (face,)) for typeface in found.typefaces for face in typeface.faces]
    return split_typefaces(faces)


def test_class_names_differ_on_every_file_system():
    names = {class_name(character).casefold() for character in CHARACTERS}
    assert len(names) == len(CHARACTERS) == 62
    assert {"digit_0", "upper_A", "lower_a"} == {class_name(character) for character in "0Aa"}


def test_styles_and_kin_of_a_family_are_one_typeface(found):
    files = {typeface.name: {face.stem for face in typeface.faces} for typeface in found.typefaces}
    dejavu = next(faces for faces in files.values() if "DejaVuSans" in faces)
    assert {"DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif-Italic"} <= dejavu
    assert len({face for faces in files.values() for face in faces}) == sum(map(len, files.values()))


def test_fonts_without_letters_are_left_out_and_counted(found):
    used = {face.stem for typeface in found.typefaces for face in typeface.faces}
    assert "STIXSizOneSymReg" not in used  # brackets only
    assert "cmsy10" not in used  # signs in the places of letters
    assert "DejaVuSansDisplay" not in used
    assert sum(found.left_out.values()) + len(used) == sum(1 for _ in FONTS.glob("*.ttf"))
    assert found.left_out["lacking a character"] > 5


def test_a_font_of_boxes_and_a_broken_file_are_left_out(tmp_path, found):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    again = find_typefaces([FONTS, tmp_path, FONTS], least=1)
    assert again.typefaces == found.typefaces
    assert again.left_out["unreadable"] == 1
    # What is found again: all that was used, and nothing that was left out for another reason.
    assert again.left_out["duplicated"] >= sum(len(typeface.faces) for typeface in found.typefaces)


def test_one_design_under_two_names_is_one_typeface(tmp_path):
    """As Nimbus Roman and TeX Gyre Termes are: the name within a copy of a font is changed."""
    font = (FONTS / "STIXGeneral.ttf").read_bytes()
    (tmp_path / "original.ttf").write_bytes(font)
    for code in ("utf-16-be", "ascii"):
        font = font.replace("STIXGeneral".encode(code), "QuiteAnother"[:11].encode(code))
    (tmp_path / "clone.ttf").write_bytes(font)
    (typeface,) = find_typefaces([tmp_path], least=1).typefaces
    assert {face.name for face in typeface.faces} == {"original.ttf", "clone.ttf"}


@pytest.mark.parametrize("names", [("ABCDExtra", "abcd Sans"), ("abcd Sans", "ABCDExtra"), ("Abcd", "abcd")])
def test_families_whose_names_begin_alike_are_one_typeface_in_any_order_and_case(names):
    """Their faces draw nothing alike."""
    faces = [_Face(name, "", Path(name), np.eye(2)[place]) for place, name in enumerate(names)]
    assert len(_by_design(faces)) == 1
    assert len(_by_design([faces[0], faces[1]._replace(family="abx")])) == 2


def test_typefaces_have_all_that_are_linked_and_stand_in_the_order_of_their_first_face():
    """By a design that two draw, or by a name, also through a third one that comes later."""
    designs = {"alpha": 0, "bravo": 1, "charlie": 2, "delta": 1, "echo one": 3, "echo two": 2, "foxtrot": 0, "golf": 4}
    shapes = np.eye(5, dtype=np.float32) * len(CHARACTERS) ** 0.5
    faces = [_Face(name, "", Path(name), shapes[design]) for name, design in designs.items()]
    assert [(typeface.name, [face.name for face in typeface.faces]) for typeface in _by_design(faces)] == [
        ("alpha", ["alpha", "foxtrot"]),
        ("bravo", ["bravo", "delta"]),
        ("charlie", ["charlie", "echo one", "echo two"]),
        ("golf", ["golf"]),
    ]
    assert _by_design([]) == []


def test_default_folders_exist(monkeypatch, tmp_path):
    (tmp_path / ".local/share/fonts").mkdir(parents=True)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    found = default_folders()
    assert [folder for folder in found if tmp_path in folder.parents] == [tmp_path / ".local/share/fonts"]
    assert found[-1] == FONTS
    assert all(folder.is_dir() for folder in found)


def test_too_few_typefaces_and_no_folder_are_one_line(tmp_path):
    with pytest.raises(
        InputError, match=r"^\d typefaces with all 62 characters in .*at least 20 are needed.*Debian's fonts-"
    ):
        find_typefaces([FONTS])
    with pytest.raises(InputError, match="folder 'nowhere' does not exist"):
        find_typefaces([Path("nowhere")])
    with pytest.raises(InputError, match=r"'.*DejaVuSans.ttf' is not a folder; choose one with fonts"):
        find_typefaces([FONTS / "DejaVuSans.ttf"])
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    with pytest.raises(InputError, match=r"1 font unreadable\); at least 20 are needed"):
        find_typefaces([tmp_path])


def test_each_typeface_is_in_one_split(splits):
    names = [typeface.name for part in splits.values() for typeface in part]
    assert len(set(names)) == len(names)
    assert list(splits) == list(SHARES)
    for split, share in SHARES.items():
        assert abs(len(splits[split]) - share * len(names)) <= 1
    everything = [typeface for part in splits.values() for typeface in part]
    assert split_typefaces(everything[::-1]) == splits
    assert split_typefaces(everything, seed=1) != splits


def test_images_are_always_the_same_and_a_larger_set_begins_alike(splits):
    few, more = (render_split(splits, "test", per_class=count) for count in (2, 3))
    assert few.images.shape == (124, 32, 32)
    assert few.images.dtype == np.uint8
    assert np.array_equal(few.labels, np.arange(62).repeat(2))
    for one, other in zip(few, more, strict=True):
        assert np.array_equal(one, other.reshape(62, 3, *other.shape[1:])[:, :2].reshape(one.shape))
    assert len({image.tobytes() for image in more.images}) == 186
    other_seed = render_split(splits, "test", per_class=2, seed=1)
    assert not any(np.array_equal(one, other) for one, other in zip(few.images, other_seed.images, strict=True))


def test_the_glyph_can_be_told_from_its_ground(splits):
    glyphs = render_split(splits, "train", per_class=8, side=48)
    assert glyphs.images.shape[1:] == (48, 48)
    spread = glyphs.images.reshape(len(glyphs.images), -1).astype(float).std(axis=1)
    assert spread.min() > 4
    assert set(glyphs.typefaces) == set(range(len(splits["train"])))  # all are drawn
    # About as many glyphs are lighter than their ground as are darker.
    middle, whole = (np.median(part, axis=(1, 2)) for part in (glyphs.images[:, 12:36, 16:32], glyphs.images))
    assert 0.3 < np.mean(middle > whole) < 0.7


def test_the_folder_has_three_splits_and_says_which_fonts_made_them(tmp_path):
    folder = tmp_path / "glyphs"
    said = write_glyphs(folder, [FONTS], per_class=FEW, least=1)
    assert said.startswith("124 train images in ")
    assert "62 test images in 1 typeface, of 62 classes" in said
    assert f"of 62 classes are in {folder}\nfonts left out: " in said
    for split, count in FEW.items():
        images = open_dataset(Source("", str(folder)), split)
        assert len(images) == 62 * count
        assert len(images.classes) == 62
    manifest = json.loads((folder / TYPEFACES).read_text())
    assert manifest["per_class"] == FEW
    face = manifest["typefaces"]["train"][0]["faces"][0]
    assert face["sha256"] == hashlib.sha256((FONTS / face["file"]).read_bytes()).hexdigest()
    assert "already exists" in write_glyphs(folder, [FONTS], per_class=FEW, least=1)
    with pytest.raises(InputError, match=r"has other images, as typefaces\.json in it says"):
        write_glyphs(folder, [FONTS], per_class=FEW, seed=1, least=1)


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    folder = str(tmp_path / "glyphs")
    for flags, message in (
        (["--fonts", str(FONTS)], "at least 20 are needed"),
        (["--img-size", "16"], "--img-size is 16; it must be 32 to 64"),
        (["--train", "0"], "it must be at least 1"),
    ):
        assert main([folder, *flags]) == 2
        assert message in capsys.readouterr().err
    assert not Path(folder).exists()


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("mine.txt", "mine.txt' is a file; choose a new folder"),
        ("mine.txt/glyphs", "glyphs' cannot be created: Not a directory; check the path"),
        ("", "is not empty; choose a new folder"),
    ],
)
def test_a_folder_that_cannot_be_made_is_refused_before_fonts_are_read(place, said, tmp_path, capsys):
    (tmp_path / "mine.txt").touch()
    assert main([str(tmp_path / place), "--fonts", str(FONTS)]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "reading the fonts" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_of_something_else_stays(tmp_path):
    shutil.copy(FONTS / "LICENSE_DEJAVU", tmp_path)
    with pytest.raises(InputError, match="is not empty; choose a new folder"):
        write_glyphs(tmp_path, [FONTS], per_class=FEW, least=1)
