"""Scores are exact counts, however the images are batched."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from stitchkit.errors import InputError
from stitchkit.measure.answers import Accuracy
from stitchkit.measure.evaluate import Networks, evaluate
from stitchkit.measure.per_class import PER_CLASS, write_per_class
from stitchkit.measure.per_image import PerImage
from stitchkit.training.evaluation import _check_origin
from tests.results import answers_of
from tests.support import pico_images, pico_snnet

CPU = torch.device("cpu")


def test_scores_are_counts():
    random = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(23, 9, generator=random), torch.randint(9, (23,), generator=random)
    for size in (1, 7, 23):
        batches = zip(logits.split(size), labels.split(size), strict=True)
        score = answers_of(torch.nn.Identity(), None, batches).figures(0)
        assert score["images"] == 23
        assert score["acc1"] == pytest.approx(100 * (logits.argmax(1) == labels).sum().item() / 23)
        ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
        assert score["acc5"] == pytest.approx(100 * (ranks < 5).sum().item() / 23)
        assert score["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)


def test_classes_are_counted_each_and_balanced_accuracy_is_their_mean():
    logits = torch.eye(3)[[0, 0, 1, 1, 2, 0]]
    labels = torch.tensor([0, 0, 0, 1, -1, 1])
    batches = [(logits[:2], labels[:2]), (logits[2:], labels[2:])]
    answers = answers_of(torch.nn.Identity(), None, batches)
    assert answers.classes(0, 3) == ([2, 1, 0], [3, 2, 0])
    assert answers.figures(0)["balanced_acc1"] == pytest.approx((200 / 3 + 50) / 2)


def _answers(cfg_ids, hits, images):
    """Of networks that have the first images of each class right."""
    right = [[number < each] for each, count in zip(hits, images, strict=True) for number in range(count)]
    labels = np.repeat(np.arange(len(images)), images)[:, None]
    return PerImage.of_all(cfg_ids, Accuracy(), np.tile(right, (len(cfg_ids), 1, 1)), labels)


def test_accuracies_of_classes_are_kept_only_beside_the_same_images(tmp_path):
    answers = _answers([3, 4, 5], (1, 0), (2, 2))
    write_per_class(tmp_path, ["a", "b,c"], answers, {"3": 3, "4": 4})
    write_per_class(tmp_path, ["a", "b,c"], answers, {"5": 5}, keep=["3"])
    assert (tmp_path / PER_CLASS).read_text().split() == [
        "class,images,3,5",
        "a,2,50.0000,50.0000",
        '"b,c",2,0.0000,0.0000',
    ]
    write_per_class(tmp_path, ["a", "b,c"], _answers([5], (1, 0), (2, 0)), {"5": 5}, keep=["3"])
    assert (tmp_path / PER_CLASS).read_text().split() == ["class,images,5", "a,2,50.0000", '"b,c",0,']


def test_accuracies_of_classes_are_kept_if_the_network_has_more_logits_than_the_data_have_classes(tmp_path):
    batches = [(torch.eye(3)[[0, 1, 0, 0]], torch.tensor([0, 0, 1, 1]))]
    answers = answers_of(torch.nn.Identity(), None, batches)
    write_per_class(tmp_path, ["a", "b"], answers, {"3": 0})
    write_per_class(tmp_path, ["a", "b"], answers, {"5": 0}, keep=["3"])
    assert (tmp_path / PER_CLASS).read_text().split()[:2] == ["class,images,3,5", "a,2,50.0000,50.0000"]


@pytest.mark.parametrize(
    "before", [b"", b"\xff\0,", b"class,images,3,3\na,2,1,1\nb,2,1,9\n", b"class,images,3\na,2,1\na,2,1\n"]
)
def test_nothing_is_kept_of_a_damaged_file_or_one_with_a_column_or_class_twice(before, tmp_path):
    (tmp_path / PER_CLASS).write_bytes(before)
    write_per_class(tmp_path, ["a", "b"], _answers([5], (1, 0), (2, 2)), {"5": 5}, keep=["3"])
    assert (tmp_path / PER_CLASS).read_text().split() == ["class,images,5", "a,2,50.0000", "b,2,0.0000"]


def test_a_stitch_is_judged_in_evaluation_mode_and_the_mode_comes_back():
    model = pico_snnet().train()
    x, labels = pico_images(4), torch.tensor([0, 1, 2, 3])
    model.views["b"].model.blocks[1].eval()
    score = answers_of(model, 6, [(x, labels)]).figures(6)
    expected = F.cross_entropy(model.eval()(x, 6), labels)
    assert score["loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_each_module_gets_its_own_mode_back():
    model = pico_snnet().train()
    frozen = model.views["b"].model.blocks[1].eval()
    answers_of(model, 6, [(pico_images(1), torch.tensor([0]))])
    assert model.training
    assert not frozen.training


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_answers_of_ranks_come_together_in_the_order_of_the_images(size, monkeypatch):
    random = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(2, 21, 9, generator=random), torch.randint(-1, 9, (21,), generator=random)

    networks = Networks(torch.nn.Identity(), [3, 5], lambda images: zip([3, 5], logits[:, images], strict=True))

    def answers(rank, step):
        batches = [(own, labels[own]) for own in torch.arange(rank, 21, step).split(4)]
        return evaluate(networks, lambda _: batches, Accuracy(), device=CPU)

    parts = [answers(rank, size) for rank in range(size)]
    sent_by_all = lambda sent: [{name: getattr(part, name) for name in sent} for part in parts]  # noqa: E731
    monkeypatch.setattr("stitchkit.measure.evaluate.gather_objects", sent_by_all)
    monkeypatch.setattr(
        "stitchkit.measure.evaluate.sum_over_ranks", lambda _: torch.tensor(sum(part.totals for part in parts))
    )
    found = answers(0, size)
    right = (logits.argmax(2) == labels).numpy()
    assert found.truth[:, 0].tolist() == labels.tolist()
    assert np.array_equal(np.array(found.own)[..., 0], right)
    assert not found.seen[:, labels < 0].any()
    monkeypatch.undo()
    whole = answers(0, 1)
    for cfg_id in (3, 5):
        assert found.figures(cfg_id) == pytest.approx(whole.figures(cfg_id))
        assert {**found.figures(cfg_id), "loss": 0} == {**whole.figures(cfg_id), "loss": 0}


def test_nothing_to_judge_is_an_error():
    with pytest.raises(InputError, match="no image"):
        answers_of(torch.nn.Identity(), None, []).figures(0)


@pytest.mark.parametrize("text", ["", "[]", "a", "- ]", "\x00"])
def test_a_damaged_origin_of_a_ledger_is_reported_in_one_line(text, tmp_path):
    path = tmp_path / "stitches_res.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"the origin of '.*', cannot be read: .*; choose another") as caught:
        _check_origin(path.with_suffix(".txt"), {"seed": 1})
    assert "\n" not in str(caught.value)
