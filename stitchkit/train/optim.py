"""Optimizer, learning rate, schedule and mixed precision of a recipe, all of them timm's and torch's."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.scheduler.scheduler_factory import scheduler_kwargs
from timm.utils import NativeScaler
from torch import nn

from stitchkit.errors import InputError, unknown
from stitchkit.model.snnet import SNNet
from stitchkit.settings.recipe import OptimRecipe, Recipe
from stitchkit.train.checkpoint_schema import check, each, either, exactly, fields, like, nothing, number, whole
from stitchkit.train.random_states import random_states, set_random_states

_SLOW = "lookahead_slow_buff"
"""State that timm's Lookahead adds after some steps."""


def learning_rate(optim: OptimRecipe, total_batch: int) -> float:
    """The learning rate: as given, or the base rate scaled by the images of a step, as timm does.

    Args:
        optim: The settings.
        total_batch: Images of one step over all ranks.
    """
    if optim.lr is not None:
        return optim.lr
    ratio = total_batch / optim.lr_base_size
    adaptive = any(part in optim.opt.lower() for part in ("ada", "lamb"))
    if (optim.lr_base_scale or ("sqrt" if adaptive else "linear")) == "sqrt":
        ratio **= 0.5
    return optim.lr_base * ratio


def create_optimizer(model: nn.Module, optim: OptimRecipe, *, lr: float) -> torch.optim.Optimizer:
    """timm's optimizer over the trainable parameters; biases, norms and 1-d parameters do not decay.

    Args:
        model: An SN-Net or a plain model.
        optim: The settings.
        lr: The learning rate; parts of an SN-Net may scale it.

    Raises:
        InputError: If timm does not know the optimizer or refuses its settings.
    """
    options: dict[str, Any] = {
        "opt": optim.opt, "lr": lr, "weight_decay": optim.weight_decay, "momentum": optim.momentum
    }  # fmt: skip
    if optim.opt_eps is not None:
        options["eps"] = optim.opt_eps
    if optim.opt_betas is not None:
        options["betas"] = tuple(optim.opt_betas)
    if isinstance(model, SNNet) and (optim.layer_decay, optim.base_lr_scale, optim.stitch_lr_scale) != (None, 1, 1):
        options["param_group_fn"] = partial(_scaled_groups, optim=optim)
    elif optim.layer_decay is not None:
        options |= _layer_decay(optim)
    try:
        options |= _fused(optim) | (optim.opt_kwargs or {})
        optimizer: torch.optim.Optimizer = create_optimizer_v2(model, **options)
    except Exception as error:  # optimizers of many authors raise many kinds
        raise InputError(
            f"timm cannot make optimizer '{optim.opt}': {error}; see timm.optim.list_optimizers()"
        ) from error
    return optimizer


def _fused(optim: OptimRecipe) -> dict[str, Any]:
    """The argument that updates all parameters in one kernel, for Adam and AdamW; others are left to choose.

    torch's SGD has it too, but fails where a parameter has its first gradient later than others, as in an SN-Net.
    """
    kind = get_optimizer_class(optim.opt.lower().split("_")[-1], bind_defaults=False)
    is_adam = isinstance(kind, type) and issubclass(kind, torch.optim.Adam)
    is_chosen = bool({"fused", "foreach", "differentiable"} & (optim.opt_kwargs or {}).keys())
    return {"fused": True} if is_adam and not is_chosen else {}


def load_optimizer(optimizer: torch.optim.Optimizer, state: Any, *, cycles: bool = False) -> None:
    """Put the state of an optimizer back; how it computes stays as it was made.

    Args:
        optimizer: Made with the same settings, but for `fused` and `foreach`.
        state: Its `state_dict()`, as a file has it.
        cycles: A schedule may have moved momentum and betas, as torch's OneCycleLR and CyclicLR do.

    Raises:
        InputError: If anything in the state does not fit; the optimizer is then unchanged.
    """
    groups, examples = _after_steps(optimizer, cycles=cycles)
    slow = [_SLOW] if hasattr(optimizer, "_base_optimizer") else []
    states = {key: fields(_checked(own), dict.fromkeys(slow, weight)) for key, (own, weight) in examples.items()}
    check(state, {**optimizer.state_dict(), "state": fields({}, states), "param_groups": groups}, "optimizer")
    groups = [dict(group) for group in state["param_groups"]]
    for group, own in zip(groups, optimizer.param_groups, strict=True):
        group.update((key, own[key]) for key in ("fused", "foreach") if key in own)
    # Kernels take it that each state lies in memory as its parameter does, and that no two share it.
    own_memory = {
        key: {name: _as(examples[key][0].get(name, examples[key][1]), value) for name, value in found.items()}
        for key, found in state["state"].items()
    }
    try:
        optimizer.load_state_dict({**state, "state": own_memory, "param_groups": groups})
    except (RuntimeError, ValueError, TypeError, KeyError) as error:  # of states that only their optimizer knows
        raise InputError(f"optimizer refuses its state: {error}") from error


def _count(found: Any, place: str) -> None:
    """A rule: a number of steps, as a number or as a tensor of one."""
    is_tensor = isinstance(found, torch.Tensor) and found.is_floating_point() and not found.ndim
    value = found.item() if is_tensor else found
    number(0, 1e15)(value, place)
    if value != int(value):
        raise InputError(f"{place} is {value}, not a number of steps")


def _checked(state: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a parameter's state; a step counts up, as the same kind of number."""

    def count(found: Any, place: str) -> None:
        kinds = [(type(value), getattr(value, "dtype", None)) for value in (found, state["step"])]
        if kinds[0] != kinds[1]:
            raise InputError(f"{place} is of another kind than this run's")
        _count(found, place)

    return {key: count if key == "step" else value for key, value in state.items()}


_MOVING: Mapping[str, Any] = {
    "lr": number(0, 1e6),
    "initial_lr": number(0, 1e6),
    "step": _count,
    "lookahead_step": whole(0),
    "buffer": each(each(either(number(), nothing))),
    "fused": either(exactly(True), either(exactly(False), nothing)),
    "foreach": either(exactly(True), either(exactly(False), nothing)),
}
"""Options of a group that a schedule or the optimizer itself changes, and those that stay as this run has them."""


def _as(example: Any, found: Any) -> Any:
    """A tensor with the strides of another one and memory of its own; what is no tensor stays."""
    if not isinstance(found, torch.Tensor) or not isinstance(example, torch.Tensor):
        return found
    return torch.empty_like(example, dtype=found.dtype, device="cpu").copy_(found.detach())


def _after_steps(
    optimizer: torch.optim.Optimizer, *, cycles: bool
) -> tuple[list[Any], dict[int, tuple[dict[str, Any], torch.Tensor]]]:
    """The schemas of an optimizer's groups, and by number the state of each parameter after a step, and the parameter.

    Parameters that had no gradient yet have no state.

    Args:
        optimizer: Made with the settings of the run; it stays as it is.
        cycles: Momentum and betas may have moved.
    """
    base = getattr(optimizer, "_base_optimizer", optimizer)  # of timm's Lookahead
    own, groups, states = base.state_dict()["param_groups"], [], {}
    before = random_states(torch.device("cpu"))
    try:
        for group, numbered in zip(base.param_groups, own, strict=True):
            options: Mapping[str, Any] = {}
            for weight, key in zip(group["params"], numbered["params"], strict=True):
                options, state = _after_a_step(base, group, weight)
                states[key] = state, weight.detach()
            share = number(0, 1 - 1e-12)
            moved: dict[str, Any] = (
                {"momentum": share, "betas": [share] * len(numbered.get("betas") or ())} if cycles else {}
            )
            schema = like({**numbered, **options}, {**_MOVING, **moved})
            groups.append({**schema, "params": exactly(numbered["params"])})
    finally:
        set_random_states(before, torch.device("cpu"))
    return groups, states


def _after_a_step(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], weight: torch.Tensor
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of a group and state of a parameter after a step of a twin, which moves a stand-in by no gradient."""
    stand_in = torch.zeros_like(weight, requires_grad=True)
    stand_in.grad = torch.zeros_like(stand_in)
    options = copy.deepcopy({key: value for key, value in group.items() if key != "params"})
    twin = copy.copy(optimizer)
    twin.state = defaultdict(dict)
    if weight in optimizer.state:
        twin.state[stand_in] = copy.deepcopy(optimizer.state[weight])
    twin.param_groups = [{**options, "params": [stand_in]}]
    twin.step()
    said = twin.state_dict()
    del said["param_groups"][0]["params"]
    return said["param_groups"][0], said["state"].get(0, {})


def _layer_decay(optim: OptimRecipe) -> dict[str, Any]:
    return {
        "layer_decay": optim.layer_decay,
        "layer_decay_min_scale": optim.layer_decay_min_scale,
        "layer_decay_no_opt_scale": optim.layer_decay_no_opt_scale,
    }


def _scaled_groups(model: SNNet, *, optim: OptimRecipe) -> list[dict[str, Any]]:
    """Parameter groups of an SN-Net whose parts learn at their own rates, by timm's `lr_scale`.

    What decays is the same as without scales.
    """
    groups = _times(param_groups_weight_decay(model.stitch_layers, optim.weight_decay), optim.stitch_lr_scale)
    for anchor in model.anchors:
        if optim.layer_decay is None:
            own = param_groups_weight_decay(anchor, optim.weight_decay)
        else:
            own = param_groups_layer_decay(
                anchor,
                optim.weight_decay,
                layer_decay=optim.layer_decay,
                min_scale=optim.layer_decay_min_scale,
                no_opt_scale=optim.layer_decay_no_opt_scale,
            )
        groups += _times(own, optim.base_lr_scale)
    return groups


def _times(groups: list[dict[str, Any]], scale: float) -> list[dict[str, Any]]:
    return [group | {"lr_scale": scale * group.get("lr_scale", 1.0)} for group in groups]


def create_schedule(
    recipe: Recipe, optimizer: torch.optim.Optimizer, *, updates_per_epoch: int
) -> tuple[Scheduler | None, int]:
    """timm's learning-rate schedule, and the number of epochs with cool-down.

    Raises:
        InputError: If there is no such schedule.
    """
    settings = scheduler_kwargs(SimpleNamespace(**recipe.flat()))
    schedules = ("cosine", "tanh", "step", "multistep", "poly")
    if settings["sched"] == "none":
        for group in optimizer.param_groups:  # schedules do this themselves
            group["lr"] *= group.get("lr_scale", 1.0)
        return None, recipe.schedule.epochs
    if settings["sched"] not in schedules:
        raise unknown("schedule", settings["sched"], [*schedules, "none"])
    schedule, epochs = create_scheduler_v2(optimizer, **settings, updates_per_epoch=updates_per_epoch)
    return schedule, int(epochs)


class LossScaler(NativeScaler):  # type: ignore[misc]
    """timm's loss scaler with backward pass and update apart: in between, ranks exchange their gradients."""

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss to run backward from."""
        return self._scaler.scale(loss)  # type: ignore[no-any-return]

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Bring gradients to their own size, for clipping."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the parameters where all gradients are finite, then the scale."""
        self._scaler.step(optimizer)
        self._scaler.update()


Autocast = Callable[[], AbstractContextManager[Any]]


def create_precision(optim: OptimRecipe, device: torch.device) -> tuple[Autocast, LossScaler | None]:
    """The context that forward passes run in, and the loss scaler where float16 needs one."""
    if not optim.amp:
        return nullcontext, None
    on_cpu = device.type == "cpu"
    dtype = torch.bfloat16 if on_cpu else getattr(torch, optim.amp_dtype)
    scaler = LossScaler(device=device.type) if dtype == torch.float16 else None
    return partial(torch.autocast, device_type=device.type, dtype=dtype), scaler
