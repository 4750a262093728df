"""The study from its images to its table, row by row; what is finished is not done again."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from stitchkit.data.demo import manifest_of
from stitchkit.errors import InputError, unknown
from stitchkit.files import write_text
from studies.evidence.images import Split
from studies.evidence.record import Record, about_run, is_recorded, read_record, write_record
from studies.evidence.rows import ROWS, run_row
from studies.evidence.size import Size
from studies.evidence.study import Study
from studies.typefaces.folder import TYPEFACES, described
from studies.typefaces.fonts import find_typefaces, split_typefaces
from studies.typefaces.glyphs import render_split

_logger = logging.getLogger(__name__)


def render(size: Size, fonts: Sequence[Path]) -> tuple[dict[str, Split], str]:
    """The images of the study: characters in the typefaces of some folders; every split has its own.

    Returns:
        The splits, and which typefaces they have, as the text of `typefaces.json`.
    """
    found = find_typefaces(fonts)
    typefaces = split_typefaces(found.typefaces)
    splits = {}
    for name, count in size.images.items():
        glyphs = render_split(typefaces, name, per_class=count, side=size.side)
        parts = (torch.from_numpy(part) for part in (glyphs.images[:, None], glyphs.labels, glyphs.typefaces))
        splits[name] = Split(*parts)
        _logger.info("%d %s images in %d typefaces", len(glyphs.labels), name, len(typefaces[name]))
    described_splits = {name: [described(typeface) for typeface in part] for name, part in typefaces.items()}
    return splits, manifest_of({"typefaces": described_splits})


def check_rows(names: Sequence[str]) -> None:
    """Refuse rows that do not exist."""
    for name in names:
        if name not in ROWS:
            raise unknown("row", name, ROWS)


def run_study(study: Study, output: Path, *, rows: Sequence[str], seeds: Sequence[int]) -> None:
    """Run the rows of some seeds that have no record yet, seed by seed: the table then grows evenly."""
    measured = [*output.glob("*/seed*.json")]
    for path in measured:  # all, since the table takes only records of one study
        is_recorded(path, study.size, study.images)
    missing = [
        (seed, name)
        for seed in seeds
        for name in rows
        if not is_recorded(_file(output, name, seed), study.size, study.images)
    ]
    _logger.info("%d of %d rows and seeds are left to run", len(missing), len(rows) * len(seeds))
    if missing:
        if measured and not study.has_anchors:
            raise InputError(
                f"'{output}' has records, but the weights of the anchors that their rows were given are not in "
                f"'{study.cache}'; put them there, or give another folder by -o"
            )
        study.pretrain()
        write_text(output / TYPEFACES, study.typefaces)
    for number, (seed, name) in enumerate(missing, start=1):
        _logger.info("%d/%d: %s, seed %d", number, len(missing), ROWS[name].words, seed)
        began = time.perf_counter()
        entrants, spent = run_row(name, study, seed)
        about = about_run(name, seed, study.size, spent, study.images)
        write_record(_file(output, name, seed), entrants, study.splits, study.device, about, began=began)


def read_study(output: Path) -> dict[str, list[Record]]:
    """The records of a folder by row, in the order of the table, and by seed; rows without any are left out.

    Raises:
        InputError: If there are none, or they are of several sizes, or of several sets of images.
    """
    found: dict[str, list[Record]] = {}
    for name in ROWS:
        records = [*map(read_record, (output / name).glob("seed*.json"))]
        if records:
            found[name] = sorted(records, key=lambda record: int(record.about["seed"]))
    if not found:
        raise InputError(f"'{output}' has no records of the study; measure some rows first, or check -o")
    kinds = {(str(one.about["size"]), str(one.about["images"])) for some in found.values() for one in some}
    if len(kinds) > 1:
        raise InputError(
            f"'{output}' has records of {len(kinds)} sizes or sets of images; give each a folder of its own"
        )
    return found


def _file(output: Path, name: str, seed: int) -> Path:
    return output / name / f"seed{seed}.json"
