"""What ranks with their own stitches exchange: it equals torch's DistributedDataParallel, in fewer bytes."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from stitchkit.distributed import World, gather_over_ranks
from stitchkit.engine.epochs import check_finite
from stitchkit.engine.gradients import GradientReducer
from stitchkit.engine.loop import Trainer
from stitchkit.engine.settings import EngineSettings
from stitchkit.model.snnet import SNNet
from stitchkit.settings.by_name import make_recipe
from stitchkit.training.network import place_network
from stitchkit.training.objective import LabelLoss, Objective, Term
from stitchkit.training.preserve import freeze_anchors
from stitchkit.training.task import StitchTask
from tests.distributed.ranks import in_two_processes, run_on_two_ranks
from tests.support import FLAGS, family_snnet, mostly_full, pico_images, write_config

ROUTES = [(0, 3), (4, 2), (1, 1)]
"""What two ranks draw in three steps; frozen anchors are stitched everywhere."""
SETTINGS = {
    "plain": {},
    "own buffers": {"no_ddp_bb": True},
    "channels last": {"channels_last": True},
    "low precision": {"model_dtype": "bfloat16"},
    "compiled": {"torchcompile": "eager"},
    "checkpointed": {"grad_checkpointing": True},
    "frozen anchors": {"fulltune": False},
}


def place(model, recipe, world):
    if recipe.model.grad_checkpointing:
        model.set_grad_checkpointing()
    if not recipe.stitch.fulltune:
        freeze_anchors(model)
    place_network(model, recipe, world)


def one_step(task, world, cfg_id, reducer):
    """A step of two batches: gradients, then buffers."""
    task.zero_grad()
    if reducer is not None:
        reducer.broadcast_buffers()
    for number in range(2):
        x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(10 * world.rank + number))
        x = x.to(next(task.parameters()).dtype)
        with task.no_sync() if number == 0 else torch.enable_grad():
            task(x, torch.tensor([0, 3]), cfg_id)["loss"].backward()
    if reducer is not None:
        reducer.reduce()
    network = task.get_trainable_module()
    found = {name.removeprefix("module."): p.grad for name, p in network.named_parameters()}
    return found, {name.removeprefix("module."): b.clone() for name, b in network.named_buffers()}


def train_in_both_ways(rank, folder, names):
    """A rank of two: the same steps with torch's wrapper and with ours."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    world = SimpleNamespace(rank=rank, size=2, device=torch.device("cpu"))
    for name in names:
        recipe = make_recipe({"stitch_config": "x"} | SETTINGS[name])
        found = []
        for ours in (True, False):
            model = family_snnet("resnet").train()
            with torch.no_grad():
                # The ranks differ until they agree on the first; torch does not change buffers that it never sends.
                for tensor in [*model.parameters(), *([] if recipe.distributed.no_ddp_bb else model.buffers())]:
                    tensor += rank
            place(model, recipe, world)
            task, reducer = StitchTask(model, Objective(Term(LabelLoss(nn.CrossEntropyLoss())))), None
            if ours:
                reducer = GradientReducer(model, buffers=not recipe.distributed.no_ddp_bb)
            else:
                bb = {"broadcast_buffers": False} if recipe.distributed.no_ddp_bb else {}
                task.prepare_distributed(find_unused_parameters=True, **bb)
            start = {key: value.clone() for key, value in model.state_dict().items()}
            routes = [pair[rank] if recipe.stitch.fulltune else 2 + pair[rank] for pair in ROUTES]
            found.append([start] + [one_step(task, world, cfg_id, reducer) for cfg_id in routes])
        torch.save(found, f"{folder}/{name}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory):
    """Gives what each rank has after the steps of a setting."""
    folder = tmp_path_factory.mktemp("gradients")

    def of(name):
        if not (folder / f"{name}-0.pt").exists():
            # The compiler alone takes longer to import than all else takes.
            in_two_processes(train_in_both_ways, str(folder), [name] if name == "compiled" else QUICK)
        return [torch.load(folder / f"{name}-{rank}.pt") for rank in (0, 1)]

    return of


QUICK = [name for name in SETTINGS if name != "compiled"]


@pytest.mark.parametrize("name", mostly_full(SETTINGS, quick=QUICK))
def test_the_exchange_equals_that_of_torch(name, exchanged):
    """Parameters and buffers at the start; then gradients, those that are None, and statistics of each step."""
    for ours, reference in exchanged(name):
        torch.testing.assert_close(ours[0], reference[0], rtol=0, atol=0)
        for (gradients, buffers), (wanted, wanted_buffers) in zip(ours[1:], reference[1:], strict=True):
            assert [key for key in wanted if wanted[key] is None] == [key for key in wanted if gradients[key] is None]
            given = [key for key in wanted if wanted[key] is not None]
            assert 0 < len(given) < len(wanted)
            for key in given:
                torch.testing.assert_close(gradients[key], wanted[key])
                assert gradients[key].stride() == wanted[key].stride()
            torch.testing.assert_close(buffers, wanted_buffers)


@pytest.mark.parametrize("name", mostly_full(SETTINGS, quick=QUICK))
def test_ranks_end_a_step_with_the_same_gradients(name, exchanged):
    (one, _), (other, _) = exchanged(name)
    for (gradients, _), (others, _) in zip(one[1:], other[1:], strict=True):
        for key in gradients:
            assert (gradients[key] is None) == (others[key] is None)
            assert gradients[key] is None or torch.equal(gradients[key], others[key])


def overflow_on_one_rank(rank, folder):
    """A rank of two whose float16 gradients overflow in the second step, on one rank only."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    model = family_snnet("vit").train()
    task = StitchTask(model, Objective(Term(LabelLoss(nn.CrossEntropyLoss()))))
    scaler, optimizer = torch.amp.GradScaler("cpu"), torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(
        task=task, loader=None, optimizer=optimizer, settings=EngineSettings(seed=0, batch_size=2, clip_grad=1.0),
        world=World(rank, 2, torch.device("cpu")), folder=None, reducer=GradientReducer(model),
    )  # fmt: skip
    trainer.scaler = scaler
    found = []
    for cfg_id, factor in ((4, 1.0), (2, float("inf") if rank else 1.0), (5, 1.0)):
        optimizer.zero_grad()
        scaler.scale(factor * task(pico_images(), torch.tensor([0, 3]), cfg_id)["loss"]).backward()
        trainer._update()
        weights = torch.cat([parameter.detach().reshape(-1).clone() for parameter in model.parameters()])
        found.append((weights, scaler.state_dict()["scale"]))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_an_overflow_on_one_rank_is_one_on_all(tmp_path):
    in_two_processes(overflow_on_one_rank, str(tmp_path))
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for (weights, scale), (others, other_scale) in zip(one, other, strict=True):
        assert torch.equal(weights, others)
        assert scale == other_scale
    assert torch.equal(one[0][0], one[1][0]), "the step is left out"
    assert not torch.equal(one[1][0], one[2][0])
    assert one[1][1] == one[0][1] / 2


def _check_equal(trainer, epoch, losses=(), original=check_finite):
    original(trainer, epoch, losses)
    network = trainer.task.get_trainable_module()
    assert isinstance(network, SNNet) == (trainer.reducer is not None) == trainer.task.sampler.shared
    ema = trainer.task.get_trainable_module(ema=True)
    for module in (network, ema) if ema is not None else (network,):
        for parameter in module.parameters():
            one, other = gather_over_ranks(parameter.detach())
            assert torch.equal(one, other)


BETWEEN = {
    "low precision": ["--amp", "--model-ema", "--clip-grad", "1"],
    "accumulated": ["--grad-accum-steps", "2", "--grad-checkpointing", "--clip-grad", "0.1", "--clip-mode", "agc"],
    "frozen anchors": ["--no-fulltune", "--torchcompile", "eager", "--opt", "sgd", "--no-ddp-bb"],
    "rates of layers": ["--opt", "lookahead_adamw", "--layer-decay", "0.8", "--drop-path", "0.2"],
}
"""What may be between the gradients and the weights."""


@pytest.mark.full
@pytest.mark.parametrize("name", BETWEEN)
def test_ranks_stay_equal_through_a_training(name, images, tmp_path):
    """After an epoch."""
    config = write_config(tmp_path / "pico.json")
    common = ["train", images, "--stitch_config", config, *FLAGS, *BETWEEN[name], "--epochs", "1", "--output", tmp_path]
    commands = [[*common, "--sampling", way, "--experiment", way] for way in ("shared", "per_rank")]
    run_on_two_ranks(commands, replace={"stitchkit.training.train.check_finite": _check_equal})
