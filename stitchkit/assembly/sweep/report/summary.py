"""The outcome of each job of a sweep: the test accuracy of its last epoch, as mean and spread over its seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each job, from those of its seeds and epochs, which are all done.

    `test_accuracy` is the mean of the seeds' last epochs and `test_accuracy_std` their standard deviation, which one
    seed does not have; `num_seeds` says how many there are.
    """
    last = rows.sort_values("epoch").groupby(["job", "seed"], dropna=False).tail(1)
    figures = last.groupby("job")["test_accuracy"].agg(test_accuracy="mean", test_accuracy_std="std", num_seeds="count")
    varying = ["epoch", "step", "seed", "lr", "loss", "train_loss", "test_accuracy", "state"]
    about = last.drop_duplicates("job").drop(columns=varying, errors="ignore")
    return about.merge(figures, on="job").sort_values("job", ignore_index=True)


def spread(final: pd.DataFrame) -> str:
    """What the figures of jobs are where some have several seeds, in words; otherwise empty."""
    fewest, most = final["num_seeds"].min(), final["num_seeds"].max()
    return f"mean ± standard deviation of {'' if fewest == most else 'up to '}{most} seeds" if most > 1 else ""
