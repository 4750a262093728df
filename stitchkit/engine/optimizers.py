"""States of optimizers: checking that one fits, and restoring it."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch

from stitchkit.engine import checkpoint_schema as rules
from stitchkit.engine.epoch_state import random_states, set_random_states
from stitchkit.errors import InputError

_SLOW = "lookahead_slow_buff"
"""State that timm's Lookahead adds after some steps."""


def load_optimizer(
    optimizer: torch.optim.Optimizer, state: object, *, cycles: bool = False, keeps_rate: bool = False
) -> None:
    """Restore the state of an optimizer; the way it computes updates (`fused`, `foreach`) does not change.

    Args:
        optimizer: Created with the same settings, except for `fused` and `foreach`. It does not change if the state
            does not fit.
        state: Its `state_dict()`, read from a file.
        cycles: Whether a schedule may have changed momentum and betas, as torch's OneCycleLR and CyclicLR do.
        keeps_rate: Whether the learning rate stays its own, because no schedule will set it again.
    """
    base = getattr(optimizer, "_base_optimizer", optimizer)  # timm's Lookahead wraps another optimizer
    after, weights = _after_a_step(base), [weight.detach() for group in base.param_groups for weight in group["params"]]
    examples: list[dict[str, Any]] = [after["state"].get(number, {}) for number in range(len(weights))]
    states = {
        number: rules.fields(_checked(own), {} if base is optimizer else {_SLOW: weights[number]})
        for number, own in enumerate(examples)
    }
    share, groups = rules.number(0, 1 - 1e-12), []
    for group in after["param_groups"]:
        cycled = {"momentum": share, "betas": [share] * len(group.get("betas") or ())} if cycles else {}
        groups.append(rules.like(group, {**_MOVING, **cycled, "params": rules.exactly(group["params"])}))
    # A file has no state for parameters that have had no gradient.
    schema = {**optimizer.state_dict(), "state": rules.fields({}, states), "param_groups": groups}
    rules.check(state, schema, "optimizer")
    assert isinstance(state, Mapping), "it was checked"
    kept = [dict(group) for group in state["param_groups"]]
    for group, own in zip(kept, optimizer.param_groups, strict=True):
        keys = ("fused", "foreach", *(["lr"] if keeps_rate else []))
        group.update((key, own[key]) for key in keys if key in own)
    # Fused kernels assume that each state has the strides of its parameter, and that no two states share memory.
    own_memory = {
        number: {name: _as(examples[number].get(name, weights[number]), value) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    try:
        optimizer.load_state_dict({**state, "state": own_memory, "param_groups": kept})
    except (RuntimeError, ValueError, TypeError, KeyError) as error:  # states that only the optimizer itself can check
        raise InputError(f"the optimizer rejects its state: {error}") from error


def _count(actual: object, path: str) -> None:
    """A rule: a number of steps, as a number or as a tensor without axes."""
    is_tensor = isinstance(actual, torch.Tensor) and actual.is_floating_point() and not actual.ndim
    value = actual.item() if is_tensor and isinstance(actual, torch.Tensor) else actual
    rules.number(0, 1e15)(value, path)
    if isinstance(value, float) and not value.is_integer():
        raise InputError(f"{path} is {value}, not a number of steps")


def _checked(state: Mapping[str, object]) -> dict[str, rules.Schema]:
    """The schema of a parameter's state; the step count may grow, but stays the same type of number."""

    def count(actual: object, path: str) -> None:
        # Kernels do not convert the step: a whole number does not work if they expect a tensor.
        kinds = [(type(value), getattr(value, "dtype", None)) for value in (actual, state["step"])]
        if kinds[0] != kinds[1]:
            raise InputError(f"{path} has another type than in this run")
        _count(actual, path)

    return {key: count if key == "step" else value for key, value in state.items()}


_MOVING: dict[str, rules.Schema] = {
    "lr": rules.number(0, 1e6),
    "initial_lr": rules.number(0, 1e6),
    "step": _count,
    "lookahead_step": rules.whole(0),
    "buffer": rules.each(rules.each(None)),  # a cache of numbers that RAdam keeps in older versions of timm
    "fused": rules.or_none(True),
    "foreach": rules.or_none(True),
}
"""Options of a group that a schedule or the optimizer itself changes, or that keep this run's value."""


def _as(example: object, value: object) -> object:
    """A copy of a tensor with the strides of another one; other values are returned as they are."""
    if not isinstance(value, torch.Tensor) or not isinstance(example, torch.Tensor):
        return value
    return torch.empty_like(example, dtype=value.dtype, device="cpu").copy_(value.detach())


def _after_a_step(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimizer after a step with gradients for all parameters, which creates their states.

    The step is made by a twin, on stand-ins with gradients of zero: one at a time, with the states then on the CPU,
    since a GPU may have no memory for all of them beside the model.
    """
    twin, after = copy.copy(optimizer), optimizer.state_dict()
    before = random_states(torch.device("cpu"))  # some optimizers draw random numbers
    try:
        for group, packed in zip(optimizer.param_groups, after["param_groups"], strict=True):
            options = {key: value for key, value in group.items() if key != "params"}
            for weight, number in zip(group["params"], packed["params"], strict=True):
                stand_in = torch.zeros_like(weight, requires_grad=True)
                stand_in.grad = torch.zeros_like(stand_in)
                twin.param_groups = [{**copy.deepcopy(options), "params": [stand_in]}]
                twin.state = defaultdict(dict)
                if weight in optimizer.state:
                    twin.state[stand_in] = copy.deepcopy(optimizer.state[weight])
                twin.step()
                updated = twin.state_dict()
                packed.update({**updated["param_groups"][0], "params": packed["params"]})
                state = updated["state"].get(0, {})
                after["state"][number] = {
                    key: value.cpu() if isinstance(value, torch.Tensor) else value for key, value in state.items()
                }
    finally:
        set_random_states(before, torch.device("cpu"))
    return after
