"""What dense networks are worth: sums of images, their file, their bootstrap, and the commands that compare by them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch

from stitchkit.cli import main
from stitchkit.errors import InputError
from stitchkit.measure.intervals import add_intervals, compared_beside
from stitchkit.measure.ledger import read_rows, write_rows
from stitchkit.measure.metric import metric_of
from stitchkit.measure.pareto import pareto_front, plot
from stitchkit.measure.per_image import PerImage
from stitchkit.measure.scores import DenseScore, DepthScore, SegmentationScore
from stitchkit.tasks.depth import depth_sums
from stitchkit.tasks.segmentation import segmentation_sums
from tests.commands import refused

CLASSES = 4
SCORE = SegmentationScore(CLASSES)


def _masks(images: int, seed: int = 0) -> torch.Tensor:
    """A class occurs in no mask, and one image has no known pixel."""
    masks = torch.randint(CLASSES - 1, (images, 6, 5), generator=torch.Generator().manual_seed(seed))
    masks[torch.rand(masks.shape, generator=torch.Generator().manual_seed(seed)) < 0.2] = 255
    masks[1] = 255
    return masks


def _noisy(masks: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    """Predictions of which a share is drawn."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(CLASSES, masks.shape, generator=generator)
    is_drawn = (torch.rand(masks.shape, generator=generator) < share) | (masks == 255)
    return torch.where(is_drawn, drawn, masks)


def _of_sums(cfg_ids: Sequence[int], score: DenseScore, sums: np.ndarray, names: Sequence[str] = ()) -> PerImage:
    """Of networks' sums `[networks, images, own + truth]`."""
    own, truth = sums[..., : score.own], sums[0, :, score.own :].astype(np.int32)
    return replace(PerImage.of_all(cfg_ids, score, own, truth), names=tuple(names))


def _sums(images: int = 40, shares: tuple[float, ...] = (0.7, 0.5, 0.49, 0.2)) -> PerImage:
    masks = _masks(images)
    found = [segmentation_sums(_noisy(masks, share, seed), masks, CLASSES) for seed, share in enumerate(shares)]
    names = tuple(f"b/ü\n{number}.png" for number in range(images))
    return _of_sums(range(10, 10 + len(shares)), SCORE, torch.stack(found).numpy(), names)


def _by_pixels(classes: np.ndarray, masks: np.ndarray) -> tuple[float, float]:
    """Mean IoU and pixel accuracy, in percent, from lists of pixels."""
    pairs = [(c, t) for c, t in zip(classes.ravel().tolist(), masks.ravel().tolist(), strict=True) if t != 255]
    ious = []
    for each in range(CLASSES):
        union = sum(each in pair for pair in pairs)
        if union:
            ious.append(sum(pair == (each, each) for pair in pairs) / union)
    return 100 * sum(ious) / len(ious), 100 * sum(c == t for c, t in pairs) / len(pairs)


@pytest.mark.parametrize("images", [3, 7])
def test_figures_of_segmentation_are_those_of_all_pixels(images: int) -> None:
    masks = _masks(images)
    logits = torch.randn(images, CLASSES, 6, 5, generator=torch.Generator().manual_seed(1))
    sums = segmentation_sums(logits, masks.to(torch.uint8), CLASSES)
    assert (sums.shape, sums.dtype) == ((images, 3 * CLASSES), torch.int64)
    assert torch.equal(sums, segmentation_sums(logits.argmax(1), masks, CLASSES))
    assert not sums[1].any(), "no known pixel"
    figures = _of_sums([5], SCORE, sums[None].numpy()).figures(5)
    expected = _by_pixels(logits.argmax(1).numpy(), masks.numpy())
    assert [figures["miou"], figures["pixel_acc"]] == pytest.approx(expected)
    assert figures["images"] == images - 1
    stacked = SCORE.figures(np.stack([sums.numpy(), 2 * sums.numpy()]).sum(axis=1))
    assert stacked["miou"] == pytest.approx([expected[0]] * 2), "over leading axes"


def test_a_class_that_occurs_nowhere_is_not_in_the_mean() -> None:
    masks = torch.tensor([[[0, 0, 1, 1, 255]]])
    found = SCORE.figures(segmentation_sums(torch.tensor([[[0, 1, 1, 1, 3]]]), masks, CLASSES)[0].numpy())
    assert (float(found["miou"]), float(found["pixel_acc"])) == pytest.approx((100 * (1 / 2 + 2 / 3) / 2, 75))
    perfect = SCORE.figures(segmentation_sums(masks, masks, CLASSES)[0].numpy())
    assert (float(perfect["miou"]), float(perfect["pixel_acc"])) == (100, 100)


@pytest.mark.parametrize(
    ("found", "mask", "said"),
    [(0, 7, "a mask has classes from 7 to 7; there are 4, from 0 to 3"), (4, 1, "a prediction has classes from 4")],
)
def test_classes_that_do_not_exist_are_refused(found: int, mask: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        segmentation_sums(torch.full((1, 2, 2), found), torch.full((1, 2, 2), mask), CLASSES)


def test_figures_of_depth_are_means_of_those_of_images() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = 12 * torch.rand(5, 6, 4, generator=generator) - 1  # some below 0, some beyond 10
    truth[0, 0] = torch.tensor([1e-3, 10, 0, torch.nan])  # of the limits, only the upper one counts, as in the loss
    truth[3] = 0
    depth = (truth + torch.randn(truth.shape, generator=generator)).nan_to_num(3)  # some negative
    sums = depth_sums(depth, truth, 10.0)
    assert not sums[3].any()
    each = []
    for number in (0, 1, 2, 4):
        pairs = [(p, t) for p, t in zip(depth[number].flatten().tolist(), truth[number].flatten().tolist(), strict=True)
                 if 1e-3 < t <= 10 and t != truth[0, 0, 0].item()]  # fmt: skip
        rel = sum(abs(p - t) / t for p, t in pairs) / len(pairs)
        rmse = sqrt(sum((p - t) ** 2 for p, t in pairs) / len(pairs))
        near = sum(p > 0 and max(p / t, t / p) < 1.25 for p, t in pairs) / len(pairs)
        each.append((rel, rmse, 100 * near))
    figures = _of_sums([5], DepthScore(), sums[None].numpy()).figures(5)
    assert figures["images"] == 4
    assert [figures[name] for name in ("abs_rel", "rmse", "delta1")] == pytest.approx(np.mean(each, axis=0).tolist())
    assert 0 < figures["delta1"] < 100
    with pytest.raises(InputError, match="the depth of image 2 of a batch is not finite"):
        depth_sums(depth.index_fill(0, torch.tensor([2]), torch.inf), truth, 10.0)


def _alike(one: PerImage, other: PerImage) -> bool:
    same = (one.cfg_ids, one.score, one.names) == (other.cfg_ids, other.score, other.names)
    return same and all(np.array_equal(one.sums_of(each), other.sums_of(each)) for each in one.cfg_ids)


def _depths(networks: int = 3, images: int = 30) -> PerImage:
    random = np.random.default_rng(0)
    ease = random.random(images)
    worse = np.linspace(1.5, 1, networks)[:, None] + 0.2 * random.random((networks, images))
    share = np.clip(1 - ease * worse / 2, 0, 1)
    sums = np.stack([ease * worse, 2 * ease * worse, share, np.ones_like(share)], axis=-1)
    sums[:, 4] = 0
    return _of_sums(range(networks), DepthScore(), sums)


@pytest.mark.parametrize("sums", [_sums(), _depths()], ids=["segmentation", "depth"])
def test_a_file_gives_back_what_was_written(tmp_path: Path, sums: PerImage) -> None:
    ledger = tmp_path / "stitches_res.txt"
    assert PerImage.beside(ledger, sums.score.metric) is None
    sums.write(sums.file(ledger))
    assert sums.file(ledger).name == "stitches_res.sums"
    found = PerImage.beside(ledger, sums.score.metric)
    assert found is not None
    assert _alike(found, sums)
    assert found.figures(sums.cfg_ids[0]) == sums.figures(sums.cfg_ids[0])


def test_networks_are_taken_by_number_and_added_and_images_joined() -> None:
    sums = _sums()
    more = replace(sums.of([10, 11]), cfg_ids=(11, 7))
    both = sums.with_more(more)
    assert both.cfg_ids == (10, 12, 13, 11, 7)
    assert np.array_equal(both.sums_of(11), sums.sums_of(10)), "the later one counts"
    assert both.has([7, 10])
    assert not sums.has([7])
    every = np.stack([sums.sums_of(each) for each in sums.cfg_ids])
    parts = [_of_sums(sums.cfg_ids, SCORE, every[:, s], sums.names[s]) for s in (slice(9), slice(9, None))]
    assert _alike(PerImage.joined(parts), sums)


def _changed(sums: PerImage, image: int, value: int) -> PerImage:
    truth = sums.truth.copy()
    truth[image] = value
    return replace(sums, truth=truth)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (_sums(39), "this evaluation has 39 images, the earlier one 40; choose"),
        (replace(_sums(), names=()), "this evaluation has names for 0 images, the earlier one for 40"),
        (_changed(_sums(), 3, 9), "image 3 has another truth than in the earlier one; choose"),
        (_depths(4, 40), "this evaluation is of {'task': 'depth'}, the earlier one of {'task': 'segmentation'"),
    ],
)
def test_other_images_are_refused(other: PerImage, said: str) -> None:
    with pytest.raises(InputError, match=said):
        _sums().with_more(other)


def test_an_image_that_could_not_be_read_once_is_the_same_image() -> None:
    whole = _sums()
    every = whole.sums_of(12)[None].copy()
    every[0, 5] = 0
    part = _of_sums([3], SCORE, every, whole.names)
    for both in (whole.with_more(part), part.with_more(whole)):
        assert np.array_equal(both.truth, whole.truth)
        assert not both.sums_of(3)[5].any()
        assert both.figures(3)["images"] == whole.figures(12)["images"] - 1
    rows = [{"cfg_id": each, "flops": each, "miou": both.figures(each)["miou"]} for each in both.cfg_ids]
    add_intervals(rows, both.compared())
    assert [("p_front" in row, "miou_low" in row) for row in rows] == [(row["cfg_id"] != 3, True) for row in rows]


def _damaged(path: Path, **tensors: np.ndarray) -> None:
    from safetensors import safe_open
    from safetensors.numpy import save

    with safe_open(path, framework="np") as file:
        found, said = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    path.write_bytes(save(found | tensors, metadata=said))


@pytest.mark.parametrize(
    "damage",
    [
        *(b"", b"not a tensor", b"\xff" * 200),
        {"columns": np.full(3, 2, np.uint16)},
        {"columns": np.zeros(0, np.uint16), "values": np.zeros(0, np.int32)},
        {"truth": np.zeros((40, CLASSES + 1), np.int32)},
        {"truth": np.full((40, CLASSES), -1, np.int32)},
        {"counts": np.zeros((3, 40), np.uint16)},
        {"names": np.frombuffer(b'["a"]', np.uint8)},
    ],
)
def test_a_damaged_file_is_one_message(tmp_path: Path, damage: bytes | dict[str, np.ndarray]) -> None:
    path = tmp_path / "stitches_res.sums"
    _sums().write(path)
    if isinstance(damage, bytes):
        path.write_bytes(damage)
    else:
        _damaged(path, **damage)
    with pytest.raises(InputError, match=r"cannot be read: .*; delete it to continue without intervals"):
        PerImage.read(path)


def test_a_file_of_ade20k_is_small(tmp_path: Path) -> None:
    """Arithmetic for 134 stitches and 2,000 images, from few: 6 bytes a number, two for each class of a prediction."""
    random = np.random.default_rng(0)
    sums = np.zeros((2, 50, 450), np.int64)
    for image in range(50):
        sums[:, image, np.add(random.choice(150, 12, replace=False), [[0], [150], [300]])] = 5000
    _of_sums([0, 1], SegmentationScore(150), sums).write(tmp_path / "a.sums")
    truth = 50 * 150 * 4
    assert ((tmp_path / "a.sums").stat().st_size - truth) / (2 * 50) * 134 * 2000 < 45e6


@pytest.mark.parametrize("sums", [_sums(), _depths()], ids=["segmentation", "depth"])
def test_intervals_are_those_of_a_direct_bootstrap(sums: PerImage) -> None:
    """Images are drawn one by one, and their figures are made anew."""
    samples, metric = 130, sums.score.metric
    places = [number for number in range(len(sums.truth)) if sums.truth[number].any()]
    generator, values = np.random.default_rng(3), []
    for _ in range(samples):
        drawn = [places[place] for place in generator.integers(len(places), size=len(places))]
        values.append([sums.score.figures(sums.sums_of(each)[drawn].sum(axis=0))[metric] for each in sums.cfg_ids])
    values = np.array(values)
    found = sums.compared(samples=samples, seed=3)
    assert found.values == pytest.approx(values)
    low, high = np.array([*found.intervals().values()]).T
    assert low[1] == pytest.approx(np.sort(values[:, 1])[3] + 0.225 * np.diff(np.sort(values[:, 1])[3:5])[0])
    assert high == pytest.approx(np.percentile(values, 97.5, axis=0))
    low, high = found.paired_intervals()
    assert (low[2, 0], high[2, 0]) == pytest.approx(tuple(np.percentile(values[:, 2] - values[:, 0], [2.5, 97.5])))
    costs = [2, 1, 3, 3][: len(sums.cfg_ids)]
    rows = [{"cfg_id": each, "flops": c, **sums.figures(each)} for each, c in zip(sums.cfg_ids, costs, strict=True)]
    add_intervals(rows, found)
    times = np.zeros(len(rows))
    for each in values:
        front = pareto_front([{**row, metric: value} for row, value in zip(rows, each, strict=True)])
        times[[rows.index(next(r for r in rows if r["cfg_id"] == row["cfg_id"])) for row in front]] += 1
    assert [row["p_front"] for row in rows] == (times / samples).tolist()


def test_the_percentiles_of_a_known_case() -> None:
    """Of images that are wholly right or wholly wrong, the share that is right has a binomial distribution."""
    right = np.arange(100) < 70
    sums = np.stack([~right, ~right, right, np.ones(100)], axis=-1)
    found = _of_sums([0, 1], DepthScore(), np.stack([sums, sums])).compared(samples=4000)
    assert found.intervals()[0] == pytest.approx((61, 79), abs=1.01)  # 70 +- 1.96 * 4.6, in whole images
    assert not np.any(found.paired_intervals()), "the same network"


def test_a_ledger_has_whole_intervals(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text('{"cfg_id": 1, "delta1_low": 3, "miou_low": 1, "miou_high": 2}\n')
    with pytest.raises(InputError, match="line 1 has one end of the interval of delta1 without the other; remove"):
        read_rows(tmp_path / "r.txt")
    rows = [{"cfg_id": 1, "flops": 5, "miou": 50.0, "miou_low": 3.0, "miou_high": 80.0, "tied_with": []}]
    add_intervals(rows, None)
    assert rows == [{"cfg_id": 1, "flops": 5, "miou": 50.0}], "stale ones are removed"


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """Of four networks; the two in the middle cannot be told apart."""
    sums = _sums(200)
    rows = [
        {"cfg_id": each, "flops": 10 * number, "params": 5 - number, **sums.figures(each)}
        for number, each in enumerate(sums.cfg_ids, start=1)
    ]
    write_rows(tmp_path / "stitches_res.txt", rows)
    sums.write(tmp_path / "stitches_res.sums")
    return tmp_path / "stitches_res.txt"


def _said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([*map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_the_front_is_by_mean_iou_and_says_how_sure_it_is(ledger, capsys, tmp_path) -> None:
    rows = read_rows(ledger)
    assert metric_of(rows) == "miou"
    assert metric_of([{"delta1": 5.0, "knn": 3.0}]) == "delta1"
    assert [row["cfg_id"] for row in pareto_front(rows)] == [10, 11, 12, 13]
    lines = _said(capsys, "pareto", ledger, "--plot", tmp_path / "p.svg").splitlines()
    head = ["cfg_id", "stitch", "FLOPs", "params", "miou", "95", "%", "pixel_acc", "P(front)", "tied", "with"]
    assert lines[0].split() == head
    assert [line.split()[-1] for line in lines[1:5]] == ["none", "none", "11", "none"]
    assert "the Pareto front by mean IoU has 4 of 4 stitches" in lines
    assert "3 of 4 points of the front are told apart by a paired 95 % interval: 10, 11, 13" in lines
    picture = (tmp_path / "p.svg").read_text()
    assert "mean IoU (%)" in picture
    assert "its 95 % intervals" in picture
    known = compared_beside(ledger, "miou")
    add_intervals(rows, known)
    assert all(row["miou_low"] < row["miou"] < row["miou_high"] for row in rows)
    write_rows(tmp_path / "with.txt", rows)
    assert read_rows(tmp_path / "with.txt") == rows
    plot(rows, tmp_path / "again.svg")
    by_pixels = _said(capsys, "pareto", ledger, "--metric", "pixel_acc")
    assert "by pixel accuracy" in by_pixels
    assert "told apart" not in by_pixels
    assert compared_beside(ledger, "delta1") is None


def test_pick_is_confident_about_mean_iou(ledger, capsys) -> None:
    flags = ["pick", ledger, "--confident"]
    lines = _said(capsys, *flags, "--max-flops", "30").splitlines()
    assert (
        "cfg_id 12 is the best by mean IoU of the 3 stitches, out of 4, with at most 30 FLOPs; cfg_id 11 " in lines[0]
    )
    found = json.loads(_said(capsys, *flags, "--max-flops", "30", "--json"))
    rows = {row["cfg_id"]: row for row in read_rows(ledger)}
    assert found["metric"] == "miou"
    assert found["difference"]["points"] == pytest.approx(rows[11]["miou"] - rows[12]["miou"])
    assert found["difference"]["low"] < 0 < found["difference"]["high"]
    said = refused(capsys, *flags, "--metric", "pixel_acc")
    assert "--confident compares mean IoU, not pixel accuracy; omit it" in said
    write_rows(ledger, [{**rows[10], "miou": 99.0}])
    said = refused(capsys, *flags)
    assert "the sums beside the ledger belong to another evaluation: cfg_id 10 has miou 99.00" in said
    ledger.with_suffix(".sums").unlink()
    assert "has no sums beside it, which --confident" in refused(capsys, *flags)
    assert "no intervals without the sums of each image" in _said(capsys, "pareto", ledger)


def test_a_report_shows_intervals_of_mean_iou(ledger, tmp_path, capsys) -> None:
    pytest.importorskip("plotly", reason="plotly is not installed")
    _said(capsys, "report", ledger, "-o", tmp_path / "r.html")
    data = (tmp_path / "r.html").read_text().partition('<script id="data"')[2].partition(">")[2].partition("</script>")
    (found,) = json.loads(data[0])["ledgers"]
    assert found["metric"] == "miou"
    assert found["told_apart"]["flops"].startswith("3 of 4 points of the front are told apart")
    assert {"miou_low", "miou_high"} <= found["rows"][0].keys()
    assert found["rows"][2]["by_cost"]["flops"]["tied_with"] == [11]
