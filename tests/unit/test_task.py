"""The task: losses of labels and teacher, as described."""

from types import SimpleNamespace

import pytest
import torch
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy
from torch import nn
from torch.nn import functional as F

import stitchkit
from stitchkit.engine.training_state import training_state
from stitchkit.errors import InputError
from stitchkit.settings.by_name import make_recipe
from stitchkit.training.optim import create_optimizer
from stitchkit.training.task import create_task
from tests.support import family_snnet, pico_anchor, pico_images, pico_snnet

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
    recipe = make_recipe({"smoothing": 0.0} | settings)
    return create_task(model, recipe, CPU, sides=(64, 64), mean=half, std=half)


def taught(task):
    """The loss of a task for its teacher's answers."""
    return task.criterion.losses[1]


def answers(task, x):
    """What the teacher of a task says of images in the student's normalisation."""
    loss = taught(task)
    return loss.teacher.model(loss.teacher.normalize_input(x, loss.mean, loss.std))


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
    logits, wanted = model(x, 4), answers(task, x)
    if kind == "hard":
        of_teacher = F.cross_entropy(logits, wanted.argmax(1))
    else:
        p, q = torch.softmax(wanted / 2, 1), torch.softmax(logits / 2, 1)
        of_teacher = (p * (p / q).log()).sum(1).mean() * 4
    torch.testing.assert_close(task(x, LABELS, 4)["loss"], 0.5 * F.cross_entropy(logits, LABELS) + 0.5 * of_teacher)


def test_the_teacher_sees_images_in_its_own_normalisation(teacher_path):
    loss = taught(task_of(pico_snnet(), **teacher_settings(teacher_path, "hard")))
    # ViT's images are normalised with 0.5, the teacher's with ImageNet's figures.
    seen = loss.teacher.normalize_input(torch.zeros(1, 3, 2, 2), loss.mean, loss.std)
    expected = (0.5 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(seen[0, :, 0, 0], expected)


def test_a_teacher_that_learned_from_other_images_is_said(teacher_path, tmp_path, caplog):
    image = {"mean": [0.1] * 3, "crop_pct": 0.7, "input_img_mode": "YCbCr"}
    torch.save({"state_dict": torch.load(teacher_path, weights_only=True), "image": image}, tmp_path / "ycc.pth")
    task_of(pico_snnet(), **teacher_settings(str(tmp_path / "ycc.pth"), "hard"))
    [line] = [line for line in caplog.messages if "was trained on images" in line]
    assert line.endswith("prepared with crop_pct 0.7, here 0.9; input_img_mode YCbCr, here RGB"), "it has its own mean"


def test_the_teacher_stays_in_evaluation_mode_untrained_and_unsaved(teacher_path):
    task = task_of(pico_snnet(), **teacher_settings(teacher_path, "hard")).train()
    assert task.trainable_module.training
    assert not any(module.training for module in taught(task).teacher.modules())
    task(pico_images(), LABELS, 4)["loss"].backward()
    assert all(parameter.grad is None for parameter in taught(task).teacher.parameters())
    assert not any(name.startswith("teacher") for name in task.trainable_module.state_dict())


def test_a_teacher_that_cannot_be_loaded_is_named(teacher_path):
    with pytest.raises(InputError, match=r"teacher: .*--distillation-type none"):
        task_of(pico_snnet(), **teacher_settings(teacher_path + ".gone", "hard"))
    with pytest.raises(InputError, match="did you mean 'regnety_160'"):
        task_of(pico_snnet(), distillation_type="hard", teacher_model="regnety_16o")


def test_the_criterion_follows_the_recipe():
    assert isinstance(task_of(pico_snnet()).criterion.losses[0].criterion, nn.CrossEntropyLoss)


def test_the_teacher_is_watched_at_work(teacher_path):
    """Without gradients, inside mixed precision, in evaluation mode, and neither saved nor trained."""
    recipe = make_recipe({"smoothing": 0.0, "model_ema": True, **teacher_settings(teacher_path, "soft")})
    half = (0.5, 0.5, 0.5)
    task = create_task(pico_snnet(), recipe, CPU, sides=(16, 16), mean=half, std=half)
    task.setup_ema(decay=0.9)
    seen = []
    taught(task).teacher.model.fc.register_forward_hook(
        lambda module, _, output: seen.append((torch.is_grad_enabled(), output.dtype, module.training))
    )
    task.train()
    before = {name: value.clone() for name, value in taught(task).teacher.state_dict().items()}
    optimizer = create_optimizer(task.trainable_module, recipe.optim, lr=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        task(pico_images(), LABELS, 4)["loss"].backward()
    optimizer.step()
    assert seen == [(False, torch.bfloat16, False)]
    assert all(torch.equal(value, before[name]) for name, value in taught(task).teacher.state_dict().items())
    fixed = {id(parameter) for parameter in taught(task).parameters()}
    assert not fixed & {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    state = training_state(SimpleNamespace(task=task, optimizer=optimizer, scaler=None))
    own = pico_snnet().state_dict().keys()
    assert state["state_dict"].keys() == state["state_dict_ema"].keys() == own


def test_the_teacher_follows_precision_and_channels(teacher_path, tmp_path):
    path = tmp_path / "grey.pth"
    torch.save(stitchkit.create_model("resnet10t", num_classes=4, in_chans=1).state_dict(), path)
    anchors = [pico_anchor("a", 8, in_chans=1), pico_anchor("b", 16, in_chans=1)]
    model = pico_snnet(anchors=anchors).bfloat16()
    settings = {"model_dtype": "bfloat16", "in_chans": 1, **teacher_settings(str(path), "hard")}
    task = create_task(model, make_recipe(settings), CPU, sides=(16, 16), mean=(0.5,), std=(0.5,))
    images = pico_images()[:, :1].bfloat16()
    assert task(images, LABELS, 4)["loss"].isfinite()
    assert taught(task).mean.shape == (1, 1, 1, 1)


def test_binary_cross_entropy():
    model, x = pico_snnet(), pico_images()
    settings = {"bce_loss": True, "smoothing": 0.2, "bce_sum": True, "bce_pos_weight": 3.0}
    target = F.one_hot(LABELS, 4) * 0.8 + 0.05
    loss = F.binary_cross_entropy_with_logits(model(x, 1), target, pos_weight=torch.tensor(3.0), reduction="none")
    torch.testing.assert_close(task_of(model, **settings)(x, LABELS, 1)["loss"], loss.sum(1).mean())
    mixed = torch.tensor([[0.7, 0.3, 0.0, 0.0], [0.0, 0.0, 0.4, 0.6]])
    task = task_of(model, bce_loss=True, mixup=0.8, smoothing=0.2, bce_target_thresh=0.35)
    expected = F.binary_cross_entropy_with_logits(model(x, 1), (mixed > 0.35).float())
    torch.testing.assert_close(task(x, mixed, 1)["loss"], expected)
    assert isinstance(task_of(model, bce_loss=True, smoothing=0.0).criterion.losses[0].criterion, BinaryCrossEntropy)


def test_divergence_between_splits():
    model, x = pico_snnet(), pico_images(6)
    labels = LABELS.repeat(3)
    task = task_of(model, jsd_loss=True, aug_splits=3, smoothing=0.1)
    (loss,) = task.criterion.losses
    assert isinstance(loss.criterion, JsdCrossEntropy)
    assert loss.criterion.num_splits == 3
    logits = model(x, 1)
    parts = [torch.softmax(part, 1) for part in logits.split(2)]
    mixture = torch.stack(parts).mean(0)
    divergence = sum((part * (part / mixture).log()).sum(1).mean() for part in parts) / 3
    clean = F.cross_entropy(logits[:2], labels[:2], label_smoothing=0.1)
    loss = task(x, labels, 1)["loss"]
    torch.testing.assert_close(loss, clean + 12 * divergence, rtol=1e-3, atol=1e-4)  # timm's weight


def test_a_teacher_of_other_classes_is_left_out_and_said_so(caplog):
    """The published recipes name a teacher of ImageNet; a person's own images have other classes."""
    task = task_of(pico_snnet(), distillation_type="hard", teacher_model="regnety_160.deit_in1k")
    assert len(task.criterion.terms) == 1
    assert "teacher 'regnety_160.deit_in1k' knows 1000 classes, the data have 4: training continues" in caplog.text


def test_with_a_teacher_each_classifier_of_a_distilled_anchor_has_its_own_loss(teacher_path):
    model = family_snnet("levit")
    x = pico_images(size=64)
    task = task_of(model, **teacher_settings(teacher_path, "hard")).train()
    labels, second = model.train()(x, 0)
    wanted = answers(task, x).argmax(1)
    expected = 0.5 * F.cross_entropy(labels, LABELS) + 0.5 * F.cross_entropy(second, wanted)
    torch.testing.assert_close(task(x, LABELS, 0)["loss"], expected)
    assert (labels - second).abs().max() > 0.1
    torch.testing.assert_close(task.eval()(x, LABELS, 0)["output"], model.eval()(x, 0))


def test_without_a_teacher_both_classifiers_learn_from_labels():
    model = family_snnet("levit")
    task = task_of(model).train()
    assert task(pico_images(size=64), LABELS, 0)["output"].shape == (2, 4)


def test_a_file_of_other_classes_cannot_teach(tmp_path):
    """Its classifier would have to be re-initialised, and random choices would be half the loss."""
    torch.save(stitchkit.create_model("resnet10t", num_classes=7).state_dict(), tmp_path / "seven.pth")
    with pytest.raises(InputError, match="knows 7 classes, the data have 4"):
        task_of(pico_snnet(), **teacher_settings(str(tmp_path / "seven.pth"), "hard"))


def test_a_teacher_takes_images_of_the_students_size(tmp_path):
    vit = {
        "distillation_type": "hard",
        "teacher_model": "vit_tiny_patch16_224",
        "teacher_path": str(tmp_path / "v.pth"),
    }
    torch.save(
        stitchkit.create_model("vit_tiny_patch16_224", img_size=64, num_classes=4).state_dict(), tmp_path / "v.pth"
    )
    task = task_of(family_snnet("levit"), **vit)
    assert task(pico_images(size=64), LABELS, 0)["loss"].isfinite()


def test_a_teacher_with_a_tag_that_does_not_exist_is_named():
    with pytest.raises(InputError, match="unknown tag of resnet18 'nonsense'"):
        task_of(pico_snnet(), distillation_type="hard", teacher_model="resnet18.nonsense")


def test_a_plain_model_can_have_a_teacher(teacher_path):
    model = stitchkit.create_model("resnet10t", num_classes=4)
    task = task_of(model, **teacher_settings(teacher_path, "hard"))
    assert len(task.criterion.terms) == 2
    assert task(pico_images(size=64), LABELS)["loss"].isfinite()
