"""Kinds of files that are given with -c, by the keys that tell them apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

FileKind = Literal["stitch configuration", "search", "heads by encoders", "gaps", "data sets", "job", "Swin's own"]
SWEEPS: tuple[FileKind, ...] = ("search", "heads by encoders", "gaps", "data sets")

FILE_KINDS: Mapping[str, FileKind] = {
    "anchors": "stitch configuration",
    **dict.fromkeys(("parameters", "method", "program"), "search"),
    "ft_configs": "heads by encoders",
    **dict.fromkeys(("stages", "src_stages", "dest_stages", "gaps", "stitchers"), "gaps"),
    "datasets": "data sets",
    **dict.fromkeys(("assembly", "train_config"), "job"),
    "MODEL": "Swin's own",
}
"""The kind of a file by each key that can tell it; the first one counts, since sweeps have keys of their jobs too."""


def kind_of(content: Mapping[str, object]) -> tuple[str, FileKind] | tuple[None, None]:
    """The kind of a file and the key that tells it; None for both if no key does, as in a file of settings."""
    return next(((key, kind) for key, kind in FILE_KINDS.items() if key in content), (None, None))
