"""Answers of an unfinished evaluation are taken up or left, whatever is in their file."""

import json

import pytest
import torch
from safetensors.torch import save

from stitchkit.measure.evaluate import Answers, PartialAnswers

SUMS = torch.tensor([[1.5, 1, 2, 3, 1, 0, 2, 1], [0.5, 2, 3, 3, 1, 1, 2, 1]]).double()
RIGHT = torch.tensor([[1, 0, 0, 0], [1, 0, 0, 1]]).bool()
LABELS = torch.tensor([0, 0, -1, 1])
ABOUT = '{"of": {"x": 1}, "done": 5}'
TENSORS = {"sums": SUMS, "right": torch.tensor([[128], [144]], dtype=torch.uint8), "labels": LABELS}


def _same(found, answers):
    return all(torch.equal(getattr(found, name), getattr(answers, name)) for name in ("sums", "right", "labels"))


@pytest.mark.parametrize("images", [0, 1, 7, 8, 9, 33])
def test_answers_are_taken_up(images, tmp_path):
    random = torch.Generator().manual_seed(images)
    labels = torch.randint(-1, 2, (images,), generator=random)
    right = (torch.rand(3, images, generator=random) < 0.5) & (labels >= 0)
    sums = torch.rand(3, 4, generator=random).double()
    sums[:, 1], sums[:, 3] = right.sum(1), (labels >= 0).sum()
    partial, answers = PartialAnswers(tmp_path / "a.part0", {"x": (1, 2)}), Answers(sums, right, labels)
    partial.save(answers, 4)
    found, done = partial.restore(0, 3)
    assert _same(found, answers)
    assert done == 4


def test_answers_that_fit_are_found_in_a_file_made_by_hand(tmp_path):
    (tmp_path / "a.part0").write_bytes(save(TENSORS, metadata={"about": ABOUT}))
    found, done = PartialAnswers(tmp_path / "a.part0", {"x": 1}).restore(2, 2)
    assert _same(found, Answers(SUMS, RIGHT, LABELS))
    assert done == 5


def _file(about=ABOUT, **changes):
    tensors = {name: tensor.contiguous() for name, tensor in {**TENSORS, **changes}.items()}
    return save(tensors, metadata={"about": about})


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"[" * 100_000, b"\x08\0\0\0\0\0\0\0{}      "),
        save(TENSORS),
        save({"sums": SUMS}, metadata={"about": json.dumps({"of": {"x": 1}, "batches": 5})}),  # of an older version
        *(_file(sums=sums) for sums in (SUMS[:, :4], SUMS[:1], SUMS.float(), SUMS + 1)),
        *(_file(right=bits) for bits in (TENSORS["right"][:1], TENSORS["right"][:, :0], ~TENSORS["right"])),
        *(_file(labels=labels) for labels in (LABELS[:3], LABELS[:, None], LABELS.abs(), LABELS.float())),
        *(
            _file(ABOUT.replace(*change))
            for change in ((ABOUT, "[]"), ('"x": 1', '"x": 2'), ("5}", "Infinity}"), ("5}", "0}"), ("5}", "[5]}"))
        ),
        _file(ABOUT.replace("5}", '3, "done": 5}')),
    ],
)
def test_odd_files_are_ignored(content, tmp_path):
    (tmp_path / "a.part0").write_bytes(content)
    assert PartialAnswers(tmp_path / "a.part0", {"x": 1}).restore(2, 2) is None
