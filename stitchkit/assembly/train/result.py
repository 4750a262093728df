"""What a job writes for people: its trajectory as a table, its settings and what they made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from stitchkit.errors import InputError, one_line
from stitchkit.files import replacing, write_text
from stitchkit.settings.files import settings_text

if TYPE_CHECKING:
    import pandas as pd

FIRST_COLUMNS = (
    *("Epoch", "Step", "LR", "Loss", "Time/Data", "Time/Step", "Time/Img Per Sec", "Time/Total", "Time/Per Epoch"),
    *("Proc Mem", "GPU Mem"),
)
"""Columns that do not depend on the data sets, in their order."""


def check_pandas() -> None:
    """See that results can be written.

    Raises:
        InputError: If pandas is not installed.
    """
    try:
        import pandas  # noqa: F401
    except ImportError as error:
        raise InputError(
            "results are pandas tables, and pandas is not installed: pip install stitchkit[jobs]"
        ) from error


class Trajectory:
    """The rows of a job's result: one an epoch, and one for epoch 0.

    Args:
        path: The pickled frame; the same as CSV is beside it.
        rows: Rows of epochs that were trained before.
    """

    def __init__(self, path: Path, rows: list[dict[str, Any]]):
        self.path = path
        self.rows = rows

    def frame(self) -> pd.DataFrame:
        """The table."""
        import pandas as pd

        columns = dict.fromkeys(key for row in self.rows for key in row)
        first = [name for name in FIRST_COLUMNS if name in columns]
        return pd.DataFrame(self.rows, columns=[*first, *(name for name in columns if name not in first)])

    def add(self, row: Mapping[str, Any]) -> None:
        """Take in an epoch; the CSV has it at once, so that a person can look on."""
        self.rows.append(dict(row))
        with replacing(self.path.with_suffix(".csv")) as draft:
            self.frame().to_csv(draft, index=False)

    def close(self) -> None:
        """Write the frame: a job whose frame is there is done."""
        with replacing(self.path) as draft:
            self.frame().to_pickle(draft)


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain data as YAML."""
    write_text(path, settings_text(dict(content)))


def update_metadata(path: Path, content: Mapping[str, Any]) -> None:
    """Write what is known of a job beside its result; what others wrote there stays."""
    write_yaml(path, {**read_metadata(path), **content})


def read_metadata(path: Path) -> dict[str, Any]:
    """What is known of a job; empty where there is nothing yet.

    Raises:
        InputError: If the file is damaged.
    """
    try:
        content = yaml.safe_load(path.read_text()) if path.exists() else None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"'{path}', which says what a job is, is damaged: {one_line(error)}; remove it") from error
    return content if isinstance(content, dict) else {}
