"""Laws 8 and 9 for each sampler."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from stitchkit.cli import main
from stitchkit.engine.gradients import GradientReducer
from stitchkit.measure.profile import Profiler
from stitchkit.settings.stitch_recipe import StitchRecipe
from stitchkit.training.samplers import SAMPLERS, create_sampler
from stitchkit.training.task import StitchTask
from tests.distributed.forks import end, kill_once_there
from tests.distributed.ranks import in_two_processes, run_on_two_ranks
from tests.distributed.subjects import BUSY, equal
from tests.support import FLAGS, mostly_full, pico_snnet, write_config

STEPS = (3, 7)
WIDE = 1e-4
"""GFLOPs of a bin, which then has several of the pico routes to choose from."""
STATES = ("state_dict", "state_dict_ema", "optimizer", "epoch")


def content(folder):
    return torch.load(folder / "last.pth.tar", weights_only=True)


def assert_same_end(one, other):
    first, second = content(one), content(other)
    for name in STATES:
        assert (name in first) == (name in second), name
        assert name not in first or equal(first[name], second[name]), name
    assert (one / "losses.csv").read_text() == (other / "losses.csv").read_text()


def command(images, folder, name, *flags):
    config = write_config(folder / "pico.json")
    common = [images, "--stitch_config", config, *FLAGS, "--output", folder, "--sampler", name]
    common += ["--flops-gap", WIDE] if "flops_gap" in SAMPLERS[name].options else []
    return ["train", *map(str, [*common, *flags])]


@pytest.mark.parametrize("name", mostly_full(SAMPLERS, quick=["cost_bins"]))
def test_law_8_each_sampler_resumes(name, images, tmp_path):
    """From the end of an epoch and from within one."""
    busy = [*BUSY, "--checkpoint-interval", "3", "--log-interval", "3"]
    assert main([*command(images, tmp_path, name, *busy), "--experiment", "whole"]) == 0
    within = torch.load(tmp_path / "whole/previous.pth.tar", weights_only=True)
    assert within["within"]["ranks"][0]["position"]["done"] == 6
    for file in ("checkpoint-0", "previous"):
        resume = ["--experiment", file, "--resume", str(tmp_path / f"whole/{file}.pth.tar")]
        assert main([*command(images, tmp_path, name, *busy), *resume]) == 0
        assert equal(content(tmp_path / "whole")["state_dict"], content(tmp_path / file)["state_dict"])


@pytest.mark.full
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("way", ["per_rank", "shared"])
def test_law_8_each_sampler_killed_within_an_epoch(name, way, images, tmp_path):
    """By `kill -9` on two ranks."""
    flags = ["--sampling", way, "--epochs", "3", "--checkpoint-interval", "1", "--resume", "auto", *BUSY]
    run_on_two_ranks([command(images, tmp_path, name, *flags, "--experiment", "whole")])
    killed = command(images, tmp_path, name, *flags, "--experiment", "killed")
    ends = end(kill_once_there(killed, tmp_path / "killed/previous.pth.tar", ranks=2))
    assert ends == [-9, -9]
    run_on_two_ranks([killed])
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


def test_a_checkpoint_of_another_sampler_is_named(images, tmp_path, capsys):
    assert main([*command(images, tmp_path, "cost_bins"), "--epochs", "1"]) == 0
    capsys.readouterr()
    resume = ["--resume", str(tmp_path / "pico/last.pth.tar"), "--epochs", "2"]
    assert main([*command(images, tmp_path, "uniform"), *resume]) == 2
    assert "was trained with --sampler cost_bins, not uniform; use the same, or" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (
            {"sampler": "sandwich"},
            "with --sampler sandwich, which was removed (studies/samplers has it); start",
        ),
        (
            {"focus": 2, "focus_images": 40},
            "with --focus 2, which was removed (studies/evidence has it); start",
        ),
    ],
)
def test_a_checkpoint_of_what_was_removed_is_evaluated_but_not_resumed(header, said, images, tmp_path, capsys):
    assert main([*command(images, tmp_path, "cost_bins"), "--epochs", "1"]) == 0
    last = tmp_path / "pico/last.pth.tar"
    old = {**torch.load(last, weights_only=True), **header, "task": {"left": torch.ones(3, dtype=torch.bool)}}
    torch.save(old, last)
    capsys.readouterr()
    resume = [*command(images, tmp_path, "cost_bins"), "--resume", str(last)]
    assert main([*resume, "--epochs", "2"]) == 2
    assert said in capsys.readouterr().err
    assert main([*resume, "--eval", "--eval-stitches", "0"]) == 0


@pytest.mark.full
@pytest.mark.parametrize("name", SAMPLERS)
def test_law_9_two_ranks_equal_one_with_twice_the_batch(name, images, tmp_path):
    exact = ["--no-aug", "--smoothing", "0", "--sampling", "shared", "--opt", "sgd", "--lr", "0.05", "--sched", "none"]
    assert main([*command(images, tmp_path, name, *exact, "-b", "16"), "--experiment", "one"]) == 0
    run_on_two_ranks([[*command(images, tmp_path, name, *exact, "-b", "8"), "--experiment", "two"]])
    one, two = (content(tmp_path / count) for count in ("one", "two"))
    for key, value in one["state_dict"].items():
        torch.testing.assert_close(value, two["state_dict"][key], rtol=1e-4, atol=1e-5)


def make_task(name, way="per_rank"):
    torch.set_num_threads(1)
    model = pico_snnet().train()
    costs = Profiler(model)
    settings = StitchRecipe(sampler=name, sampling=way, flops_gap=WIDE)
    routes, anchors = model.trainable_stitches(), range(model.space.num_anchors)
    sampler = create_sampler(routes, lambda cfg_id: costs.cost(cfg_id).flops, settings, 1, anchors)
    return StitchTask(model, nn.CrossEntropyLoss(), sampler=sampler, settings=settings)


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
