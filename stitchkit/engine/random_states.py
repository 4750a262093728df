"""States of the random generators, which a resumed run takes up where it stood."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from stitchkit.engine.checkpoint_schema import Rule, check, either, exactly, nothing, number, whole
from stitchkit.errors import InputError

RandomStates = tuple[Any, Any, torch.Tensor, torch.Tensor | None]
"""Of Python, NumPy, torch and the GPU."""


def random_states(device: torch.device) -> RandomStates:
    """States of all random generators of this process."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def set_random_states(states: RandomStates, device: torch.device) -> None:
    """Put the states of all random generators back."""
    python, numpy, cpu, cuda = states
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if cuda is not None and device.type == "cuda":
        torch.cuda.set_rng_state(cuda, device)


def to_plain(states: RandomStates) -> dict[str, Any]:
    """States as plain data and tensors, which a checkpoint may hold."""
    (version, words, gauss), (kind, keys, *rest), cpu, cuda = states
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": cpu,
        "cuda": cuda,
    }


def from_plain(plain: Mapping[str, Any]) -> RandomStates:
    """The states that `to_plain` was given."""
    version, words, gauss = plain["python"]
    kind, keys, *rest = plain["numpy"]
    return (version, tuple(words), gauss), (kind, keys.numpy().astype(np.uint32), *rest), plain["torch"], plain["cuda"]


def check_plain(found: Any, place: str) -> None:
    """Refuse what `to_plain` did not give: NumPy takes any position within its words, and reads past their end.

    Args:
        found: What a checkpoint has.
        place: Where it stands in the checkpoint.

    Raises:
        InputError: If it cannot be the states of random generators; those of this process are unchanged.
    """
    before = random_states(torch.device("cpu"))
    own = to_plain(before)
    version, words, _ = own["python"]
    kind, keys, *_ = own["numpy"]
    word = whole(0, 2**32 - 1)
    schema = {
        "python": [exactly(version), [word] * (len(words) - 1) + [whole(0, len(words) - 1)], either(number(), nothing)],
        "numpy": [exactly(kind), _numbers(keys), whole(0, len(keys)), whole(0, 1), number()],
        "torch": _numbers(own["torch"]),
        "cuda": either(_bytes, nothing),
    }
    check(found, schema, place)
    words_there, keys_there = found["python"][1], found["numpy"][1]
    if (
        not any(words_there[:-1])
        or not keys_there.any()
        or not 0 <= int(keys_there.min()) <= int(keys_there.max()) < 2**32
    ):
        raise InputError(f"{place} is no state of random generators: words of all zeros, or out of range")
    try:
        set_random_states(from_plain(found), torch.device("cpu"))
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{place} is no state of random generators: {error}") from error
    finally:
        set_random_states(before, torch.device("cpu"))


def _numbers(own: torch.Tensor) -> Rule:
    """A rule: whole numbers of the shape and type of our own, whatever they are."""

    def rule(found: Any, place: str) -> None:
        if not isinstance(found, torch.Tensor) or found.shape != own.shape or found.dtype != own.dtype:
            raise InputError(f"{place} is {type(found).__name__}, not {own.dtype} {list(own.shape)}")

    return rule


def _bytes(found: Any, place: str) -> None:
    """A rule: the state of a GPU's generator; the GPU itself checks the rest."""
    length = len(found) if isinstance(found, torch.Tensor) and found.ndim == 1 else 0
    _numbers(torch.zeros(length, dtype=torch.uint8))(found, place)
