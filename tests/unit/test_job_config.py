"""The configuration of a job: published keys load, mistakes name their file, line and nearest valid choice."""

import argparse

import pytest
import timm
import torch
import yaml
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import v2

from stitchkit.assembly.commands import job
from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.config.settings import Metric, TrainConfig
from stitchkit.assembly.parts.spec import class_token_of
from stitchkit.assembly.train.job import check_training, engine_settings
from stitchkit.assembly.train.metrics import create_measures
from stitchkit.assembly.train.optim import (
    OPTIMIZERS,
    SCHEDULERS,
    create_loss,
    create_optimizer,
    create_schedule,
)
from stitchkit.assembly.train.preprocessing import create_transform
from stitchkit.cli import main
from stitchkit.errors import InputError
from stitchkit.settings.files import naming
from tests.commands import refused
from tests.support import write_sweep

PUBLISHED = """\
# All keys that a published file may have.
assembly:
  - Subnet:
      backend: timm
      model_name: resnet18.a1_in1k
      block_input: x
      block_output: layer2
      in_format: img
      out_format: [img, [128, 28, 28]]
      frozen: true
  - SimpleAdapter: {num_conv: 1, in_channels: 128, out_channels: 192}
head:
  ClassifierHead: {}
reformat_options: {class_token: avg}
workers: 2
data_path: data
print_freq: 5
save_checkpoints: true
eval_checkpoints: true
checkpoint_initial_model: false
test_only: false
deterministic: false
unfrozen: false
strict_load: true
load_from: weights.pth
start_epoch: 0
save_dir: out
metrics_output: out/result.pkl
device: cpu
metrics: [{metric_fn: accuracy}]
project: p
entity: e
group: g
id: abc
train_config:
  dataset: imagenet
  data_augmentation: true
  seed: 12345
  epochs: &epochs 3
  batch_size: 256
  max_steps: 100
  max_batches: 10
  loss_fn: cross_entropy
  aux_losses:
    - {output: parts.0, loss_fn: cross_entropy, weight: 0.5}
  optimizer: AdamW
  optimizer_args:
    lr: 2.0e-3
    weight_decay: 0.05
  lr_scheduler: SequentialLR
  lr_scheduler_args:
    cadence: steps
    milestones: [10]
    schedulers:
      - lr_scheduler: LinearLR
        lr_scheduler_args: {total_iters: 10, start_factor: 0.033}
      - lr_scheduler: CosineAnnealingLR
        lr_scheduler_args: {T_max: *epochs, eta_min: 0.0}
  max_grad_norm: 1.0
  data_preprocessing:
    image_size: 224
    mean: [0.5, 0.5, 0.5]
    std: [0.5, 0.5, 0.5]
    resize_mode: longest
    interpolation: bicubic
    random_resize_scale: [0.9, 1.0]
    data_augmentation: default
"""

SMALL = """\
model:
  Net: {model_name: resnet18}
train_config:
  dataset: cifar10
  epochs: 3
"""


def write(folder, text, name="job.yml"):
    path = folder / name
    path.write_text(text)
    return path


def load(path, **changes):
    """A file as the command reads it."""
    config = JobConfig.load(path, **changes)
    with naming(path):
        check_training(config)
    return config


def refusal(folder, text, **changes):
    """What a file is refused with."""
    path = write(folder, text)
    with pytest.raises(InputError) as found:
        load(path, **changes)
    return str(found.value).replace(f"{folder}/", "")


def train_config(**settings):
    return TrainConfig(**{"dataset": "digits", "epochs": 3, **settings})


def test_a_file_with_every_published_key_loads_unchanged(tmp_path):
    config = JobConfig.load(write(tmp_path, PUBLISHED))
    assert [part.name for part in config.network.parts] == ["Subnet", "SimpleAdapter"]
    assert config.network.parts[1].place == "assembly[1]"
    assert config.network.head.name == "ClassifierHead"
    assert config.network.reformat_options == {"class_token": "avg"}
    given = yaml.safe_load(PUBLISHED)
    resolved = config.to_dict()
    assert {key: resolved[key] for key in given if key not in ("train_config", "metrics")} == {
        key: value for key, value in given.items() if key not in ("train_config", "metrics")
    }
    assert resolved["train_config"]["lr_scheduler_args"]["schedulers"][1]["lr_scheduler_args"]["T_max"] == 3


def test_the_resolved_configuration_loads_to_the_same(tmp_path):
    config = JobConfig.load(write(tmp_path, PUBLISHED), epochs=7, lr=0.5)
    again = JobConfig.load(write(tmp_path, yaml.safe_dump(config.to_dict()), "again.yml"))
    assert again == config
    assert (again.train_config.epochs, again.train_config.optimizer_args["lr"]) == (7, 0.5)
    assert again.train_config.optimizer_args["weight_decay"] == 0.05


def test_one_model_and_the_defaults(tmp_path):
    config = JobConfig.load(write(tmp_path, SMALL))
    assert [part.name for part in config.network.parts] == ["Net"]
    assert config.network.parts[0].place == "model"
    assert (config.eval_checkpoints, config.save_checkpoints, config.strict_load) == (True, False, True)
    [task] = config.train_config.resolved_tasks
    assert (task.name, task.loss_fn, task.data_preprocessing.size) == ("cifar10", "cross_entropy", (224, 224))


def test_tasks_have_the_settings_of_the_training_and_their_own(tmp_path):
    text = SMALL.replace(
        "  dataset: cifar10\n", "  batch_size: 7\n  tasks: [{dataset: a/b}, {dataset: c, batch_size: 3}]\n"
    )
    first, second = JobConfig.load(write(tmp_path, text)).train_config.resolved_tasks
    assert (first.name, first.batch_size, second.batch_size) == ("b", 7, 3)
    assert "line 4: train_config.tasks[0].datset: unknown key 'datset'; did you mean 'dataset'?" in refusal(
        tmp_path, SMALL.replace("dataset: cifar10", "tasks: [{datset: a}]")
    )


def test_include_is_relative_to_the_file_and_keeps_lines(tmp_path):
    (tmp_path / "parts").mkdir()
    write(tmp_path / "parts", "dataset: cifar10\nepochs: 3\nbatch_sise: 8\n", "train.yml")
    write(tmp_path / "parts", "train_config: !include train.yml\nmodel: {Net: {model_name: x}}", "job.yml")
    with pytest.raises(InputError) as found:
        JobConfig.load(tmp_path / "parts/job.yml")
    assert str(found.value) == (
        f"'{tmp_path}/parts/train.yml', line 3: train_config.batch_sise: unknown key 'batch_sise'; "
        "did you mean 'batch_size'?"
    )


def test_an_include_of_a_list_and_one_anchor_in_each_file(tmp_path):
    write(tmp_path, "- Net: {model_name: &x one}\n- Net: {model_name: *x}\n", "parts.yml")
    config = JobConfig.load(write(tmp_path, "assembly: !include parts.yml\n" + SMALL.split("\n", 2)[2]))
    assert [part.arguments["model_name"] for part in config.network.parts] == ["one", "one"]


def test_a_cycle_of_includes_is_refused(tmp_path):
    write(tmp_path, "a: !include job.yml\n", "other.yml")
    assert refusal(tmp_path, "a: !include other.yml\n").endswith(
        "includes itself: job.yml -> other.yml -> job.yml; remove one !include"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: !!python/object/apply:os.system [ls]\n", "'job.yml', line 1: not plain data: could not"),
        ("model: [1\n", "'job.yml', line 1: invalid YAML: did not find"),
        ("- 1\n", "holds list; settings are 'name: value' lines"),
        ("", "'job.yml' holds no settings"),
        ("model: !include gone.yml\n", "gone.yml' cannot be read: No such file"),
        ("model: !include [a]\n", "'job.yml', line 1: write !include and the name of a file"),
    ],
)
def test_files_that_are_not_configurations(tmp_path, text, words):
    assert words in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("  epochs: 3", "  optimizr: SGD\n  epochs: 3",
         "line 5: train_config.optimizr: unknown key 'optimizr'; did you mean 'optimizer'?"),
        ("train_config:", "wrokers: 3\ntrain_config:",
         "line 3: wrokers: unknown key 'wrokers'; did you mean 'workers'?"),
        ("  epochs: 3", "  epochs: many", "line 5: train_config.epochs is 'many'; it must be a whole number"),
        ("  epochs: 3", "  epochs: true", "train_config.epochs is True; it must be a whole number"),
        ("  epochs: 3", "", "train_config.epochs is missing"),
        ("  epochs: 3", "  epochs: -1", "train_config.epochs is -1; it must be at least 0"),
        ("  epochs: 3", "  epochs: 3\n  batch_size: 0", "line 6: train_config.batch_size is 0; it must be at least 1"),
        ("  epochs: 3", "  epochs: 3\n  optimizer: AdamWW", "unknown optimizer 'AdamWW'; did you mean 'AdamW'?"),
        ("  epochs: 3", "  epochs: 3\n  optimizer_args: {lrr: 1}",
         "line 6: train_config.optimizer_args.lrr: unknown argument of Adam 'lrr'; did you mean 'lr'?"),
        ("  epochs: 3", "  epochs: 3\n  optimizer_args: {momentum: 1}",
         "line 6: train_config.optimizer_args.momentum, or --momentum: unknown argument of Adam"),
        ("  epochs: 3", "  epochs: 3\n  optimizer_args: {lr: -1}", "Invalid learning rate: -1"),
        ("  epochs: 3", "  epochs: 3\n  lr_scheduler: CosineLR", "line 6: train_config.lr_scheduler: unknown schedule"),
        ("  epochs: 3", "  epochs: 3\n  lr_scheduler: StepLR\n  lr_scheduler_args: {step: 1}",
         "torch.optim.lr_scheduler.StepLR documents what it takes"),
        ("  epochs: 3", "  epochs: 3\n  lr_scheduler: ConstantLR\n  lr_scheduler_args: {cadence: step}",
         "line 7: train_config.lr_scheduler_args.cadence: unknown cadence 'step'; did you mean 'steps'?"),
        ("  epochs: 3", "  epochs: 3\n  lr_scheduler: ChainedScheduler\n  lr_scheduler_args: {schedulers: [{lr: 1}]}",
         "train_config.lr_scheduler_args.schedulers[0] is"),
        ("  epochs: 3", "  epochs: 3\n  loss_fn: cros_entropy",
         "unknown loss 'cros_entropy'; did you mean 'cross_entropy'?"),
        ("  epochs: 3", "  epochs: 3\n  aux_losses: [{output: x, loss: y}]",
         "line 6: train_config.aux_losses[0].loss: unknown key 'loss'; did you mean 'loss_fn'?"),
        ("  epochs: 3", "  epochs: 3\n  data_preprocessing: {resize_mode: short}", "unknown value 'short'"),
        ("  epochs: 3", "  epochs: 3\n  data_preprocessing: {interpolation: bicubix}", "did you mean 'bicubic'?"),
        ("  epochs: 3", "  epochs: 3\n  data_preprocessing: {data_augmentation: [{RandomHorizontalFlop: {}}]}",
         "train_config.data_preprocessing.data_augmentation[0]: unknown transform 'RandomHorizontalFlop'"),
        ("  dataset: cifar10", "  tasks: [{dataset: a/x}, {dataset: b/x}]",
         "line 4: train_config.tasks: two data sets have the same name, so results could not distinguish them; remove"),
        ("  dataset: cifar10", "  tasks: [{dataset: x}, {dataset: y, data_preprocessing: {image_size: 9}}]",
         "different sizes"),
        ("  epochs: 3", "  epochs: 3\n  data_augmentation: defualt",
         "unknown value 'defualt'; did you mean 'default'?"),
        ("model:\n  Net: {model_name: resnet18}\n", "assembly: []\n", "line 1: assembly is []; its length"),
        ("  dataset: cifar10\n", "", "line 3: train_config: no data set is named; set dataset, or tasks"),
        ("train_config:", "assembly: [ClassifierHead]\ntrain_config:", "model or assembly: both are set"),
        ("model:\n  Net: {model_name: resnet18}\n", "", "model or assembly: neither is set"),
        ("train_config:", "load_from: a\nresume_from: b\ntrain_config:",
         "line 3: load_from and resume_from are both set"),
        ("train_config:", "head: ClassifierHead\ntrain_config:", "line 3: head requires assembly"),
        ("  epochs: 3", "  epochs: 3\n  data_preprocessing:\n    image_size: 32\n    mean: [0.5, 0.5]",
         "line 8: train_config.data_preprocessing.mean: it is [0.5, 0.5]; set one value, or one for each channel"),
        ("  epochs: 3", "  epochs: 3\n  data_preprocessing:\n    image_size: 32\n    random_resize_scale: [1.0, 0.5]",
         "line 8: train_config.data_preprocessing.random_resize_scale: it is [1.0, 0.5]; set the smallest"),
        ("train_config:", "metrics: [{metric_fn: f1}]\ntrain_config:",
         "line 3: metrics[0].metric_fn: unknown metric 'f1'"),
        ("train_config:", "metrics: [{metric_fn: cross_entropi}]\ntrain_config:",
         "metrics[0].metric_fn: unknown metric 'cross_entropi'; did you mean 'cross_entropy'?"),
        ("train_config:", "metrics: [{metric_fn: topk_accuracy, metric_fn_args: {topk: [1, 0]}}]\ntrain_config:",
         "metrics[0]: metric_fn_args.topk[1] is 0; it must be at least 1"),
        ("train_config:", "metrics: [{metric_fn: mse_loss, metric_fn_args: {reduction: sum}}]\ntrain_config:",
         "metrics[0].metric_fn_args.reduction: a figure is a mean over images"),
        ("train_config:", "metrics: [{metric_fn: nll_loss, metric_fn_args: {k: 1}}]\ntrain_config:",
         "metrics[0]: nll_loss rejects outputs, labels and metric_fn_args"),
        ("train_config:", "metrics: [{metric_fn: soft_margin_loss}]\ntrain_config:",
         "metrics[0].metric_fn: unknown metric 'soft_margin_loss'"),
        ("train_config:", "metrics: [{metric_fn: binary_cross_entropy}]\ntrain_config:",
         "metrics[0].metric_fn: unknown metric 'binary_cross_entropy'"),
        ("train_config:",
         "metrics: [{metric_fn: cross_entropy}, {metric_fn: F.cross_entropy, metric_fn_args: {label_smoothing: 0.1}}]\n"
         "train_config:", "metrics[1]: an earlier metric has this column too, cross_entropy; keep one of them"),
        ("train_config:", "metrics: [{metric_fn: accuracy, metric_fn_args: {topk: 5}}]\ntrain_config:",
         "metrics[0]: metric_fn_args: accuracy takes none; remove them, or use topk_accuracy"),
        ("  Net: {model_name: resnet18}", "  Net: {}\n  Subnet: {}",
         "line 1: model: {'Net': {}, 'Subnet': {}} is not a part; write one class name"),
        ("train_config:", "image_size: 32\ntrain_config:",
         "line 3: image_size is at the wrong level; move it into train_config.data_preprocessing"),
        ("  epochs: 3", "  epochs: 3\n  image_size: 32", "line 6: train_config.image_size is at the wrong level; move"),
        ("  dataset: cifar10", "  tasks: [{dataset: x}, {dataset: y, image_size: 9}]",
         "line 4: train_config.tasks[1].image_size is at the wrong level; move it into train_config.data_prep"),
        ("  epochs: 3", "  epochs: 3\n  class_weights: balanced",
         "line 6: train_config.class_weights was removed: no table"),
        ("  epochs: 3", "  epochs: 3\n  metrics: []",
         "train_config.metrics is at the wrong level; move it to the top level of the file"),
        ("  epochs: 3", "  epochs: 3\n  weight_decay: 1", "move it into train_config.optimizer_args"),
        ("model:", "gaps: []\nmodel:", "line 1: gaps: this file is a sweep, not a job; use stitchkit sweep"),
    ],
)  # fmt: skip
def test_mistakes_name_their_place_and_the_nearest_choice(tmp_path, old, new, words):
    message = refusal(tmp_path, SMALL.replace(old, new))
    assert words in message
    assert message.startswith("'job.yml'")
    assert "\n" not in message


def test_flags_take_the_place_of_what_they_exclude(tmp_path):
    text = SMALL + "load_from: a\n"
    config = JobConfig.load(write(tmp_path, text), resume_from="b")
    assert (config.load_from, config.resume_from) == (None, "b")
    assert "are both set" in refusal(tmp_path, text, load_from="a", resume_from="b")


def rates(train, epochs, steps):
    """The learning rate of every step, as the trainer goes through them."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = create_optimizer(train, [weight])
    schedule = create_schedule(train, optimizer)
    found = []
    for epoch in range(epochs):
        for step in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step_update(epoch * steps + step + 1)
        schedule.step(epoch + 1)
    return found


def test_schedules_advance_with_epochs_or_with_steps():
    settings = {"optimizer": "SGD", "optimizer_args": {"lr": 1.0}, "lr_scheduler": "ExponentialLR"}
    by_epoch = train_config(**settings, lr_scheduler_args={"gamma": 0.5})
    assert rates(by_epoch, 3, 2) == [1, 1, 0.5, 0.5, 0.25, 0.25]
    by_step = train_config(**settings, lr_scheduler_args={"gamma": 0.5, "cadence": "steps"})
    assert rates(by_step, 2, 2) == [1, 0.5, 0.25, 0.125]


@pytest.mark.parametrize("cadence", ["epochs", "steps"])
def test_nested_schedules_change_at_their_milestones(cadence):
    parts = [
        {"lr_scheduler": "LinearLR", "lr_scheduler_args": {"start_factor": 0.25, "total_iters": 2}},
        {"lr_scheduler": "MultiStepLR", "lr_scheduler_args": {"milestones": [1], "gamma": 0.1}},
    ]
    train = train_config(
        optimizer="SGD", optimizer_args={"lr": 1.0}, lr_scheduler="SequentialLR",
        lr_scheduler_args={"cadence": cadence, "milestones": [2], "schedulers": parts},
    )  # fmt: skip
    found = rates(train, 4, 1) if cadence == "epochs" else rates(train, 1, 4)
    assert found == pytest.approx([0.25, 0.625, 1.0, 0.1])


def test_a_plateau_lowers_the_rate():
    train = train_config(
        optimizer="SGD", optimizer_args={"lr": 1.0}, lr_scheduler="ReduceLROnPlateau",
        lr_scheduler_args={"patience": 0, "factor": 0.1},
    )  # fmt: skip
    assert rates(train, 3, 1) == pytest.approx([1, 1, 0.1])  # its loss stays 0
    with pytest.raises(InputError, match="needs epochs, whose loss it uses"):
        rates(train_config(lr_scheduler="ReduceLROnPlateau", lr_scheduler_args={"cadence": "steps"}), 1, 1)


def test_a_schedule_resumes_from_its_state():
    parts = [{"lr_scheduler": "ConstantLR"}, {"lr_scheduler": "CosineAnnealingLR", "lr_scheduler_args": {"T_max": 4}}]
    train = train_config(lr_scheduler="SequentialLR", lr_scheduler_args={"milestones": [2], "schedulers": parts})
    whole, found = rates(train, 5, 1), []
    state = None
    for epoch in range(5):  # a new one each epoch
        optimizer = create_optimizer(train, [torch.nn.Parameter(torch.ones(1))])
        schedule = create_schedule(train, optimizer)
        if state is not None:
            optimizer.load_state_dict(state[0])
            schedule.load_state_dict(state[1])
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step(epoch + 1)
        state = optimizer.state_dict(), schedule.state_dict()
    assert found == whole


def test_a_metric_is_the_mean_over_images_of_what_its_name_says():
    torch.manual_seed(0)
    outputs, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 3, 0])
    vectors = F.one_hot(labels, 4).float()
    first, second = outputs.topk(2).indices.T
    for name, arguments, expected in (
        ("accuracy", {}, (first == labels).float().mean()),
        ("topk_accuracy", {"topk": 2}, ((first == labels) | (second == labels)).float().mean()),
        ("cross_entropy", {"label_smoothing": 0.5}, F.cross_entropy(outputs, labels, label_smoothing=0.5)),
        ("F.mse_loss", {}, F.mse_loss(outputs, vectors)),
        ("cosine_similarity", {}, F.cosine_similarity(outputs, vectors).mean()),
    ):
        [measure] = create_measures(Metric(name, arguments), "metrics[0]").values()
        torch.testing.assert_close(measure(outputs, labels) / 6, expected)


def test_every_name_of_torch_is_known():
    assert {"CosineAnnealingLR", "SequentialLR", "OneCycleLR", "ReduceLROnPlateau"} < set(SCHEDULERS)
    assert train_config(optimizer="SGD").optimizer == "SGD"


@pytest.mark.parametrize("name", ["LBFGS", "torch.optim.LBFGS", "SparseAdam"])
def test_optimizers_that_cannot_train_a_job_are_refused_with_the_reason(tmp_path, name):
    line = refusal(tmp_path, SMALL.replace("  epochs: 3", f"  epochs: 3\n  optimizer: {name}"))
    assert f"line 6: train_config.optimizer is {name}, which cannot train a job: it " in line
    assert line.endswith("use AdamW or SGD")


@pytest.mark.parametrize("name", [*OPTIMIZERS])
def test_every_optimizer_that_is_listed_passes_the_check_and_steps(name):
    train = train_config(optimizer=name)
    check_training(JobConfig(model="ClassifierHead", train_config=train))
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = create_optimizer(train, [weight])
    weight.sum().backward()
    optimizer.step()
    assert not torch.equal(weight, torch.ones(2, 2))


def test_muon_trains_matrices_alone():
    with pytest.raises(InputError, match=r"Muon, which trains only matrices, .* of shape \[3\]; use AdamW or SGD"):
        create_optimizer(train_config(optimizer="Muon"), [torch.nn.Parameter(torch.ones(3))])


def test_names_may_be_given_with_their_modules(tmp_path):
    settings = (
        "  epochs: 3\n  optimizer: torch.optim.AdamW\n  loss_fn: torch.nn.functional.cross_entropy\n"
        "  lr_scheduler: torch.optim.lr_scheduler.StepLR\n  lr_scheduler_args: {step_size: 1}"
    )
    train = JobConfig.load(write(tmp_path, SMALL.replace("  epochs: 3", settings))).train_config
    optimizer = create_optimizer(train, [torch.nn.Parameter(torch.ones(1))])
    assert type(optimizer) is torch.optim.AdamW
    assert type(create_schedule(train, optimizer).scheduler) is torch.optim.lr_scheduler.StepLR
    loss = create_loss(train.loss_fn, {}, "train_config")
    assert loss(torch.zeros(1, 2), torch.tensor([0])).item() == pytest.approx(0.6931, abs=1e-4)
    with pytest.raises(InputError, match="unknown optimizer 'AdamWW'; did you mean 'AdamW'"):
        create_optimizer(train_config(optimizer="torch.optim.AdamWW"), [])


def picture(width=60, height=30):
    """An image whose left half is black and whose right half is white."""
    image = Image.new("L", (width, height))
    image.paste(255, (width // 2, 0, width, height))
    return image


def prepared(training=False, **settings):
    how = {"image_size": 20, "mean": [0.0], "std": [1.0], **settings}
    [task] = train_config(data_preprocessing=how).resolved_tasks
    return create_transform(task, "train_config", training=training)(picture().convert("RGB"))


def test_resize_modes():
    for mode in ("shortest", "longest", "squash"):
        assert prepared(resize_mode=mode).shape == (3, 20, 20)
    cut, filled = prepared(resize_mode="shortest"), prepared(resize_mode="longest")
    assert cut[:, :, -1].min() > 0.9
    assert filled[:, :5].max() == 0, "above the picture there is nothing"
    assert filled[:, 10, -1].min() > 0.9


def test_the_centre_crop_is_timms():
    how = {"interpolation": "bilinear", "crop_pct": 0.8, "mean": [0.0], "std": [1.0]}
    for size in ([20, 20], [20, 10]):
        theirs = timm.data.create_transform((3, *size), **how)(picture().convert("RGB"))
        torch.testing.assert_close(prepared(image_size=size, **how).as_subclass(torch.Tensor), theirs)


def test_normalisation_and_augmentation():
    plain = prepared()
    assert torch.allclose(prepared(mean=[0.5], std=[0.5]), (plain - 0.5) / 0.5, atol=1e-6)
    still = prepared(training=True, random_resize_scale=[1.0, 1.0])
    assert torch.equal(still, plain), "training without anything random sees what tests see"
    flip = [{"RandomHorizontalFlip": {"p": 1.0}}]
    flipped = prepared(training=True, random_resize_scale=[1.0, 1.0], data_augmentation=flip)
    assert torch.equal(flipped, plain.flip(-1))
    assert torch.equal(prepared(data_augmentation=flip), plain), "tests see no augmentation"


def test_images_of_a_height_and_a_width_keep_their_proportions():
    for mode in ("shortest", "longest", "squash"):
        assert prepared(resize_mode=mode, image_size=[20, 10]).shape == (3, 20, 10)
        assert prepared(training=True, image_size=[20, 10]).shape == (3, 20, 10)
    filled = prepared(resize_mode="longest", image_size=[20, 10])  # the picture is twice as wide as high
    assert filled[:, :7].max() == filled[:, 13:].max() == 0
    assert filled[:, 8:12, -1].min() > 0.9


@pytest.mark.parametrize(
    ("dataset", "mean", "policy"),
    [
        ("cifar10", [125.3 / 255, 123 / 255, 113.9 / 255], "cifar10"),
        ("CIFAR100", [129.3 / 255, 124.1 / 255, 112.4 / 255], "cifar10"),
        ("svhn", [0.485, 0.456, 0.406], "svhn"),
        ("dtd", [0.485, 0.456, 0.406], "imagenet"),
    ],
)
def test_data_sets_have_the_published_normalisation_and_augmentation(dataset, mean, policy):
    def steps(**how):
        [task] = train_config(dataset=dataset, data_preprocessing=how, data_augmentation=True).resolved_tasks
        return create_transform(task, "train_config", training=True).transforms

    assert steps()[-1].mean == mean
    assert steps(mean=0, std=1)[-1].mean == [0.0]
    assert [step.policy.value for step in steps() if isinstance(step, v2.AutoAugment)] == [policy]


def test_published_spellings_of_settings(tmp_path):
    text = (
        SMALL
        + "  lr_scheduler: DummyScheduler\n  data_preprocessing: {to_rgb: true, mean: 0.5, image_size: [64, 32]}\n"
    )
    config = load(write(tmp_path, text + "device: 0\nverbose: 2\nreformat_options: {class_token: mean}\n"))
    assert config.device == "cuda:0"
    assert engine_settings(config).log_interval == 1
    assert config.train_config.resolved_tasks[0].data_preprocessing.size == (64, 32)
    assert create_schedule(config.train_config, None) is None
    assert class_token_of(config.reformat_options, "zeros") == "avg"
    assert "to_rgb: it is false, but networks take" in refusal(
        tmp_path, SMALL + "  data_preprocessing: {to_rgb: false}\n"
    )
    parts = "model: {Assembly: {parts: [{SwinTransformerBlock: {num_heads: 1, drop_path_rate: %s, dropout: 0.1}}]}}"
    whole = SMALL.replace("model:\n  Net: {model_name: resnet18}", parts % 0.1)
    assert load(write(tmp_path, whole)).model
    assert "drop_path_rate is 2" in refusal(tmp_path, whole.replace("drop_path_rate: 0.1", "drop_path_rate: 2"))


def test_published_flags_set_their_keys(tmp_path):
    flags = (
        "--wd 0.1 --momentum 0.9 --learning-rate 0.2 --non-strict --checkpoint-initial-model --dataset digits -vv -e 7 "
    )
    flags += "--image-size 64,32 --data-augmentation -d 0 --project p --entity e --group g --id i --dest out "
    flags += "--metrics-dest out/r.pkl"
    parser = argparse.ArgumentParser()
    job.add_flags(parser)
    given = vars(parser.parse_args(["-c", str(write(tmp_path, SMALL)), *flags.split()]))
    path, *_ = (given.pop(key) for key in ("config", "smoke_test", "dry_run"))
    config = JobConfig.load(path, **given)
    train = config.train_config
    assert (train.optimizer_args, train.epochs) == ({"weight_decay": 0.1, "momentum": 0.9, "lr": 0.2}, 7)
    assert (train.dataset, train.data_preprocessing) == ("digits", {"image_size": [64, 32], "data_augmentation": True})
    assert (config.strict_load, config.checkpoint_initial_model, config.verbose) == (False, True, 2)
    assert (config.device, config.save_dir, config.metrics_output) == ("cuda:0", "out", "out/r.pkl")
    assert (config.project, config.entity, config.group, config.id) == tuple("pegi")


def test_an_image_size_that_is_none(capsys):
    said = refused(capsys, "job", "-c", "x", "--image-size", "abc")
    assert "'abc' is not a side, 224, or a height and a width, 224,256" in said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--epochs", "-1"], "--epochs is -1; it must be at least 0"),
        (["--workers", "-1"], "--workers is -1"),
        (["--image-size", "0,3"], "--image-size[0] is 0"),
        (["--lr", "-1"], "--lr is -1.0"),
        (["--lr", "inf"], "--lr is inf; it must be finite"),
        (["--lr", "x"], "--lr: 'x' is not a number"),
        (["--data", "http://x"], "--data is 'http://x'"),
        (["-o", "http://x"], "-o is 'http://x'"),
        (["--load-from", "a", "--resume", "b"], "--resume-from: not allowed with"),
    ],
)
def test_a_mistake_in_a_flag_names_the_flag(tmp_path, capsys, flags, words):
    path = write(tmp_path, PUBLISHED)
    assert refused(capsys, "job", "-c", path, *flags).startswith(f"stitchkit: error: {words}")


def test_a_mistake_in_a_flag_of_a_sweep_names_the_flag(tmp_path, capsys):
    for flags, words in {
        ("--epochs", "-1"): "--epochs is -1",
        ("--seeds", "1", "1"): "--seeds: it has 1 twice",
        ("--trials", "0"): "--trials is 0",
    }.items():
        assert refused(capsys, "sweep", "-c", "sweep.yml", *flags).startswith(f"stitchkit: error: {words}")


def test_named_policies_and_nested_transforms():
    listed = [
        {"AutoAugment": {"policy": "cifar10"}},
        {"RandomApply": {"transforms": [{"RandomRotation": {"degrees": 9}}]}},
    ]
    how = {"image_size": 20, "data_augmentation": listed}
    [task] = train_config(data_preprocessing=how).resolved_tasks
    steps = create_transform(task, "train_config", training=True).transforms
    [policy] = [step for step in steps if isinstance(step, v2.AutoAugment)]
    assert policy.policy == v2.AutoAugmentPolicy.CIFAR10
    [applied] = [step for step in steps if isinstance(step, v2.RandomApply)]
    assert isinstance(applied.transforms[0], v2.RandomRotation)
    for setting, count in ((True, 1), ("default", 1), (False, 0), (None, 0)):
        [task] = train_config(data_augmentation=setting).resolved_tasks
        steps = create_transform(task, "train_config", training=True).transforms
        assert sum(isinstance(step, v2.AutoAugment) for step in steps) == count


def test_a_schedule_that_torch_cannot_begin_inside_another_is_refused():
    inner = {"lr_scheduler": "SequentialLR", "lr_scheduler_args": {"milestones": [1], "schedulers": []}}
    parts = [{"lr_scheduler": "ConstantLR"}, inner]
    train = train_config(lr_scheduler="SequentialLR", lr_scheduler_args={"milestones": [2], "schedulers": parts})
    with pytest.raises(InputError, match=r"schedulers\[1\].lr_scheduler is SequentialLR, which torch cannot start"):
        rates(train, 1, 1)


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "job.yml"
    path.write_text("workers: 1\ntrain_config:\n  epochs: 1\n  dataset: digits\n  epochs: 2\n")
    with pytest.raises(InputError, match=r"line 5: duplicate key train_config\.epochs, which is also in line 3"):
        JobConfig.load(path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("train_config:\n", "train_config:\n  optimizer: AdamWW\n",
         "train_config.optimizer: unknown optimizer 'AdamWW'; did you mean 'AdamW'?"),
        ("train_config:\n", "metrics: [{metric_fn: acuracy}]\ntrain_config:\n",
         "metrics[0].metric_fn: unknown metric 'acuracy'; did you mean 'accuracy'?"),
    ],
)  # fmt: skip
def test_a_sweep_is_refused_for_its_training_before_it_is_planned(old, new, words, tmp_path, capsys):
    path = write_sweep(tmp_path, tmp_path)
    path.write_text(path.read_text().replace(old, new))
    assert main(["sweep", "-c", str(path), "-o", str(tmp_path / "out"), "--dry-run"]) == 2
    assert words in capsys.readouterr().err


def test_unset_keys_of_earlier_versions_are_read(tmp_path):
    text = SMALL + "  class_weights: null\n  loss_scale: null\n"
    assert load(write(tmp_path, text)) == load(write(tmp_path, SMALL))


def test_a_rate_where_the_published_system_ignores_it_is_reported_and_typos_are_errors(tmp_path, caplog):
    path = write(tmp_path, SMALL + "  lr: 1.0e-3\n")
    config = load(path)
    assert [record.message for record in caplog.records] == [
        f"'{path}': train_config.lr is ignored, as in the published system; move it to train_config.optimizer_args"
    ]
    assert config == load(write(tmp_path, SMALL))
    assert "train_config.lrs: unknown key 'lrs'" in refusal(tmp_path, SMALL + "  lrs: 1.0e-3\n")
