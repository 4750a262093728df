"""Result files of a job: its trajectory as a table, its settings, and facts about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stitchkit.errors import InputError, one_line
from stitchkit.files import check_regular, replacing, write_text
from stitchkit.settings.files import read_settings_file, settings_text

if TYPE_CHECKING:
    import pandas as pd

# Columns that do not depend on the data sets, in their order.
FIRST_COLUMNS = (
    *("Epoch", "Step", "LR", "Loss", "Time/Data", "Time/Step", "Time/Img Per Sec", "Time/Total", "Time/Per Epoch"),
    *("Proc Mem", "GPU Mem"),
)

IMAGES = "images_sha256"
"""The key of the test sets and the digests of their images in the metadata."""
Row = dict[str, float]
"""The figures of an epoch, by column; a job has one row per epoch, and one for epoch 0."""


def _frame(rows: list[Row]) -> pd.DataFrame:
    import pandas as pd

    keys = dict.fromkeys(key for row in rows for key in row)
    return pd.DataFrame(rows, columns=[key for key in dict.fromkeys([*FIRST_COLUMNS, *keys]) if key in keys])


def write_rows(result: Path, rows: list[Row]) -> None:
    """Write the rows so far as CSV, beside the future result, so that users can watch."""
    with replacing(result.with_suffix(".csv")) as draft:
        _frame(rows).to_csv(draft, index=False)


def write_frame(result: Path, rows: list[Row]) -> None:
    """Write the result, a pickled table by steps as in the publication, which marks the job as done."""
    frame = _frame(rows)
    with replacing(result) as draft:
        frame.set_axis(frame["Step"].tolist()).to_pickle(draft)


def read_figures(path: Path) -> pd.DataFrame:
    """The rows that `write_rows` wrote."""
    import pandas as pd

    check_regular(path)
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"'{path}' is not a table of results: {one_line(error)}; move it away") from error


def update_metadata(path: Path, content: Mapping[str, object], *, writer: str = "") -> None:
    """Add facts about a job to those in its metadata file.

    The runs of a job with several seeds share the file, and know the same facts; `writer` tells them apart.
    """
    write_text(path, settings_text({**read_metadata(path), **content}), writer=writer)


def read_metadata(path: Path) -> dict[str, Any]:
    """The facts about a job; empty if there are none yet."""
    try:
        return read_settings_file(path) if path.exists() else {}
    except InputError as error:
        raise InputError(f"'{path}', which describes a job, is damaged: {error}; remove it") from error
