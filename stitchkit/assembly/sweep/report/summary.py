"""The outcome of each job of a sweep: the test accuracy of its last epoch, as mean and spread over its seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stitchkit.assembly.sweep.report.heat_map import FIGURES

if TYPE_CHECKING:
    import pandas as pd


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each job, from those of its seeds and epochs, which are all done.

    `test_accuracy` is the mean of the seeds' last epochs and `test_accuracy_std` their standard deviation, which one
    seed does not have; `num_seeds` says how many there are. Figures of dense tasks are likewise.
    """
    import pandas as pd

    last = rows.sort_values("epoch").groupby(["job", "seed"], dropna=False).tail(1)
    known = [key for key in FIGURES if key in last]
    jobs, figures = last.groupby("job"), dict[str, pd.Series]()
    for key in known:
        figures |= {key: jobs[key].mean(), f"{key}_std": jobs[key].std()}
    figures["num_seeds"] = jobs.size()
    varying = ["epoch", "step", "seed", "lr", "loss", "train_loss", *known, "state"]
    about = last.drop_duplicates("job").drop(columns=varying, errors="ignore")
    return about.merge(pd.DataFrame(figures), on="job").sort_values("job", ignore_index=True)


def spread(final: pd.DataFrame) -> str:
    """What the figures of jobs are where some have several seeds, in words; otherwise empty."""
    fewest, most = final["num_seeds"].min(), final["num_seeds"].max()
    return f"mean ± standard deviation of {'' if fewest == most else 'up to '}{most} seeds" if most > 1 else ""
