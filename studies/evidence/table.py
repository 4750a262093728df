"""The table of the study, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stitchkit.display import quantity
from stitchkit.errors import InputError
from studies.evidence.curve import Findings, lines
from studies.evidence.record import BUDGETS, Record
from studies.evidence.rows import ROWS

REFERENCE = "cost_bins"
"""All rows are compared with this one: the default of `stitchkit train`."""
_TOLD = 0.005
"""Excess over a budget that is rounding."""
_HEAD = (
    "row", "networks", "accuracy (%)", "95 %", "seeds", f"against `{REFERENCE}`", "95 %", "by worst-case cost (%)",
    "mean regret", "largest", "mean by worst-case cost", "multiply-adds", "images", "training (s)",
)  # fmt: skip


def table(records: Mapping[str, Sequence[Record]]) -> str:
    """The rows in their order, by the seeds that all measured ones have, and below them what their figures are."""
    seeds = {name: {record.about["seed"] for record in some} for name, some in records.items()}
    common = sorted(set.intersection(*seeds.values()))
    if not common:
        raise InputError("the rows of the folder have no seed in common yet; measure all of them with --seeds 0")
    whole = {name: [one for one in some if one.about["seed"] in common] for name, some in records.items()}
    reference = REFERENCE if REFERENCE in whole else next(iter(whole))
    found = lines(whole, reference)
    body = [_cells(name, found[name], is_compared=reference == REFERENCE != name) for name in ROWS if name in found]
    missing = ", ".join(f"`{name}`" for name in ROWS if name not in found)
    machines = sorted({str(record.about["machine"]) for some in whole.values() for record in some})
    notes = [
        f"Accuracy: mean over {BUDGETS} budgets of inference and seeds {', '.join(map(str, common))}. "
        f"Machine: {'; '.join(machines)}.",
        *([f"A row of one seed took up to {minutes:.1f} minutes in all."] if (minutes := _minutes(whole)) else []),
        *(
            f"On the test images, a network of `{name}` costs up to {100 * line.excess:.0f} % more than its budget."
            for name, line in found.items() if line.excess >= _TOLD
        ),
        *([f"Not measured: {missing}."] if missing else []),
    ]  # fmt: skip
    rows = ("| " + " | ".join(cells) + " |" for cells in (_HEAD, ["---"] * len(_HEAD), *body))
    return "\n".join([*rows, "", " ".join(notes)])


def _minutes(records: Mapping[str, Sequence[Record]]) -> float:
    """The longest time of a row of one seed; 0 in records from before it was measured."""
    return max(float(record.about.get("whole_seconds", 0)) for some in records.values() for record in some) / 60


def _cells(name: str, line: Findings, *, is_compared: bool) -> list[str]:
    difference, low, high = line.difference
    return [
        f"`{name}`: {ROWS[name].words}",
        f"{line.networks:.0f}",
        f"{line.accuracy:.2f}",
        f"{line.interval[0]:.2f} to {line.interval[1]:.2f}",
        " ".join(f"{one:.2f}" for one in line.seeds),
        f"{difference:+.2f}" if is_compared else "",
        f"{low:+.2f} to {high:+.2f}" if is_compared else "",
        f"{line.worst_case:.2f}",
        f"{line.regret[0]:.2f}",
        f"{line.regret[1]:.2f}",
        f"{line.worst_case_regret:.2f}",
        quantity(line.spent),
        f"{line.images / 1000:.0f}k",
        f"{line.seconds:.0f}",
    ]
