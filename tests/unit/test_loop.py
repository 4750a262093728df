"""A step of the loop leaves the device alone: nothing is read back between two log lines."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stitchkit.distributed import World
from stitchkit.engine.epoch_state import Position
from stitchkit.engine.loop import Trainer
from stitchkit.errors import InputError
from stitchkit.measure.profile import Profiler
from stitchkit.model.snnet import SNNet
from stitchkit.settings.by_name import make_recipe
from stitchkit.training.objective import LabelLoss, Objective, Term
from stitchkit.training.optim import create_optimizer, create_schedule
from stitchkit.training.samplers import create_sampler
from stitchkit.training.session import engine_settings
from stitchkit.training.task import StitchTask
from tests.support import family_snnet, mostly_full

CASES = {
    "plain": {},
    "averaged": {"model_ema": True, "model_ema_warmup": True},
    "norm": {"clip_grad": 1.0, "amp": True, "grad_accum_steps": 2},
    "accumulated": {"grad_accum_steps": 3},
    "agc": {"clip_grad": 0.1, "clip_mode": "agc", "layer_decay": 0.8, "sched_on_updates": True},
    "value": {"clip_grad": 0.1, "clip_mode": "value", "opt": "sgd"},
    "checkpointed": {"grad_checkpointing": True, "stitch_lr_scale": 0.5, "sched": "none"},
    "scaled": {"clip_grad": 1.0},
}


class Reads(TorchDispatchMode):
    """Counts the numbers that are read out of tensors."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        return function(*args, **(kwargs or {}))


def trainer(family, settings, *, scaled):
    recipe = make_recipe({"stitch_config": "x", "opt": "adamw", "log_interval": 100, "warmup_epochs": 0} | settings)
    model, device = family_snnet(family), torch.device("cpu")
    assert isinstance(model, SNNet)
    model.set_grad_checkpointing(recipe.model.grad_checkpointing)
    costs = Profiler(model)
    sampler = create_sampler(model.space.ids, lambda cfg_id: costs.cost(cfg_id).flops, recipe.stitch, 0, ())
    task = StitchTask(model, Objective(Term(LabelLoss(torch.nn.CrossEntropyLoss()))), sampler=sampler)
    size = model.input_size[1]
    loader = [(torch.randn(4, 3, size, size), torch.tensor([0, 3, 1, 2])) for _ in range(8)]
    loader = type("Batches", (list,), {"dataset": None, "sampler": None})(loader)
    optimizer = create_optimizer(model, recipe.optim, lr=1e-3)
    schedule, _ = create_schedule(recipe, optimizer, updates_per_epoch=8)
    subject = Trainer(
        task=task, loader=loader, optimizer=optimizer, schedule=schedule, settings=engine_settings(recipe),
        world=World(0, 1, device), folder=None,
    )  # fmt: skip
    subject.scaler = torch.amp.GradScaler("cpu") if scaled else None
    return subject


def read_back(*_):
    raise AssertionError("a tensor is copied to the host")


# Batch norms read nothing back in any of them; the other settings do not know what network they train.
@pytest.mark.parametrize(
    ("family", "name"),
    mostly_full(
        [(family, name) for family in ("vit", "resnet") for name in CASES],
        quick=[*(("vit", name) for name in CASES), ("resnet", "norm")],
    ),
)
def test_steps_read_nothing_back(name, family, monkeypatch):
    subject, reads, found = trainer(family, CASES[name], scaled=name == "scaled"), Reads(), []

    def read(position):
        found.append((len(position.losses), reads.count))
        return []

    monkeypatch.setattr(Position, "read", read)
    for copy in ("cpu", "tolist", "numpy"):  # on a CPU they are no operations
        monkeypatch.setattr(torch.Tensor, copy, read_back)
    with reads:
        subject.train_epoch(0, 1)
    steps = -(-8 // subject.settings.grad_accum_steps)
    assert found == [(steps, 0)], "one log line, and nothing was read before it"


def test_what_is_read_back_is_counted():
    with (reads := Reads()):
        assert torch.ones(()).item() == 1
        assert torch.ones(())
    assert reads.count == 2


def test_losses_of_stitches_are_the_means_of_their_steps(monkeypatch):
    """Against the losses themselves, over several log lines; continuing from a saved state changes nothing."""
    subject, position, found = trainer("vit", {"log_interval": 3}, scaled=False), Position(), []
    inner = subject._step

    def step(batches, number):
        loss, images, routes = inner(batches, number)
        found.append((routes[0], loss.item()))
        return loss, images, routes

    monkeypatch.setattr(subject, "_step", step)
    states = []
    mean = subject.train_epoch(
        0, 1, position=position, after_step=lambda here: states.append(here.state(torch.device("cpu")))
    )
    assert len(found) == 8
    assert mean == pytest.approx(sum(loss for _, loss in found) / 8)
    drawn = {cfg_id for cfg_id, _ in found}
    assert position.route_losses.keys() == drawn
    assert len(drawn) > 1
    for cfg_id, (loss, steps) in position.route_losses.items():
        own = [loss for number, loss in found if number == cfg_id]
        assert (loss, steps) == (pytest.approx(sum(own) / len(own)), len(own))
    again = Position.from_state(states[4], "position", torch.device("cpu"), steps=8, routes=99)
    for number, (cfg_id, loss) in enumerate(found[5:], start=5):
        again.add(number, cfg_id, torch.tensor(loss), rate=1.0)
    assert again.done == 8
    again.log()
    assert again.route_losses == position.route_losses


def test_the_rate_is_that_of_the_last_step_not_of_the_next():
    subject, used = trainer("vit", {"sched_on_updates": True, "epochs": 1}, scaled=False), []
    inner = subject.optimizer.step
    subject.optimizer.step = lambda: (used.append(subject.rate), inner())
    subject.train_epoch(0, 1, position=(position := Position()))
    assert position.rate == used[-1] > subject.rate


def test_a_loss_that_is_not_finite_names_its_stitch():
    position = Position()
    for step, loss in enumerate((1.0, float("nan"), float("inf"))):
        position.add(step, 10 + step, torch.tensor(loss), rate=1.0)
    with pytest.raises(InputError, match="the loss is nan at step 1 with route 11 on rank 0"):
        position.log()


@pytest.mark.parametrize("batches", mostly_full([6, 8], quick=[8]))
def test_every_batch_of_an_epoch_is_used(batches, monkeypatch):
    """The last step takes the rest, divided by its own number, as in timm: its gradient is the mean over them."""
    subject = trainer("vit", {"grad_accum_steps": 3, "sched": "none", "opt": "sgd"}, scaled=False)
    del subject.loader[batches:]
    means, routes, found = [], [], []
    inner, compute = subject._update, subject.task.forward

    def forward(images, labels, *route):
        found.append(compute(images, labels, *route)["loss"])
        routes.append((images, labels, route))
        return {"loss": found[-1]}

    def update():
        task, gradients = subject.task, [p.grad.clone() for p in subject.task.parameters() if p.grad is not None]
        weights = [p for p in task.parameters() if p.grad is not None]
        mean = sum(compute(images, labels, *route)["loss"] for images, labels, route in routes) / len(routes)
        for one, other in zip(gradients, torch.autograd.grad(mean, weights), strict=True):
            torch.testing.assert_close(one, other)
        means.append(mean.item())
        routes.clear()
        inner()

    monkeypatch.setattr(subject.task, "forward", forward)
    monkeypatch.setattr(subject, "_update", update)
    mean = subject.train_epoch(0, 2)
    assert len(found) == batches
    assert len(means) == subject.updates_per_epoch == -(-batches // 3)
    assert mean == pytest.approx(sum(means) / len(means))
    subject.train_epoch(1, 2)
    assert len(found) == 2 * batches


def test_data_that_end_too_soon_are_named():
    """As those of a stream with fewer images than it says."""
    subject = trainer("vit", {}, scaled=False)
    subject.loader = type("Short", (type(subject.loader),), {"__iter__": lambda loader: iter(loader[:3])})(
        subject.loader
    )
    subject.loader.dataset = subject.loader.sampler = None
    with pytest.raises(InputError, match="the training data end before the 8 batches of an epoch"):
        subject.train_epoch(0, 1)
