"""Batch norms on two ranks: what `--dist-bn`, `--no-ddp-bb` and `--split-bn` do to their statistics."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from stitchkit.cli import main
from stitchkit.distributed import World
from stitchkit.engine.epochs import distribute_batch_norms
from stitchkit.engine.settings import EngineSettings
from stitchkit.training.objective import LabelLoss, Objective, Term
from stitchkit.training.task import StitchTask
from tests.distributed.ranks import in_two_processes, run_on_two_ranks
from tests.support import FLAGS, mostly_full, weights

RESNET = ["--model", "resnet18", "--model-kwargs", "layers=(1,1,1,1)", "channels=(8,8,8,8)"]
# The weights stay, so statistics of the first norm are sums over images.
STILL = [*RESNET, *FLAGS[1:], "--no-aug", "--opt", "sgd", "--lr", "0", "--sched", "none", "--img-size", "32"]


def ranks_with_their_own_statistics(rank, folder):
    """A rank whose norms hold its number; what each way makes of them."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    found = {}
    for way in ("reduce", "broadcast", ""):
        task = StitchTask(nn.Sequential(nn.BatchNorm2d(1)), Objective(Term(LabelLoss(nn.CrossEntropyLoss()))))
        task.setup_ema(decay=0.5)
        task.get_trainable_module()[0].running_mean.fill_(rank + 1)
        task.get_trainable_module(ema=True).module[0].running_var.fill_(rank + 3)
        settings, world = EngineSettings(seed=0, batch_size=2, dist_bn=way), World(rank, 2, torch.device("cpu"))
        distribute_batch_norms(SimpleNamespace(task=task, settings=settings, world=world))
        mean = task.get_trainable_module()[0].running_mean.item()
        found[way] = (mean, task.get_trainable_module(ema=True).module[0].running_var.item())
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.full
def test_ranks_agree_on_statistics_in_the_way_asked_for(tmp_path):
    in_two_processes(ranks_with_their_own_statistics, str(tmp_path))
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert one == {"reduce": (1.5, 3.5), "broadcast": (1.0, 3.0), "": (1.0, 3.0)}
    assert other == {"reduce": (1.5, 3.5), "broadcast": (1.0, 3.0), "": (2.0, 4.0)}


@pytest.mark.full
def test_law_9_the_mean_of_two_ranks_is_that_of_twice_the_batch(images, tmp_path):
    """Without the broadcast at each step the ranks' statistics are their own until the epoch ends."""
    common = ["train", images, *STILL, "--output", tmp_path]
    runs = {
        "two": ["--dist-bn", "reduce", "--no-ddp-bb"],
        "broadcast": ["--dist-bn", "reduce"],
        "alone": ["--dist-bn", "", "--no-ddp-bb"],
    }
    run_on_two_ranks([[*common, "-b", "8", *flags, "--experiment", name] for name, flags in runs.items()])
    assert main([*map(str, common), "-b", "16", "--experiment", "one"]) == 0
    found = {name: weights(tmp_path / name / "last.pth.tar")["bn1.running_mean"] for name in ("one", *runs)}
    torch.testing.assert_close(found["two"], found["one"], rtol=1e-4, atol=1e-5)
    for name in ("broadcast", "alone"):
        assert (found[name] - found["one"]).abs().max() > 1e-4


SPLITS = {"resplit": ["--resplit"], "splits": ["--aug-splits", "3", "--jsd-loss"]}


@pytest.mark.parametrize("name", mostly_full(SPLITS, quick=["resplit"]))
def test_law_8_split_batch_norms_resume_and_are_evaluated_without_their_parts(name, images, tmp_path, caplog):
    common = [
        images,
        *RESNET,
        *FLAGS[1:],
        "--split-bn",
        "--reprob",
        "0.6",
        "--aa",
        "rand-m5",
        "--img-size",
        "32",
        *SPLITS[name],
    ]
    common = [*map(str, [*common, "--output", tmp_path])]
    assert main(["train", *common, "--experiment", "whole"]) == 0
    first = str(tmp_path / "whole/checkpoint-0.pth.tar")
    assert main(["train", *common, "--experiment", "resumed", "--resume", first]) == 0
    whole, resumed = (weights(tmp_path / name / "last.pth.tar") for name in ("whole", "resumed"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert not torch.equal(whole["bn1.running_mean"], whole["bn1.aux_bn.0.running_mean"])
    last = str(tmp_path / "whole/last.pth.tar")
    with caplog.at_level("INFO"):
        assert main(["train", *common, "--eval", "--resume", last]) == 0
    assert '"images": 20' in caplog.text
    for extra in (["--eval"], ["--epochs", "1"]):
        plain = [str(images), *RESNET, *FLAGS[1:], "--img-size", "32", "--output", str(tmp_path), *extra]
        assert main(["train", *plain, "--initial-checkpoint", last]) == 0
