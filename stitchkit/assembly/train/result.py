"""Result files of a job: its trajectory as a table, its settings, and facts about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stitchkit.errors import InputError
from stitchkit.files import replacing, write_text
from stitchkit.optional import optional
from stitchkit.settings.files import read_settings_file, settings_text

if TYPE_CHECKING:
    import pandas as pd

FIRST_COLUMNS = (
    *("Epoch", "Step", "LR", "Loss", "Time/Data", "Time/Step", "Time/Img Per Sec", "Time/Total", "Time/Per Epoch"),
    *("Proc Mem", "GPU Mem"),
)
"""Columns that do not depend on the data sets, in their order."""

Row = dict[str, float]
"""The figures of an epoch, by column."""


def check_pandas() -> None:
    """Check early that results, which are pandas tables, can be written."""
    optional("pandas", "jobs", "a job's result")


class Trajectory:
    """The rows of a job's result: one per epoch, and one for epoch 0.

    Args:
        path: The pickled frame, which also exists as CSV beside it.
        rows: Rows of earlier epochs.
    """

    def __init__(self, path: Path, rows: list[Row]):
        self.path = path
        self.rows = rows

    def frame(self) -> pd.DataFrame:
        """The table."""
        import pandas as pd

        columns = dict.fromkeys(key for row in self.rows for key in row)
        first = [name for name in FIRST_COLUMNS if name in columns]
        return pd.DataFrame(self.rows, columns=[*first, *(name for name in columns if name not in first)])

    def add(self, row: Row) -> None:
        """Add an epoch and update the CSV, so that users can watch."""
        self.rows.append(row)
        with replacing(self.path.with_suffix(".csv")) as draft:
            self.frame().to_csv(draft, index=False)

    def close(self) -> None:
        """Write the frame, which marks the job as done."""
        with replacing(self.path) as draft:
            self.frame().to_pickle(draft)


def update_metadata(path: Path, content: Mapping[str, object]) -> None:
    """Add facts about a job to those in its metadata file."""
    write_text(path, settings_text({**read_metadata(path), **content}))


def read_metadata(path: Path) -> dict[str, Any]:
    """The facts about a job; empty if there are none yet."""
    try:
        return read_settings_file(path) if path.exists() else {}
    except InputError as error:
        raise InputError(f"'{path}', which describes a job, is damaged: {error}; remove it") from error
