"""The task: losses of labels and teacher, as described."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import stitchkit
from stitchkit.errors import InputError
from stitchkit.train.flags import make_recipe
from stitchkit.train.task import create_task
from tests.support import pico_anchor, pico_images, pico_snnet

LABELS = torch.tensor([0, 3])
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher_path(tmp_path_factory):
    """A teacher with local weights, of another architecture than the anchors."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    torch.save(stitchkit.create_model("resnet10t", num_classes=4).state_dict(), path)
    return str(path)


def task_of(model, **settings):
    half = (0.5, 0.5, 0.5)
    return create_task(model, make_recipe({"smoothing": 0.0} | settings), CPU, mean=half, std=half)


def teacher_settings(path, kind):
    return {"distillation_type": kind, "teacher_model": "resnet10t", "teacher_path": path}


def test_labels_alone():
    model = pico_snnet()
    x = pico_images()
    result = task_of(model)(x, LABELS, 4)
    assert torch.equal(result["output"], model(x, 4))
    torch.testing.assert_close(result["loss"], F.cross_entropy(model(x, 4), LABELS))


def test_label_smoothing_and_mixed_labels():
    model = pico_snnet()
    x = pico_images()
    smooth = task_of(model, smoothing=0.2)(x, LABELS, 1)["loss"]
    torch.testing.assert_close(smooth, F.cross_entropy(model(x, 1), LABELS, label_smoothing=0.2))
    mixed = torch.softmax(torch.arange(8.0).reshape(2, 4), 1)
    loss = task_of(model, mixup=0.8)(x, mixed, 1)["loss"]
    torch.testing.assert_close(loss, F.cross_entropy(model(x, 1), mixed))


def test_a_plain_model_has_no_stitch():
    entry = pico_anchor("a", 8)
    model = stitchkit.create_model(entry["name"], **entry["kwargs"]).eval()
    x = pico_images()
    assert torch.equal(task_of(model)(x, LABELS)["output"], model(x))


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_half_the_loss_is_the_teachers(kind, teacher_path):
    model = pico_snnet()
    task = task_of(model, **teacher_settings(teacher_path, kind), distillation_tau=2.0)
    x = pico_images()
    logits, wanted = (
        model(x, 4),
        task.teacher.model(task.teacher.normalize_input(x, task.student_mean, task.student_std)),
    )
    if kind == "hard":
        taught = F.cross_entropy(logits, wanted.argmax(1))
    else:
        p, q = torch.softmax(wanted / 2, 1), torch.softmax(logits / 2, 1)
        taught = (p * (p / q).log()).sum(1).mean() * 4
    torch.testing.assert_close(task(x, LABELS, 4)["loss"], 0.5 * F.cross_entropy(logits, LABELS) + 0.5 * taught)


def test_the_teacher_sees_images_in_its_own_normalisation(teacher_path):
    task = task_of(pico_snnet(), **teacher_settings(teacher_path, "hard"))
    # ViT's images are normalised with 0.5, the teacher's with ImageNet's figures.
    seen = task.teacher.normalize_input(torch.zeros(1, 3, 2, 2), task.student_mean, task.student_std)
    expected = (0.5 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(seen[0, :, 0, 0], expected)


def test_the_teacher_stays_in_evaluation_mode_untrained_and_unsaved(teacher_path):
    task = task_of(pico_snnet(), **teacher_settings(teacher_path, "hard")).train()
    assert task.trainable_module.training
    assert not any(module.training for module in task.teacher.modules())
    task(pico_images(), LABELS, 4)["loss"].backward()
    assert all(parameter.grad is None for parameter in task.teacher.parameters())
    assert not any(name.startswith("teacher") for name in task.trainable_module.state_dict())


def test_a_teacher_that_cannot_be_had_is_named(teacher_path):
    with pytest.raises(InputError, match=r"teacher: .*--distillation-type none"):
        task_of(pico_snnet(), **teacher_settings(teacher_path + ".gone", "hard"))
    with pytest.raises(InputError, match="trained on 1000 classes, the anchors have 4"):
        task_of(pico_snnet(), distillation_type="hard", teacher_model="resnet10t")
    with pytest.raises(InputError, match="did you mean 'regnety_160'"):
        task_of(pico_snnet(), distillation_type="hard", teacher_model="regnety_16o")


def test_the_criterion_follows_the_recipe():
    assert isinstance(task_of(pico_snnet()).criterion, nn.CrossEntropyLoss)
