"""The results of sweeps in one table, and their pictures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from stitchkit.assembly.train.result import read_metadata
from stitchkit.errors import InputError
from stitchkit.files import replacing
from stitchkit.measure.pareto import save_figure

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = {"Epoch": "epoch", "Step": "step", "LR": "lr", "Loss": "loss", "Overall/Train Loss": "train_loss"}


def sweep_report(folder: str | Path) -> list[Path]:
    """Write `results.csv`, `results.parquet` and the pictures of every sweep into the folder of its jobs.

    Returns the files. A sweep has no pictures while only its uncut networks have results.
    """
    from stitchkit.assembly.sweep.draw import draw

    place = Path(folder)
    table = collect(place)
    files = [place / "results.csv", place / "results.parquet"]
    with replacing(files[0]) as draft:
        table.to_csv(draft, index=False)
    with replacing(files[1]) as draft:
        table.to_parquet(draft, index=False)
    for arch, rows in table.groupby("arch"):
        if (rows["gap"] != "").any():
            for kind, figure in draw(rows).items():
                files.append(place / f"{arch}-{kind}.png")
                save_figure(figure, files[-1])
    return files


def collect(folder: str | Path) -> pd.DataFrame:
    """One row for each job, seed and epoch, with the metadata of the job; accuracies are in percent."""
    import pandas as pd

    place = Path(folder)
    if not place.is_dir():
        raise InputError(f"folder '{folder}' does not exist; name the output folder (-o) of a sweep")
    tables = [
        _rows(result, about)
        for file in sorted(place.glob("*/metadata.yml"))
        if "arch" in (about := _about(file))  # jobs outside sweeps have none
        for result in sorted(file.parent.glob("result*.csv"))
    ]
    if not tables:
        raise InputError(
            f"folder '{folder}' contains no results of a sweep; run one with stitchkit sweep -c FILE -o DIR"
        )
    return pd.concat(tables, ignore_index=True)


def _about(file: Path) -> dict[str, object]:
    """The metadata in a job's folder; names of pictures begin with the architecture, so it must not be a path."""
    about = read_metadata(file)
    arch = str(about.get("arch"))
    if "/" in arch or "\0" in arch:
        raise InputError(f"'{file}' has arch {arch!r}; it must be a name without '/', like that of the sweep's file")
    return about


def _rows(result: Path, about: dict[str, object]) -> pd.DataFrame:
    """The epochs of one job, in tidy columns."""
    import pandas as pd

    try:
        raw = pd.read_csv(result)
    except ValueError as error:
        raise InputError(f"'{result}' is not a table of results: {error}; move it away") from error
    seed = re.fullmatch(r"result-(\d+)", result.stem)
    plain = {key: value for key, value in about.items() if not isinstance(value, dict | list)}
    return (
        raw.rename(columns=_COLUMNS)
        .filter(_COLUMNS.values())
        .assign(
            job=result.parent.name,
            seed=int(seed[1]) if seed else pd.NA,
            gap=f"{about['first_deleted_block']},{about['last_deleted_block']}" if "adapter" in about else "",
            # A picture has one value per job, so several data sets are averaged.
            test_accuracy=100 * raw.filter(regex=r"^Overall/.+/Test Accuracy$").mean(axis=1),
            **plain,
        )
    )
