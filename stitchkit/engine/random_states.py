"""States of the random generators; a resumed run continues from them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from stitchkit.engine import checkpoint_schema as rules
from stitchkit.errors import InputError

RandomStates = Mapping[str, Any]
"""States of Python, NumPy, torch and the GPU, as plain data and tensors for a checkpoint."""


def random_states(device: torch.device) -> RandomStates:
    """States of all random generators of this process."""
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys, np.int64)), *rest],  # older versions of torch have no uint32
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_states(states: RandomStates, device: torch.device) -> None:
    """Restore the states of all random generators."""
    version, words, gauss = states["python"]
    kind, keys, *rest = states["numpy"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def check_states(states: object, path: str) -> None:
    """A rule: the result of `random_states`. NumPy accepts any position in its words and would read past their end."""
    before = random_states(torch.device("cpu"))
    (version, words, _), (kind, keys, *_), cpu = before["python"], before["numpy"], before["torch"]
    word, at = rules.whole(0, 2**32 - 1), rules.whole(0, len(keys))
    schema = {
        "python": [rules.exactly(version), [word] * (len(words) - 1) + [rules.whole(0, len(words) - 1)], None],
        "numpy": [rules.exactly(kind), _vector(torch.int64, len(keys)), at, rules.whole(0, 1), 0.0],
        "torch": _vector(torch.uint8, len(cpu)),
        "cuda": rules.or_none(_vector(torch.uint8)),  # torch checks its length
    }
    rules.check(states, schema, path)
    assert isinstance(states, Mapping)
    # A Mersenne Twister whose words are all zeros yields zeros for ever.
    there = [torch.tensor(states["python"][1][:-1]), states["numpy"][1]]
    if any(not numbers.any() or numbers.min() < 0 or numbers.max() >= 2**32 for numbers in there):
        raise InputError(f"{path} is not a state of random generators: its words are all zeros or out of range")
    try:
        set_random_states(states, torch.device("cpu"))
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{path} is not a state of random generators: {error}") from error
    finally:
        set_random_states(before, torch.device("cpu"))


def _vector(dtype: torch.dtype, length: int | None = None) -> rules.Rule:
    def fits(value: Any) -> bool:
        is_vector = isinstance(value, torch.Tensor) and value.dtype == dtype and value.ndim == 1
        return is_vector and length in (None, len(value))

    return rules.rule(f"a vector of {length or ''} {dtype}", fits)
