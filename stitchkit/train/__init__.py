"""Joint training of all stitches: data, network, task, checkpoints, and their evaluation.

`stitchkit.train(...)` trains: the module itself can be called, because a function of its name would hide it, and
`stitchkit.train.run` with it. For type checkers it is no function: `from stitchkit.train.api import train`.
"""

from __future__ import annotations

import sys
from os import PathLike
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stitchkit.train.api import TrainedRun


class _Callable(ModuleType):
    """The module of this folder, which can be called like its function `stitchkit.train.api.train`."""

    def __call__(self, data: str | PathLike[str] | None = None, /, **settings: object) -> TrainedRun:
        from stitchkit.train.api import train  # imports torch

        return train(data, **settings)


sys.modules[__name__].__class__ = _Callable
