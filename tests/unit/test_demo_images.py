"""The rendered glyphs of `make demo-backbone`."""

from collections import Counter

import numpy as np
import pytest

from stitchkit.cli import main
from stitchkit.data import demo
from stitchkit.data.demo import GLYPHS, name_of, read_demo_glyphs
from stitchkit.data.open_dataset import open_dataset
from stitchkit.data.source import Source, is_unlabelled

PER_GLYPH = {"train": 50, "validation": 20, "unlabelled": 100}
FEW = {"train": 5, "validation": 2, "unlabelled": 10}


@pytest.fixture
def few(monkeypatch):
    """Each image has a seed of its own, so that a tenth of them show what all are."""
    assert demo._COUNTS == PER_GLYPH
    monkeypatch.setattr(demo, "_COUNTS", FEW)


def test_names_differ_on_every_file_system():
    names = [name_of(glyph) for glyph in GLYPHS]
    assert len({name.casefold() for name in names}) == len(names) == 44
    assert all(name.isascii() and name.isalpha() for name in names)


def test_every_font_has_every_glyph():
    """A font without one would draw its box for unknown characters, the same for all."""
    for font in demo._FONTS:
        drawn = [bytes(demo._font(font, 60).getmask(glyph)) for glyph in GLYPHS]
        assert len(set(drawn)) == len(GLYPHS), font


@pytest.mark.usefixtures("few")
def test_images_are_always_the_same_and_in_no_two_parts():
    seen = Counter(image.tobytes() for part in FEW for _, _, image in read_demo_glyphs(part))
    assert len(seen) == sum(FEW.values()) * 44
    for _, _, image in read_demo_glyphs("validation"):
        assert image.tobytes() in seen, "again the same"
        pixels = np.asarray(image)
        assert pixels.shape == (32, 32)
        assert pixels.max() > 100
        assert not pixels[[0, -1]].any() or not pixels[:, [0, -1]].any()  # no glyph leaves the image on two sides


@pytest.mark.usefixtures("few")
def test_the_folder_has_labels_where_it_says(tmp_path, capsys):
    folder = tmp_path / "glyphs"
    assert main(["demo-data", "glyphs", str(folder)]) == 0
    assert capsys.readouterr().out == (
        f"2200 training, 880 validation and 4400 unlabelled images of 44 glyphs are in {folder}\n"
    )
    for split in ("train", "validation"):
        images = open_dataset(Source("", str(folder)), split)
        assert len(images) == FEW[split] * 44
        assert len(images.classes) == 44
    source = Source("", str(folder / "unlabelled"), needs_labels=False)
    assert is_unlabelled(source, "train")
    assert len(open_dataset(source, "train")) == 440 * 19 // 20
    assert not any(name_of(glyph) in path.stem for glyph in GLYPHS for path in (folder / "unlabelled").iterdir())
    assert main(["demo-data", "glyphs", str(folder)]) == 0
    assert "already exists" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["digits", "glyphs"])
def test_a_folder_of_something_else_stays(kind, tmp_path, capsys):
    (tmp_path / "mine.txt").touch()
    assert main(["demo-data", kind, str(tmp_path)]) == 2
    assert "is not empty; choose a new folder" in capsys.readouterr().err
    assert main(["demo-data", kind, str(tmp_path / "mine.txt")]) == 2
    assert "mine.txt' is a file; choose a new folder" in capsys.readouterr().err
