"""What a ledger says about its latencies: the conditions of the measurement, and whether it is reliable."""

from __future__ import annotations

from collections.abc import Sequence

from stitchkit.display import counted
from stitchkit.errors import InputError
from stitchkit.measure.ledger import Row

ALLOW = "--allow-unreliable"
"""The flag that accepts unreliable latencies."""
LIMIT_PERCENT = 5.0
"""Largest spread of a reliable latency."""

_FIGURES = ("latency_ms", "images_per_s")
_CONDITIONS = {"latency_ms", "latency_device", "latency_threads", "latency_precision", "latency_batch_size"}


def unreliable(rows: Sequence[Row]) -> bool:
    """Whether latencies were measured as unreliable; those without a verdict get a note."""
    return any(not row.get("latency_reliable", True) for row in rows)


def check_latencies(rows: Sequence[Row], *, allowed: bool) -> None:
    """Refuse unreliable latencies unless they are allowed."""
    if unreliable(rows) and not allowed:
        raise InputError(
            f"the latencies are unreliable: {_spread(rows)}, and the limit is ± {LIMIT_PERCENT:g} %; measure them "
            f"again while the machine is idle, or give {ALLOW} (in Python allow_unreliable=True)"
        )


def without_unreliable(rows: Sequence[Row]) -> list[Row]:
    """The rows, without their latencies if these are unreliable."""
    left_out = _FIGURES if unreliable(rows) else ()
    return [{key: value for key, value in row.items() if key not in left_out} for row in rows]


def latency_note(rows: Sequence[Row]) -> str:
    """The conditions of the latencies in words, with the verdict; empty if no row has a latency."""
    measured = [row for row in rows if row.keys() >= _CONDITIONS]
    if not measured:
        unknown = "latencies measured under unknown conditions may be unreliable; --eval --latency repeats them"
        return unknown if any("latency_ms" in row for row in rows) else ""
    row = measured[0]
    number = row["latency_threads"]
    threads = "" if row["latency_device"].startswith("cuda") else f", {counted(number, 'CPU thread')}"
    where = f"{row['latency_device']}{threads}, {row['latency_precision']}"
    note = f"latency of batches of {row['latency_batch_size']} on {where}: medians, {_spread(measured)}"
    return f"{note}; unreliable, since the limit is ± {LIMIT_PERCENT:g} %" if unreliable(measured) else note


def _spread(rows: Sequence[Row]) -> str:
    return f"at most ± {max(row.get('latency_spread_percent', 0.0) for row in rows):.1f} %"
