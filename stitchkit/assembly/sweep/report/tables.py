"""The results of sweeps in one table, and their pictures."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from stitchkit.assembly.sweep.cluster import states
from stitchkit.assembly.sweep.report.draw import FIGURES, draw, draw_cross, draw_jobs, spread, summarise
from stitchkit.assembly.sweep.settings import check_folder
from stitchkit.assembly.sweep.worker import SweepJob, counts
from stitchkit.assembly.train.result import IMAGES, read_figures, read_metadata
from stitchkit.engine.lock import locked
from stitchkit.errors import InputError, one_line
from stitchkit.files import replacing
from stitchkit.measure.figure import save_figure
from stitchkit.settings.files import naming
from stitchkit.settings.schema import parse

if TYPE_CHECKING:
    import pandas as pd

_logger = logging.getLogger(__name__)

# The names of figures, as in results.
_TESTED = re.compile(rf"^Overall/.+/({'|'.join(FIGURES.values())})$", re.IGNORECASE)
_Number = Annotated[int, Field(strict=True, ge=-1, lt=2**63)]
_Value = (
    str | Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)] | float | bool | date | list[Any] | dict[Any, Any]
)
_Facts = dict[str, _Value | None]  # facts about a job that a table can hold; it omits lists and mappings


class _Stitched(TypedDict):
    """The facts about a stitched network that pictures need."""

    first_deleted_block: _Number
    last_deleted_block: _Number
    num_downsamples: _Number


_COLUMNS = {"Epoch": "epoch", "Step": "step", "LR": "lr", "Loss": "loss", "Overall/Train Loss": "train_loss"}


def sweep_report(folder: str | Path, *, picture_format: str = "png") -> list[Path]:
    """Write the results of sweeps and the pictures of each into the folder of their jobs.

    `results.csv` and `results.parquet` have a row for each epoch of each seed, `summary.csv` one for each job. This and
    the pictures show only jobs that are done and have their figures; titles say if some are not done. A sweep has no
    pictures until a job has a figure of merit. Returns the files.
    """
    root = check_folder(folder)
    with locked(root / ".report.lock"):  # two sweeps may share the folder, and end together
        return _write_report(root, picture_format)


def _write_report(root: Path, picture_format: str) -> list[Path]:
    table = collect(root)
    measured = table[(table["state"] == "done") & table["epoch"].notna()].astype({"epoch": int})
    files = [root / "results.csv", root / "results.parquet", root / "summary.csv"]
    with replacing(files[0]) as draft:
        table.to_csv(draft, index=False)
    with replacing(files[1]) as draft:
        table.to_parquet(draft, index=False)
    with replacing(files[2]) as draft:
        summarise(measured).to_csv(draft, index=False)
    for arch, rows in table.groupby("arch"):
        by_run = rows.drop_duplicates(["job", "seed"])["state"]
        _logger.info("%s: %s", arch, counts(by_run))
        done = measured[measured["arch"] == arch]
        final = summarise(done)
        unfinished = "" if (by_run == "done").all() else counts(by_run)
        title = "\n".join(filter(None, [str(arch), unfinished, spread(final)]))
        pictures = {}
        if (done["gap"] != "").any():
            pictures = draw(done, title)
        elif "encoder_dataset" in done and done["encoder_dataset"].notna().any():  # only tested, so it has no curves
            pictures = {"heatmap": draw_cross(final, title)}
        elif "uncut" not in done:  # or it is a sweep of gaps that has just begun
            pictures = draw_jobs(done, title)
        for kind, figure in pictures.items():
            files.append(root / f"{arch}-{kind}.{picture_format}")
            save_figure(figure, files[-1])
    return files


def collect(folder: str | Path) -> pd.DataFrame:
    """One row for each job, seed and epoch, with the job's state and metadata; accuracies are in percent.

    A job without figures has one row without an epoch.
    """
    import pandas as pd

    root = check_folder(folder)
    jobs = {
        job: about
        for file in sorted(root.glob("*/metadata.yml"))
        if "arch" in (about := _about(file))  # jobs outside sweeps have none
        for job in _runs(file.parent)
    }
    if not jobs:
        raise InputError(f"folder '{folder}' contains no jobs of a sweep; run one with stitchkit sweep -c FILE -o DIR")
    _compare_images({job.path.name: str(about.get(IMAGES, "")) for job, about in jobs.items()})
    by_job = states([*jobs])
    tables = [_rows(job, about).assign(state=by_job[job]) for job, about in jobs.items()]
    return pd.concat(tables, ignore_index=True)


def _compare_images(jobs: Mapping[str, str]) -> None:
    """Warn of jobs whose test images changed between them, by the digests in the metadata of each."""
    first: dict[str, tuple[str, str]] = {}
    for job, digests in jobs.items():
        for name, _, digest in (of.rpartition(" ") for of in digests.split(", ")):
            other, before = first.setdefault(name, (job, digest))
            if before != digest:
                _logger.warning(
                    "the test images of '%s' changed between the jobs '%s' and '%s': their figures cannot be compared",
                    name, other, job,
                )  # fmt: skip
                return


def _runs(place: Path) -> list[SweepJob]:
    """The runs of a job, which its sweep planned: each has a folder for checkpoints until it has a result."""
    names = (re.fullmatch(r"result(?:-(\d{1,19}))?", path.stem) for path in place.iterdir())
    seeds = {int(name[1]) if name[1] else None for name in names if name}
    return [SweepJob(place, seed) for seed in sorted(seeds, key=lambda seed: -1 if seed is None else seed)]


def _about(file: Path) -> dict[str, object]:
    """The metadata in a job's folder; names of pictures begin with the architecture, so it must not be a path."""
    about = read_metadata(file)
    arch = str(about.get("arch"))
    if "/" in arch or "\0" in arch:
        raise InputError(f"'{file}' has arch {arch!r}; it must be a name without '/', like that of the sweep's file")
    if "arch" in about:
        with naming(file):
            parse(_Stitched if about.get("adapter") else _Facts, about)
    return about


def _rows(job: SweepJob, about: dict[str, object]) -> pd.DataFrame:
    import pandas as pd

    file = job.result.with_suffix(".csv")
    raw = read_figures(file) if file.exists() else pd.DataFrame({"Epoch": [pd.NA]})
    try:
        raw = raw[[name for name in raw if name in _COLUMNS or _TESTED.match(name)]].apply(pd.to_numeric)
        figures = raw.rename(columns=_COLUMNS).reindex(columns=[*_COLUMNS.values()])
        figures = figures.astype({"epoch": "Int64", "step": "Int64"})
    except (ValueError, TypeError) as error:
        raise InputError(f"'{file}' is not a table of results: {one_line(error)}; move it away") from error
    own = {
        "job": job.path.name,
        "seed": pd.NA if job.seed is None else job.seed,
        "gap": f"{about['first_deleted_block']},{about['last_deleted_block']}" if about.get("adapter") else "",
    }
    for key, name in FIGURES.items():
        tested = raw.filter(regex=f"(?i)/{name}$")
        if key == "test_accuracy" or len(tested.columns):
            own[key] = 100 * tested.mean(axis=1)  # a picture has one value per job, so several data sets are averaged
    plain = {
        key: value
        for key, value in about.items()
        if not isinstance(value, dict | list) and key not in (IMAGES, *figures)
    }
    return figures.assign(**{**plain, **own})
