"""Answers of an unfinished evaluation are taken up or left, whatever is in their file."""

import json

import numpy as np
import pytest
from safetensors.numpy import save

from stitchkit.measure.answers import Accuracy, AnswerAgreement
from stitchkit.measure.evaluate import Unfinished
from stitchkit.measure.per_image import PerImage

TOTALS = np.array([[1.5, 2], [np.nan, 3]])
LABELS = np.array([0, 0, -1, 1], np.int32)
ABOUT = '{"format": "stitchkit hits 1", "cfg_ids": [3, 0], "of": {"x": 1}}'
TENSORS = {
    "right": np.array([[128], [144]], np.uint8), "seen": np.array([[208], [208]], np.uint8), "labels": LABELS,
    "names": np.frombuffer(b"[]", np.uint8), "totals": TOTALS,
}  # fmt: skip


def _same(found, answers):
    names = ("cfg_ids", "own", "seen", "truth", "totals")
    return all(
        np.array_equal(getattr(found, name), getattr(answers, name), equal_nan=name == "totals") for name in names
    )


@pytest.mark.parametrize("score", [Accuracy(), AnswerAgreement()])
@pytest.mark.parametrize("images", [0, 1, 7, 8, 9, 33])
def test_answers_are_taken_up(images, score, tmp_path):
    random = np.random.default_rng(images)
    labels = random.integers(-1, 2, (images, 1))
    right = (random.random((3, images, 1)) < 0.5) & (labels >= 0)
    answers = PerImage.of_all([2, 5, 1], score, right, labels, random.random((3, score.totals)))
    partial = Unfinished(tmp_path / "a.part0", {"x": (1, 2)})
    partial.save(answers)
    assert _same(partial.restore(score, [2, 5, 1]), answers)
    assert partial.restore(score, [2, 5]) is None
    assert partial.restore(Accuracy() if score.metric == "agree" else AnswerAgreement(), [2, 5, 1]) is None


def test_answers_that_fit_are_found_in_a_file_made_by_hand(tmp_path):
    (tmp_path / "a.part0").write_bytes(save(TENSORS, metadata={"about": ABOUT}))
    found = Unfinished(tmp_path / "a.part0", {"x": 1}).restore(Accuracy(), [3, 0])
    right = np.array([[1, 0, 0, 0], [1, 0, 0, 1]], bool)[..., None]
    assert _same(found, PerImage.of_all([3, 0], Accuracy(), right, LABELS[:, None], TOTALS))


def _file(about=ABOUT, **changes):
    tensors = {name: np.ascontiguousarray(array) for name, array in {**TENSORS, **changes}.items()}
    return save(tensors, metadata={"about": about})


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"[" * 100_000, b"\x08\0\0\0\0\0\0\0{}      "),
        save(TENSORS),
        save({"sums": TOTALS}, metadata={"about": json.dumps({"of": {"x": 1}, "done": 5})}),  # of an older version
        *(_file(totals=totals) for totals in (TOTALS[:, :1], TOTALS[:1], TOTALS.astype(np.float32))),
        *(_file(right=bits) for bits in (TENSORS["right"][:1], TENSORS["right"][:, :0])),
        *(_file(seen=bits) for bits in (TENSORS["seen"][:1], TENSORS["seen"][:, :0], ~TENSORS["seen"])),
        *(_file(labels=labels) for labels in (np.tile(LABELS, 5), LABELS[:, None], abs(LABELS))),
        *(
            _file(ABOUT.replace(*change))
            for change in (
                (ABOUT, "[]"),
                ('"x": 1', '"x": 2'),
                ("[3, 0]", "[3]"),
                ("[3, 0]", "[3, 3]"),
                ("hits", "sums"),
            )
        ),
        _file(ABOUT.replace('"of"', '"of": 3, "of"')),
    ],
)
def test_odd_files_are_ignored(content, tmp_path):
    (tmp_path / "a.part0").write_bytes(content)
    assert Unfinished(tmp_path / "a.part0", {"x": 1}).restore(Accuracy(), [3, 0]) is None
