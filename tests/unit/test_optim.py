"""Learning rate, optimizer, schedule, precision."""

import pytest
import torch

from stitchkit.config import StitchConfig
from stitchkit.errors import InputError
from stitchkit.train.flags import make_recipe
from stitchkit.train.optim import create_optimizer, create_precision, create_schedule, learning_rate
from tests.support import ROOT, pico_snnet


def optim(**settings):
    return make_recipe(settings).optim


def test_learning_rates_scale_as_in_timm():
    assert learning_rate(optim(lr=0.3), 4096) == 0.3
    assert learning_rate(optim(lr_base=0.1, opt="sgd"), 1024) == pytest.approx(0.4)
    assert learning_rate(optim(lr_base=0.1, opt="adamw"), 1024) == pytest.approx(0.2)
    assert learning_rate(optim(lr_base=0.1, opt="adamw", lr_base_scale="linear"), 1024) == pytest.approx(0.4)


def test_the_published_deit_learning_rate():
    """5e-5 for 512 images; 8 GPUs with 128 images each take twice that."""
    recipe = make_recipe(StitchConfig.load(ROOT / "configs/deit_ti_s_b.json").recipe)
    assert learning_rate(recipe.optim, 8 * recipe.data.batch_size) == pytest.approx(1e-4)


def test_biases_norms_and_vectors_do_not_decay():
    model = pico_snnet()
    optimizer = create_optimizer(model, optim(opt="adamw", weight_decay=0.1), lr=1e-3)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert decays[id(parameter)] == (0 if parameter.ndim <= 1 or name.endswith(".bias") else 0.1), name


def test_settings_reach_the_optimizer():
    optimizer = create_optimizer(pico_snnet(), optim(opt="adamw", opt_eps=1e-4, opt_betas=[0.8, 0.9]), lr=1e-3)
    assert optimizer.defaults["eps"] == 1e-4
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    with pytest.raises(InputError, match="cannot make optimizer 'nonsense'"):
        create_optimizer(pico_snnet(), optim(opt="nonsense"), lr=1e-3)


def rates(**settings):
    """The learning rate of each epoch."""
    recipe = make_recipe({"epochs": 6, "lr": 1.0, "warmup_epochs": 2, "warmup_lr": 0.0, "min_lr": 0.1} | settings)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, epochs = create_schedule(recipe, optimizer, updates_per_epoch=10)
    found = []
    for epoch in range(epochs):
        if schedule is not None:
            schedule.step(epoch)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_schedules():
    cosine = rates(sched="cosine")
    assert len(cosine) == 6
    assert cosine[0] == 0.0
    assert cosine[2] == max(cosine)
    assert min(cosine[2:]) >= 0.1
    assert len(rates(sched="cosine", cooldown_epochs=3)) == 9
    assert rates(sched="none") == [1.0] * 6
    with pytest.raises(InputError, match="did you mean 'cosine'"):
        rates(sched="cosin")


def test_precision():
    autocast, scaler = create_precision(optim(amp=True), torch.device("cpu"))
    assert scaler is None
    with autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    autocast, scaler = create_precision(optim(), torch.device("cpu"))
    with autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
