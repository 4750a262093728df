"""Law 9 for each sampler, and checkpoints of others; tests/unit has their law 8: a draw depends on no earlier one."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from stitchkit.cli import main
from stitchkit.engine.gradients import GradientReducer
from stitchkit.measure.profile import Profiler
from stitchkit.settings.stitch_recipe import StitchRecipe
from stitchkit.training.objective import LabelLoss, Objective, Term
from stitchkit.training.preserve import trainable_stitches
from stitchkit.training.samplers import SAMPLERS, create_sampler
from stitchkit.training.task import StitchTask
from tests.distributed.ranks import in_two_processes
from tests.support import FLAGS, pico_snnet, write_config

STEPS = (3, 7)
WIDE = 1e-4
"""GFLOPs of a bin, which then has several of the pico routes to choose from."""


def command(images, folder, name, *flags):
    config = write_config(folder / "pico.json")
    common = [images, "--stitch_config", config, *FLAGS, "--output", folder, "--sampler", name]
    return ["train", *map(str, [*common, *flags])]


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """The checkpoint of a run by `cost_bins`."""
    folder = tmp_path_factory.mktemp("trained")
    assert main(command(images, folder, "cost_bins", "--epochs", "1")) == 0
    return folder / "pico/last.pth.tar"


def test_a_checkpoint_of_another_sampler_is_named(trained, images, tmp_path, capsys):
    resume = ["--resume", trained, "--epochs", "2"]
    assert main(command(images, tmp_path, "uniform", *resume)) == 2
    assert "was trained with --sampler cost_bins, not uniform; use the same, or" in capsys.readouterr().err


def test_a_checkpoint_of_what_was_removed_is_evaluated_but_not_resumed(trained, images, tmp_path, capsys):
    removed = {
        "with --sampler sandwich, which was removed (studies/samplers has it); start": {"sampler": "sandwich"},
        "with --focus 2, which was removed (studies/evidence has it); start": {"focus": 2, "focus_images": 40},
    }
    for line, header in removed.items():
        old = {**torch.load(trained, weights_only=True), **header, "task": {"left": torch.ones(3, dtype=torch.bool)}}
        torch.save(old, tmp_path / "old.pth.tar")
        resume = command(images, tmp_path, "cost_bins", "--resume", tmp_path / "old.pth.tar")
        assert main([*resume, "--epochs", "2"]) == 2
        assert line in capsys.readouterr().err
    assert main([*resume, "--eval", "--eval-stitches", "0"]) == 0


def make_task(name, way="per_rank"):
    torch.set_num_threads(1)
    model = pico_snnet().train()
    costs = Profiler(model)
    settings = StitchRecipe(sampler=name, sampling=way, flops_gap=WIDE)
    routes, anchors = trainable_stitches(model), range(model.space.num_anchors)
    sampler = create_sampler(routes, lambda cfg_id: costs.cost(cfg_id).flops, settings, 1, anchors)
    return StitchTask(model, Objective(Term(LabelLoss(nn.CrossEntropyLoss()))), sampler=sampler)


def one_step(task, step, rank, reducer=None):
    """The route and the gradients of a step on the images of a rank."""
    task.zero_grad()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(10 * step + rank))
    labels = torch.tensor([0, 3])
    (route,) = task.draw(step, rank)
    task(x, labels, route)["loss"].backward()
    if reducer is not None:
        reducer.reduce()
    return route, {name: weight.grad for name, weight in task.network.named_parameters()}


def one_of_two(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    found = {}
    for name in SAMPLERS:
        for way in ("per_rank", "shared"):
            task = make_task(name, way)
            reducer = GradientReducer(task.network)
            found[name, way] = [one_step(task, step, rank, reducer) for step in STEPS]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_law_9_two_ranks_take_the_mean_gradient(tmp_path):
    """Whatever each rank trains."""
    in_two_processes(one_of_two, str(tmp_path))
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert one.keys() == other.keys()
    for (name, way), steps in one.items():
        alone = make_task(name, way)
        for step, (route, gradients), (theirs, others) in zip(STEPS, steps, other[name, way], strict=True):
            assert way != "shared" or route == theirs, "the ranks agree"
            parts = [one_step(alone, step, rank)[1] for rank in (0, 1)]
            for key, gradient in gradients.items():
                used = [part[key] for part in parts if part[key] is not None]
                assert (gradient is None) == (not used), key
                if used:
                    torch.testing.assert_close(gradient, torch.stack(used).sum(0) / 2, rtol=1e-4, atol=1e-6)
                    assert torch.equal(gradient, others[key])
