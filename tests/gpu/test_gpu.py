"""What only a GPU has: its precisions, its kernels, its memory and nccl. `make bench-gpu` runs these tests.

With GPU_TESTS_ON_CPU=1 they run on the CPU as far as it goes, so that a machine without a GPU shows that they run.
"""

import os

import pytest
import torch
import torch.distributed as dist

import stitchkit
from stitchkit.distributed import World, gather_over_ranks, init_world, sum_over_ranks
from stitchkit.engine.gradients import GradientReducer
from stitchkit.model.onepass import LiveBytes
from stitchkit.settings.by_name import make_recipe
from stitchkit.training.network import place_network
from tests.support import SPACES, family_snnet, pico_images, pico_snnet, write_config

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_GPU and "GPU_TESTS_ON_CPU" not in os.environ, reason="there is no GPU"),
]
SETTINGS = {
    "device": DEVICE, "pretrained": False, "epochs": 2, "batch_size": 8, "workers": 0, "opt": "adamw", "lr": 1e-2,
    "warmup_epochs": 0, "hflip": 0.0, "ls_init": False, "distillation_type": "none",
}  # fmt: skip


@pytest.fixture
def world():
    """This process alone, in a group as every run has."""
    yield init_world(DEVICE)
    dist.destroy_process_group()


def train(images, tmp_path, name, **settings):
    """The summary of a training of pico anchors, the content of its checkpoint, and the ledger of its stitches."""
    config = write_config(tmp_path / "config.json")
    common = {**SETTINGS, "stitch_config": config, "output": tmp_path}
    run = stitchkit.train(images, **common, experiment=name, **settings)
    low = {key: value for key, value in settings.items() if key.startswith("amp")}
    rows = stitchkit.evaluate(images, **common, experiment=f"{name}-eval", resume=run.checkpoint, **low)
    return run.summary, torch.load(run.checkpoint, weights_only=True), rows


def placed(model, **settings):
    place_network(model, make_recipe(settings), World(0, 1, torch.device(DEVICE)))
    return model


def losses_of_steps(model, images, steps=3):
    """The losses of some steps of a stitch."""
    optimizer, labels = torch.optim.SGD(model.parameters(), lr=1e-3), torch.arange(len(images), device=DEVICE) % 4
    model.train()
    losses = []
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(images, len(model.space) // 2), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_one_rank_exchanges_sums_and_gradients(world):
    assert world.size == 1
    assert world.device.type == DEVICE
    if HAS_GPU:
        backend = dist.group.WORLD._get_backend(torch.device(DEVICE))
        assert type(backend).__name__ == "ProcessGroupNCCL"
    numbers = torch.arange(4.0, device=world.device)
    assert sum_over_ranks(numbers.clone()).tolist() == [0, 1, 2, 3]
    assert gather_over_ranks(numbers.clone()).tolist() == [[0, 1, 2, 3]]
    model = placed(pico_snnet()).train()
    model(pico_images().to(DEVICE), 4).sum().backward()
    before = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    assert 0 < len(before) < len([*model.parameters()])
    GradientReducer(model).reduce()
    after = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_float16_scales_its_loss_and_learns(images, tmp_path):
    summary, content, rows = train(images, tmp_path, "float16", amp=True, amp_dtype="float16")
    assert summary[-1]["train_loss"] < summary[0]["train_loss"]
    assert ("amp_scaler" in content) is HAS_GPU  # on a CPU it is bfloat16, which needs none
    if HAS_GPU:
        assert content["amp_scaler"]["scale"] > 1
    assert all(row["images"] == 20 for row in rows)


def test_bfloat16_learns_as_float32_does(images, tmp_path):
    low, content, rows = train(images, tmp_path, "bfloat16", amp=True, amp_dtype="bfloat16")
    full, _, _ = train(images, tmp_path, "float32")
    assert "amp_scaler" not in content
    assert [epoch["train_loss"] for epoch in low] == pytest.approx([epoch["train_loss"] for epoch in full], rel=0.1)
    assert len(rows) == len(pico_snnet().space)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # while compiling
def test_compiled_blocks_give_the_same_losses():
    backend = "inductor" if HAS_GPU else "aot_eager"  # inductor on a CPU needs g++
    images = pico_images(8).to(DEVICE)
    plain = losses_of_steps(placed(pico_snnet()), images)
    compiled = losses_of_steps(placed(pico_snnet(), torchcompile=backend), images)
    assert compiled == pytest.approx(plain, rel=1e-3)
    assert plain[-1] < plain[0]


@pytest.mark.parametrize("family", ["resnet", "resnet to swin"])
def test_channels_last_gives_the_same_logits(family, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # its rounding depends on the kernel
    plain, last = placed(family_snnet(family)), placed(family_snnet(family), channels_last=True)
    images = pico_images(2, plain.input_size[1]).to(DEVICE)
    with torch.no_grad():
        wanted = plain.forward_all(images)
        found = last.forward_all(images.contiguous(memory_format=torch.channels_last))
    assert any(each.is_contiguous(memory_format=torch.channels_last) for each in last.parameters() if each.dim() == 4)
    for cfg_id in wanted:
        torch.testing.assert_close(found[cfg_id], wanted[cfg_id], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_one_pass_gives_the_logits_of_one_by_one(precision):
    if precision == "float16" and not HAS_GPU:
        pytest.skip("CPUs use bfloat16 in place of float16")
    model, images = placed(pico_snnet()), pico_images(6).to(DEVICE)
    low = {"rtol": 0.05, "atol": 0.05}
    with torch.no_grad(), torch.autocast(DEVICE, getattr(torch, precision), enabled=precision != "float32"):
        found = model.forward_all(images)
        for cfg_id, logits in found.items():
            tolerance = {"rtol": 1e-4, "atol": 1e-4} if precision == "float32" else low
            torch.testing.assert_close(logits, model(images, cfg_id), **tolerance)


@torch.no_grad()
def test_one_pass_keeps_to_its_memory():
    model, images = placed(stitchkit.create_snnet(SPACES["vit"]).eval()), pico_images(2048).to(DEVICE)
    everything = model.forward_all(images)  # also sets up the kernels' own memory
    needed = peak(lambda: model.forward_all(images))
    budget = needed // 4
    assert budget > 2**23, "the slack for blocks of the allocator would hide an error"
    model.forward_all(images, memory=budget)  # measures an image once
    kept = sum(logits.nbytes for logits in everything.values())
    assert peak(lambda: model.forward_all(images, memory=budget)) < budget + kept + 2**21
    assert budget + kept < needed
    few = model.forward_all(images, memory=budget)
    for cfg_id, logits in everything.items():
        torch.testing.assert_close(few[cfg_id], logits, rtol=1e-4, atol=1e-4)


def peak(work):
    """Bytes that the work allocates at most."""
    if not HAS_GPU:
        with LiveBytes() as live:
            work()
        return live.peak
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - before
