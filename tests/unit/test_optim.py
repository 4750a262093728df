"""Learning rate, optimizer, schedule, precision."""

import copy

import pytest
import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers

import stitchkit
from stitchkit.engine.optimizers import load_optimizer
from stitchkit.engine.settings import EngineSettings
from stitchkit.errors import InputError
from stitchkit.settings.by_name import make_recipe
from stitchkit.settings.stitch_config import StitchConfig
from stitchkit.training.data import weights_dtype
from stitchkit.training.optim import create_optimizer, create_schedule, learning_rate
from tests.support import ROOT, family_snnet, mostly_full, pico_config, pico_images, pico_snnet


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
    with pytest.raises(InputError, match="cannot create optimizer 'nonsense'"):
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


def test_precision():
    autocast, scaler = EngineSettings(seed=0, batch_size=1, amp=True).precision(torch.device("cpu"))
    assert scaler is None
    with autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    autocast, scaler = EngineSettings(seed=0, batch_size=1).precision(torch.device("cpu"))
    with autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def by_name(model, optimizer):
    """The parameter group of each parameter."""
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    return {name: groups[id(parameter)] for name, parameter in model.named_parameters() if id(parameter) in groups}


def test_the_optimizer_is_timms_own_without_scales():
    """Bit by bit what it was before anchors and stitching layers could learn at their own rates."""
    model = pico_snnet()
    settings = {"opt": "adamw", "weight_decay": 0.05}
    ours = create_optimizer(model, optim(**settings), lr=1e-3).state_dict()
    assert ours == create_optimizer_v2(model, **settings, lr=1e-3, fused=True).state_dict()
    assert not any("lr_scale" in group for group in ours["param_groups"])


def gradients(model, cfg_ids):
    """Those of each route in turn; what a route does not use has none."""
    found = []
    for cfg_id in cfg_ids:
        x = pico_images(size=model.input_size[1]).to(next(model.parameters()).dtype)
        model.zero_grad()
        model.train()(x, cfg_id).square().mean().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    return found


def steps(model, optimizer, found):
    """Update by these gradients; the parameters that come out."""
    for step in found:
        for parameter, gradient in zip(model.parameters(), step, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("opt", mostly_full(["adam", "adamw", "lookahead_adamw", "sgd"], quick=["adamw", "sgd"]))
@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_fused_updates_equal_the_others(opt, family):
    """Whichever routes come first, at rates of their own, and with convolutions of 1 x 1 whose channels are last."""
    found = []
    for kwargs in (None, {"fused": False}):
        model = family_snnet(family).to(memory_format=torch.channels_last)
        settings = optim(opt=opt, weight_decay=0.05, stitch_lr_scale=0.5, opt_kwargs=kwargs)
        optimizer = create_optimizer(model, settings, lr=1e-3)
        assert all(bool(group["fused"]) == (kwargs is None and opt != "sgd") for group in optimizer.param_groups)
        found.append(steps(model, optimizer, gradients(model, [0, 4, 1, 4])))
    torch.testing.assert_close(*found)


def test_fused_updates_in_low_precision():
    found = []
    for kwargs in (None, {"fused": False}):
        model = pico_snnet().bfloat16()
        optimizer = create_optimizer(model, optim(opt="adamw", opt_kwargs=kwargs), lr=1e-3)
        found.append(steps(model, optimizer, gradients(model, [0, 4, 1, 4])))
    torch.testing.assert_close(*found)


def test_other_ways_to_update_can_be_asked_for():
    group = create_optimizer(pico_snnet(), optim(opt="adamw", opt_kwargs={"foreach": True}), lr=1).param_groups[0]
    assert (group["foreach"], group["fused"]) == (True, None)
    assert "fused" not in create_optimizer(pico_snnet(), optim(opt="lamb"), lr=1).param_groups[0]


@pytest.mark.parametrize("opt", ["adamw", "lookahead_adamw"])
@pytest.mark.parametrize("before", [None, {"fused": False}], ids=["fused", "unfused"])
def test_a_state_continues_in_the_way_asked_for_now(opt, before):
    """A checkpoint says how far an optimizer is, not how it computes; those of unfused runs are loaded too."""
    model = pico_snnet()
    optimizer = create_optimizer(model, optim(opt=opt, opt_kwargs=before), lr=1e-3)
    found = gradients(model, [0, 4, 4, 2])
    steps(model, optimizer, found[:2])
    weights, state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    unbroken = steps(model, optimizer, found[2:])
    for now in (None, {"fused": False}):
        model.load_state_dict(weights)
        again = create_optimizer(model, optim(opt=opt, opt_kwargs=now), lr=1e-3)
        load_optimizer(again, copy.deepcopy(state))
        assert {group["fused"] for group in again.param_groups} == {not now}
        torch.testing.assert_close(steps(model, again, found[2:]), unbroken)


def test_the_state_of_another_network_does_not_fit():
    optimizer = create_optimizer(pico_snnet(), optim(opt="adamw", weight_decay=0.1), lr=1e-3)
    for settings in (optim(opt="adamw", stitch_lr_scale=0.5, weight_decay=0.1), optim(opt="adamw", weight_decay=0)):
        other = create_optimizer(pico_snnet(), settings, lr=1e-3)
        for one, two in ((optimizer, other), (other, optimizer)):
            with pytest.raises(InputError, match=r"optimizer.param_groups is .*, not a list of"):
                load_optimizer(one, two.state_dict())


@pytest.mark.parametrize("rank", [0, 2])
def test_anchors_and_stitching_layers_learn_at_their_own_rates(rank):
    """Updates of anchors are new weights, and learn as stitching layers do."""
    model = pico_snnet(anchor_lora_r=rank)
    assert any(name.startswith("updates.") for name, _ in model.named_parameters()) == bool(rank)
    plain = by_name(model, create_optimizer(model, optim(weight_decay=0.05), lr=0.1))
    scaled = by_name(
        model, create_optimizer(model, optim(weight_decay=0.05, base_lr_scale=0.1, stitch_lr_scale=2.0), lr=0.1)
    )
    assert scaled.keys() == plain.keys() == dict(model.named_parameters()).keys()
    for name, group in scaled.items():
        assert group["lr_scale"] == (0.1 if name.startswith("anchors.") else 2.0)
        assert group["weight_decay"] == plain[name]["weight_decay"], "what decays does not change"
    assert {group["weight_decay"] for group in scaled.values()} == {0, 0.05}


def test_a_head_for_dense_prediction_learns_at_the_full_rate():
    """Layers that only levels have learn as stitching layers do."""
    dense = {"task": "segmentation", "head": "setr", "levels": [0, 2]}
    model = stitchkit.create_snnet(pico_config(), checkpoints=False, dense=dense, num_classes=5)
    scaled = by_name(model, create_optimizer(model, optim(base_lr_scale=0.1, stitch_lr_scale=2.0), lr=0.1))
    expected = {"anchors": 0.1, "stitch_layers": 2.0, "level_layers": 2.0, "head": 1.0}
    assert scaled.keys() == dict(model.named_parameters()).keys()
    assert {name.split(".")[0]: group["lr_scale"] for name, group in scaled.items()} == expected


def test_layers_decay_in_each_anchor_as_in_timm():
    model = pico_snnet()
    settings = optim(weight_decay=0.05, layer_decay=0.5, layer_decay_min_scale=0.2, base_lr_scale=0.1)
    scales = {
        name: group["lr_scale"] for name, group in by_name(model, create_optimizer(model, settings, lr=1)).items()
    }
    for number, anchor in enumerate(model.anchors):
        expected = by_name(anchor, create_optimizer(anchor, optim(layer_decay=0.5, layer_decay_min_scale=0.2), lr=1))
        for name, group in expected.items():
            assert scales[f"anchors.{number}.{name}"] == pytest.approx(0.1 * group["lr_scale"])
    assert scales["anchors.0.head.weight"] == 0.1
    assert scales["anchors.0.blocks.2.norm1.weight"] > scales["anchors.0.blocks.1.norm1.weight"]
    assert scales["anchors.0.pos_embed"] == pytest.approx(0.1 * 0.2), "not below the least scale"
    assert {scale for name, scale in scales.items() if name.startswith("stitch_layers.")} == {1.0}


def test_layers_far_from_the_head_can_be_frozen():
    model = pico_snnet()
    settings = optim(layer_decay=0.5, layer_decay_no_opt_scale=0.3)
    trained = by_name(model, create_optimizer(model, settings, lr=1))
    assert "anchors.1.pos_embed" not in trained
    assert not model.anchors[1].pos_embed.requires_grad
    assert "anchors.1.blocks.2.norm1.weight" in trained
    assert any(name.startswith("stitch_layers.") for name in trained)


@pytest.mark.parametrize("sched", ["cosine", "none"])
def test_scales_hold_in_every_epoch_and_after_resuming(sched):
    """Warm-up, minimum and `none` alike; nothing is scaled twice."""
    found = {}
    for scale in (1.0, 0.1):
        settings = {"epochs": 5, "lr": 1.0, "warmup_epochs": 2, "warmup_lr": 0.5, "min_lr": 0.2, "sched": sched}
        recipe = make_recipe(settings | {"base_lr_scale": scale, "stitch_lr_scale": 0.5})
        optimizer = create_optimizer(pico_snnet(), recipe.optim, lr=1.0)
        schedule, _ = create_schedule(recipe, optimizer, updates_per_epoch=1)
        found[scale] = []
        for epoch in range(5):
            if epoch == 3:
                again = create_optimizer(pico_snnet(), recipe.optim, lr=1.0)
                schedule, _ = create_schedule(recipe, again, updates_per_epoch=1)
                again.load_state_dict(optimizer.state_dict())
                optimizer = again
            if schedule is not None:
                schedule.step(epoch)
            rates = {group["lr"] for group in optimizer.param_groups if group["lr_scale"] == scale}
            found[scale] += rates
    assert len(found[1.0]) == 5
    assert found[0.1] == pytest.approx([0.1 * rate for rate in found[1.0]])
    assert found[1.0][0] == (1.0 if sched == "none" else 0.5)
    assert (min(found[1.0][2:]) < 1.0) == (sched == "cosine")


def test_further_arguments_of_the_optimizer():
    optimizer = create_optimizer(pico_snnet(), optim(opt_kwargs={"nesterov": False, "dampening": 0.25}), lr=1e-3)
    assert (optimizer.defaults["nesterov"], optimizer.defaults["dampening"]) == (False, 0.25)
    with pytest.raises(InputError, match=r"cannot create optimizer 'sgd'.*nonsense"):
        create_optimizer(pico_snnet(), optim(opt_kwargs={"nonsense": 1}), lr=1e-3)


def test_noise_on_the_learning_rate():
    calm = rates(sched="cosine", epochs=10)
    noisy = rates(sched="cosine", epochs=10, lr_noise=[0.4, 0.8], lr_noise_pct=0.3, lr_noise_std=0.5)
    assert noisy[:4] == calm[:4]
    assert noisy[8:] == calm[8:]
    assert all(0 < abs(one / other - 1) < 0.3 for one, other in zip(noisy[4:8], calm[4:8], strict=True))
    assert noisy == rates(sched="cosine", epochs=10, lr_noise=[0.4, 0.8], lr_noise_pct=0.3, lr_noise_std=0.5)
    assert noisy != rates(sched="cosine", epochs=10, lr_noise=[0.4, 0.8], lr_noise_pct=0.3, lr_noise_std=0.5, seed=1)


def test_cycles_of_the_learning_rate():
    found = rates(
        sched="cosine", epochs=4, warmup_epochs=0, lr_cycle_limit=2, lr_cycle_mul=2.0, lr_cycle_decay=0.5, min_lr=0.0
    )
    assert len(found) == 4 + 8
    assert found[0] == 1.0
    assert found[4] == 0.5
    assert found[4] == max(found[4:])


def test_k_decay_and_decay_rate():
    assert rates(sched="cosine", lr_k_decay=2.0)[4] > rates(sched="cosine")[4]
    assert rates(sched="step", decay_epochs=1, warmup_epochs=0, decay_rate=0.5)[:3] == [1.0, 0.5, 0.25]


def test_precision_of_weights_and_images():
    assert weights_dtype(make_recipe({})) == torch.float32
    assert weights_dtype(make_recipe({"model_dtype": "bfloat16"})) == torch.bfloat16


def few_weights():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(64, 2)
    )


def take_steps(model, optimizer, count):
    torch.manual_seed(1)
    for _ in range(count):
        model(torch.randn(4, 3, 6, 6)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


# They run on GPUs only, or need gradients of gradients.
ELSEWHERE = ("bnb", "fused", "adahessian")


def classes_of_optimizers():
    """One name of each class that timm offers: the others of a class set other arguments of it, and no other state."""
    names = [name for name in list_optimizers() if not name.startswith(ELSEWHERE)]
    return list({get_optimizer_info(name).opt_class: name for name in reversed(names)}.values())


QUICK = ["adamw", "sgd", "lamb", "muon", "lookahead_adamw"]


@pytest.mark.parametrize("name", mostly_full(dict.fromkeys([*QUICK, *classes_of_optimizers()]), quick=QUICK))
def test_every_optimizer_resumes_and_refuses_states_of_other_shapes(name):
    """What a fresh one says its state must be is what it has after steps, and asking changes nothing."""
    model = few_weights()
    optimizer = create_optimizer(model, optim(opt=name), lr=1e-3)
    take_steps(model, optimizer, 7)
    state = copy.deepcopy(optimizer.state_dict())
    again = few_weights()
    again.load_state_dict(model.state_dict())
    fresh = create_optimizer(again, optim(opt=name), lr=1e-3)
    load_optimizer(fresh, copy.deepcopy(state))
    for one, other in ((model, optimizer), (again, fresh)):
        take_steps(one, other, 2)
    assert all(
        torch.equal(*pair) for pair in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )
    for number, own in state["state"].items():
        for key, value in own.items():
            if isinstance(value, torch.Tensor) and value.ndim:
                worse = {**state, "state": {**state["state"], number: {**own, key: torch.ones(3, 3, 3)}}}
                with pytest.raises(InputError, match=rf"optimizer.state\[{number}\].{key} is float32 \[3, 3, 3\], not"):
                    load_optimizer(fresh, worse)


def test_resuming_needs_no_memory_for_a_second_network():
    """What the states must be is found one parameter at a time."""
    together = []

    class Noting(torch.optim.AdamW):
        def step(self, closure=None):
            together.append(sum(len(group["params"]) for group in self.param_groups))
            return super().step(closure)

    model = few_weights()
    optimizer = Noting([{"params": layer.parameters()} for layer in model], lr=1e-3)
    take_steps(model, optimizer, 1)
    state, together[:] = copy.deepcopy(optimizer.state_dict()), []
    load_optimizer(optimizer, state)
    assert together == [1] * 6


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_states_that_lie_in_memory_in_other_ways_are_put_right(name):
    """Kernels that take all at once take it that each state lies as its parameter does, and has its own memory."""
    model = few_weights()
    optimizer = create_optimizer(model, optim(opt=name), lr=1e-3)
    take_steps(model, optimizer, 3)
    state = copy.deepcopy(optimizer.state_dict())
    for own in state["state"].values():
        for key, value in own.items():
            if isinstance(value, torch.Tensor) and value.ndim == 2:
                own[key] = value.t().contiguous().t()
    again = few_weights()
    again.load_state_dict(model.state_dict())
    fresh = create_optimizer(again, optim(opt=name), lr=1e-3)
    load_optimizer(fresh, state)
    for one, other in ((model, optimizer), (again, fresh)):
        take_steps(one, other, 2)
    pairs = zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    shared = torch.zeros(4)
    for own in state["state"].values():
        own.update(
            (key, shared) for key, value in own.items() if isinstance(value, torch.Tensor) and value.shape == (4,)
        )
    load_optimizer(fresh, state)
    places = [value.data_ptr() for own in fresh.state.values() for value in own.values() if value is not None]
    assert len(places) == len(set(places))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("maximize", True),
        ("amsgrad", True),
        ("capturable", True),
        ("eps", -1.0),
        ("weight_decay", 7.0),
        ("lr", -1.0),
        ("lr", 1e300),
        ("betas", (1.0, 0.999)),
    ],
)
def test_options_of_another_run_are_refused(option, value):
    """But for those that a schedule moves."""
    optimizer = create_optimizer(few_weights(), optim(opt="adamw"), lr=1e-3)
    state = optimizer.state_dict()
    state["param_groups"][0]["lr"] = 5
    load_optimizer(optimizer, state)
    state["param_groups"][0][option] = value
    with pytest.raises(InputError, match=rf"param_groups\[0\].{option}(\[0\])? is"):
        load_optimizer(optimizer, state)
