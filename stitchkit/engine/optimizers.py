"""States of optimizers: checking that one fits, and restoring it."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch

from stitchkit.engine import checkpoint_schema as rules
from stitchkit.engine.random_states import random_states, set_random_states
from stitchkit.errors import InputError

_SLOW = "lookahead_slow_buff"
"""State that timm's Lookahead adds after some steps."""


def load_optimizer(optimizer: torch.optim.Optimizer, state: object, *, cycles: bool = False) -> None:
    """Restore the state of an optimizer; the way it computes updates (`fused`, `foreach`) does not change.

    Args:
        optimizer: Created with the same settings, except for `fused` and `foreach`.
        state: Its `state_dict()`, read from a file.
        cycles: Whether a schedule may have changed momentum and betas, as torch's OneCycleLR and CyclicLR do.

    Raises:
        InputError: If anything in the state does not fit; the optimizer is then unchanged.
    """
    groups, examples = _after_steps(optimizer, cycles=cycles)
    slow = [_SLOW] if hasattr(optimizer, "_base_optimizer") else []
    states = {key: rules.fields(_checked(own), dict.fromkeys(slow, weight)) for key, (own, weight) in examples.items()}
    schema = {**optimizer.state_dict(), "state": rules.fields({}, states), "param_groups": groups}
    rules.check(state, schema, "optimizer")
    assert isinstance(state, Mapping), "it was checked"
    kept = [dict(group) for group in state["param_groups"]]
    for group, own in zip(kept, optimizer.param_groups, strict=True):
        group.update((key, own[key]) for key in ("fused", "foreach") if key in own)
    # Fused kernels assume that each state has the strides of its parameter, and that no two states share memory.
    own_memory = {
        key: {name: _as(examples[key][0].get(name, examples[key][1]), value) for name, value in found.items()}
        for key, found in state["state"].items()
    }
    try:
        optimizer.load_state_dict({**state, "state": own_memory, "param_groups": kept})
    except (RuntimeError, ValueError, TypeError, KeyError) as error:  # states that only the optimizer itself can check
        raise InputError(f"the optimizer rejects its state: {error}") from error


def _count(found: object, place: str) -> None:
    """A rule: a number of steps, as a number or as a tensor without axes."""
    is_tensor = isinstance(found, torch.Tensor) and found.is_floating_point() and not found.ndim
    value = found.item() if is_tensor and isinstance(found, torch.Tensor) else found
    rules.number(0, 1e15)(value, place)
    if isinstance(value, float) and not value.is_integer():
        raise InputError(f"{place} is {value}, not a number of steps")


def _checked(state: Mapping[str, object]) -> dict[str, rules.Schema]:
    """The schema of a parameter's state; the step count may grow, but stays the same type of number."""

    def count(found: object, place: str) -> None:
        # Kernels do not convert the step: a whole number does not work if they expect a tensor.
        kinds = [(type(value), getattr(value, "dtype", None)) for value in (found, state["step"])]
        if kinds[0] != kinds[1]:
            raise InputError(f"{place} has another type than in this run")
        _count(found, place)

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


def _as(example: object, found: object) -> object:
    """A copy of a tensor with the strides of another one; other values are returned as they are."""
    if not isinstance(found, torch.Tensor) or not isinstance(example, torch.Tensor):
        return found
    return torch.empty_like(example, dtype=found.dtype, device="cpu").copy_(found.detach())


def _after_steps(
    optimizer: torch.optim.Optimizer, *, cycles: bool
) -> tuple[list[rules.Schema], dict[int, tuple[dict[str, object], torch.Tensor]]]:
    """The schemas of an optimizer's groups and, by number, each parameter with its state after a step.

    An optimizer creates the state of a parameter in its first step with a gradient, so a step is made here; a file has
    no state for parameters that have had no gradient.
    """
    base = getattr(optimizer, "_base_optimizer", optimizer)  # timm's Lookahead wraps another optimizer
    own = base.state_dict()["param_groups"]
    groups: list[rules.Schema] = []
    states = {}
    before = random_states(torch.device("cpu"))  # some optimizers draw random numbers
    share = rules.number(0, 1 - 1e-12)
    try:
        for group, numbered in zip(base.param_groups, own, strict=True):
            options: Mapping[str, object] = {}
            for weight, key in zip(group["params"], numbered["params"], strict=True):
                options, state = _after_a_step(base, group, weight)
                states[key] = state, weight.detach()
            moved = {"momentum": share, "betas": [share] * len(numbered.get("betas") or ())} if cycles else {}
            schema = rules.like({**numbered, **options}, {**_MOVING, **moved})
            assert isinstance(schema, dict)
            groups.append({**schema, "params": rules.exactly(numbered["params"])})
    finally:
        set_random_states(before, torch.device("cpu"))
    return groups, states


def _after_a_step(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], weight: torch.Tensor
) -> tuple[dict[str, object], dict[str, object]]:
    """Options of a group and state of a parameter after a step of a twin on a stand-in with zero gradients."""
    stand_in = torch.zeros_like(weight, requires_grad=True)
    stand_in.grad = torch.zeros_like(stand_in)
    options = copy.deepcopy({key: value for key, value in group.items() if key != "params"})
    twin = copy.copy(optimizer)
    twin.state = defaultdict(dict)
    if weight in optimizer.state:
        twin.state[stand_in] = copy.deepcopy(optimizer.state[weight])
    twin.param_groups = [{**options, "params": [stand_in]}]
    twin.step()
    state = twin.state_dict()
    del state["param_groups"][0]["params"]
    return state["param_groups"][0], state["state"].get(0, {})
