"""Sums of an unfinished evaluation are taken up or left, whatever is in their file."""

import pytest
import torch
from safetensors.torch import save

from stitchkit.measure.evaluate import PartialSums

SUMS = torch.tensor([[1.0, 2.0]]).double()
ABOUT = '{"of": {"x": 1}, "batches": 5}'


def test_sums_are_taken_up(tmp_path):
    partial = PartialSums(tmp_path / "a.part0", {"x": 1})
    partial.save(torch.arange(6.0).view(2, 3), 4)
    sums = torch.zeros(2, 3)
    assert partial.restore(sums) == 4
    assert torch.equal(sums, torch.arange(6.0).view(2, 3))


def test_sums_that_fit_are_found_in_a_file_made_by_hand(tmp_path):
    (tmp_path / "a.part0").write_bytes(save({"sums": SUMS}, metadata={"about": ABOUT}))
    assert PartialSums(tmp_path / "a.part0", {"x": 1}).restore(torch.zeros(1, 2).double()) == 5


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"[" * 100_000, b"\x08\0\0\0\0\0\0\0{}      "),
        save({"sums": SUMS}),
        *(save({"sums": sums}, metadata={"about": ABOUT}) for sums in (SUMS[:, :1], SUMS.float())),
        *(
            save({"sums": SUMS}, metadata={"about": ABOUT.replace(*change)})
            for change in ((ABOUT, "[]"), ('"x": 1', '"x": 2'), ("5}", "Infinity}"), ("5}", '3, "batches": 5}'))
        ),
    ],
)
def test_odd_files_are_ignored(content, tmp_path):
    (tmp_path / "a.part0").write_bytes(content)
    sums = torch.zeros(1, 2).double()
    assert PartialSums(tmp_path / "a.part0", {"x": 1}).restore(sums) == 0
    assert not sums.any()
