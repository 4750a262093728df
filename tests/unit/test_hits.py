"""Hits: rows of networks, files, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stitchkit.errors import InputError
from stitchkit.measure.per_image import PerImage
from stitchkit.measure.scores import AccuracyScore


def _hits(cfg_ids: tuple[int, ...] = (3, 0), *, images: int = 11, names: bool = True, seed: int = 0) -> PerImage:
    random = np.random.default_rng(seed)
    seen = random.random((len(cfg_ids), images)) < 0.7
    right = seen & (random.random(seen.shape) < 0.5)
    labels = np.arange(images)[:, None] % 3
    known = tuple(f"b/ü\n\udcff {n}.png" for n in range(images)) if names else ()
    return PerImage(cfg_ids, AccuracyScore(), tuple(right[..., None]), seen, labels, known)


@pytest.mark.parametrize("names", [True, False])
def test_a_file_gives_back_what_was_written(tmp_path: Path, names: bool) -> None:
    hits = _hits(names=names)
    ledger = tmp_path / "stitches_res.txt"
    assert PerImage.beside(ledger, "acc1") is None
    hits.write(hits.file(ledger))
    assert PerImage.beside(ledger, "agree") is None
    found = PerImage.beside(ledger, "acc1")
    assert found is not None
    assert (found.cfg_ids, found.names) == (hits.cfg_ids, hits.names)
    for name in ("own", "seen", "truth"):
        assert np.array_equal(getattr(found, name), getattr(hits, name)), name


def test_a_file_is_the_same_wherever_in_memory_the_rows_are(tmp_path: Path) -> None:
    hits = _hits()
    own = tuple(np.asfortranarray(np.hstack(hits.own)).T[..., None])
    columns = replace(hits, own=own, seen=np.asfortranarray(hits.seen))
    hits.write(tmp_path / "rows.hits")
    columns.write(tmp_path / "columns.hits")
    assert (tmp_path / "rows.hits").read_bytes() == (tmp_path / "columns.hits").read_bytes()


def test_a_bit_for_each_network_and_image(tmp_path: Path) -> None:
    path = tmp_path / "all.hits"
    _hits(tuple(range(134)), images=50_000, names=False).write(path)
    assert path.stat().st_size < 2.1e6  # twice 134 x 50,000 bits, and the labels


def test_networks_are_taken_by_number_and_added() -> None:
    hits, more = _hits((3, 0)), _hits((7, 3), seed=1)
    both = hits.with_more(more)
    assert both.cfg_ids == (0, 7, 3)
    assert np.array_equal(both.of([3]).own, more.of([3]).own), "the later answer counts"
    assert np.array_equal(both.of([0]).seen, hits.of([0]).seen)
    assert both.has([7, 0])
    assert not hits.has([7])


RENAMED = tuple(f"a{number}.png" for number in range(11))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (_hits(images=12), "this evaluation has 12 images, the earlier one 11; choose"),
        (_hits(names=False), "this evaluation has names for 0 images, the earlier one for 11"),
        (replace(_hits(), names=RENAMED), "image 0 of this evaluation is 'a0.png', that of the earlier one 'b/"),
        (
            replace(_hits(), truth=np.full((11, 1), 1)),
            "image 0 has label 1 in this evaluation, and 0 in the earlier one",
        ),
    ],
)
def test_other_images_are_refused(other: PerImage, said: str) -> None:
    with pytest.raises(InputError, match=said):
        _hits().with_more(other)


def test_an_image_that_could_not_be_read_once_is_the_same_image() -> None:
    labels = _hits().truth.copy()
    labels[4] = -1
    one = replace(_hits((1,)), truth=labels)
    assert one.with_more(_hits((2,))).truth.tolist() == _hits((2,)).with_more(one).truth.tolist()
    assert one.with_more(_hits((2,))).truth.tolist() == _hits().truth.tolist()


@pytest.mark.parametrize("damage", [b"", b"not a tensor", b"\xff" * 200])
def test_a_damaged_file_is_one_message(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "stitches_res.hits"
    path.write_bytes(damage)
    with pytest.raises(InputError, match="cannot be read"):
        PerImage.read(path)
