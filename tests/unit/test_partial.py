"""Sums of an unfinished evaluation are taken up or left, whatever is in their file."""

import pytest
import torch

from stitchkit.measure.evaluate import PartialSums


def test_sums_are_taken_up(tmp_path):
    partial = PartialSums(tmp_path / "a.part0", {"x": 1})
    partial.save(torch.arange(6.0).view(2, 3), 4)
    sums = torch.zeros(2, 3)
    assert partial.restore(sums) == 4
    assert torch.equal(sums, torch.arange(6.0).view(2, 3))


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "3", "null", '{"of": {"x": 1}, "batches": 1, "sums": {}}'),
        '{"of": {"x": 1}, "batches": Infinity, "sums": [[1, 2]]}',
        '{"of": {"x": 1}, "batches": 1, "sums": [[1], [2, 3]]}',
        "[" * 100_000,
        "\x08\0\0\0\0\0\0\0{}      ",
    ],
)
def test_odd_files_are_ignored(text, tmp_path):
    (tmp_path / "a.part0").write_text(text)
    sums = torch.zeros(1, 2)
    assert PartialSums(tmp_path / "a.part0", {"x": 1}).restore(sums) == 0
    assert not sums.any()
