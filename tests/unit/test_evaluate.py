"""Scores are exact counts, however the images are batched."""

import pytest
import torch
from torch.nn import functional as F

from stitchkit.errors import InputError
from stitchkit.measure.evaluate import Score, _packed, evaluate, evaluate_stitch
from stitchkit.measure.per_class import PER_CLASS, write_per_class
from stitchkit.training.evaluation import _check_origin
from tests.support import pico_images, pico_snnet

CPU = torch.device("cpu")


def test_scores_are_counts():
    random = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(23, 9, generator=random), torch.randint(9, (23,), generator=random)
    for size in (1, 7, 23):
        score = evaluate_stitch(
            torch.nn.Identity(), None, zip(logits.split(size), labels.split(size), strict=True), device=CPU
        )
        assert score.images == 23
        assert score.acc1 == pytest.approx(100 * (logits.argmax(1) == labels).sum().item() / 23)
        ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
        assert score.acc5 == pytest.approx(100 * (ranks < 5).sum().item() / 23)
        assert score.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)


def test_classes_are_counted_each_and_balanced_accuracy_is_their_mean():
    logits = torch.eye(3)[[0, 0, 1, 1, 2, 0]]
    labels = torch.tensor([0, 0, 0, 1, -1, 1])
    batches = [(logits[:2], labels[:2]), (logits[2:], labels[2:])]
    score = evaluate_stitch(torch.nn.Identity(), None, batches, device=CPU, num_classes=3)
    assert (score.class_hits, score.class_images) == ((2, 1, 0), (3, 2, 0))
    assert score.class_acc1 == pytest.approx([200 / 3, 50, None])
    assert score.figures["balanced_acc1"] == pytest.approx((200 / 3 + 50) / 2)
    assert "balanced_acc1" not in score._replace(class_hits=(), class_images=()).figures


def test_accuracies_of_classes_are_kept_only_beside_the_same_images(tmp_path):
    score = Score(50.0, 100.0, 1.0, 4, (1, 0), (2, 2))
    write_per_class(tmp_path, ["a", "b,c"], {"3": score, "4": score})
    write_per_class(tmp_path, ["a", "b,c"], {"5": score}, keep=["3"])
    assert (tmp_path / PER_CLASS).read_text().split() == [
        "class,images,3,5",
        "a,2,50.0000,50.0000",
        '"b,c",2,0.0000,0.0000',
    ]
    write_per_class(tmp_path, ["a", "b,c"], {"5": score._replace(class_images=(2, 0))}, keep=["3"])
    assert (tmp_path / PER_CLASS).read_text().split() == ["class,images,5", "a,2,50.0000", '"b,c",0,']


def test_accuracies_of_classes_are_kept_if_the_network_has_more_logits_than_the_data_have_classes(tmp_path):
    score = Score(50.0, 100.0, 1.0, 4, (1, 0, 0), (2, 2, 0))
    write_per_class(tmp_path, ["a", "b"], {"3": score})
    write_per_class(tmp_path, ["a", "b"], {"5": score}, keep=["3"])
    assert (tmp_path / PER_CLASS).read_text().split()[:2] == ["class,images,3,5", "a,2,50.0000,50.0000"]


@pytest.mark.parametrize(
    "before", [b"", b"\xff\0,", b"class,images,3,3\na,2,1,1\nb,2,1,9\n", b"class,images,3\na,2,1\na,2,1\n"]
)
def test_nothing_is_kept_of_a_damaged_file_or_one_with_a_column_or_class_twice(before, tmp_path):
    (tmp_path / PER_CLASS).write_bytes(before)
    write_per_class(tmp_path, ["a", "b"], {"5": Score(50.0, 100.0, 1.0, 4, (1, 0), (2, 2))}, keep=["3"])
    assert (tmp_path / PER_CLASS).read_text().split() == ["class,images,5", "a,2,50.0000", "b,2,0.0000"]


def test_a_stitch_is_judged_in_evaluation_mode_and_the_mode_comes_back():
    model = pico_snnet().train()
    x, labels = pico_images(4), torch.tensor([0, 1, 2, 3])
    model.views["b"].model.blocks[1].eval()
    score = evaluate_stitch(model, 6, [(x, labels)], device=CPU)
    expected = F.cross_entropy(model.eval()(x, 6), labels)
    assert score.loss == pytest.approx(expected.item(), rel=1e-6)


def test_each_module_gets_its_own_mode_back():
    model = pico_snnet().train()
    frozen = model.views["b"].model.blocks[1].eval()
    evaluate_stitch(model, 6, [(pico_images(1), torch.tensor([0]))], device=CPU)
    assert model.training
    assert not frozen.training


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_answers_of_ranks_come_together_in_the_order_of_the_images(size, monkeypatch):
    random = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(2, 21, 9, generator=random), torch.randint(-1, 9, (21,), generator=random)

    def answers(rank, step):
        batches = [(own, labels[own]) for own in torch.arange(rank, 21, step).split(4)]
        return evaluate(torch.nn.Identity(), lambda images: logits[:, images], batches, device=CPU, count=2)

    def gather(packed):  # what each rank gives
        return [_packed(answers(rank, size)) for rank in range(size)]

    monkeypatch.setattr("stitchkit.measure.evaluate.gather_objects", gather)
    found = answers(0, size).of_all_ranks()
    assert torch.equal(found.labels, labels)
    assert torch.equal(found.right, logits.argmax(2) == labels)
    assert not found.right[:, labels < 0].any()


def test_answers_to_parts_of_the_images_are_those_to_all():
    random = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(3, 20, 9, generator=random), torch.randint(-1, 9, (20,), generator=random)

    def answers(numbers):
        own = torch.tensor(numbers)
        batches = [(own, labels[own])]
        return evaluate(torch.nn.Identity(), lambda images: logits[:, images], batches, device=CPU, count=3)

    part = [0, 3, 4, 11, 19]
    rest = [number for number in range(20) if number not in part]
    both = (answers(part) + answers(rest)).in_order([*part, *rest])
    whole = answers([*range(20)])
    assert torch.equal(both.labels, labels)
    assert torch.equal(both.right, whole.right)
    assert [score._replace(loss=0) for score in both.scores] == [score._replace(loss=0) for score in whole.scores]
    assert [score.loss for score in both.scores] == pytest.approx([score.loss for score in whole.scores])


def test_nothing_to_judge_is_an_error():
    with pytest.raises(InputError, match="no image"):
        evaluate_stitch(torch.nn.Identity(), None, [], device=CPU)


@pytest.mark.parametrize("text", ["", "[]", "a", "- ]", "\x00"])
def test_a_damaged_origin_of_a_ledger_is_reported_in_one_line(text, tmp_path):
    path = tmp_path / "stitches_res.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"the origin of '.*', cannot be read: .*; choose another") as caught:
        _check_origin(path.with_suffix(".txt"), {"seed": 1})
    assert "\n" not in str(caught.value)
