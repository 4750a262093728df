"""The stitch space: every stitch of a configuration, in the published order."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import islice

from stitchkit.display import aligned
from stitchkit.errors import InputError, unknown
from stitchkit.routes.rules import LayerPath, Rule, Shape
from stitchkit.routes.stitch import Joint, Segment, Stitch

_SHOWN = 100
"""Stitches in a notebook's table."""


@dataclass(frozen=True, repr=False)
class StitchSpace:
    """The ordered stitches of some anchors under a rule, by their published `cfg_id`.

    Args:
        stitches: The anchors first, then the stitches in the order of the rule. Their `cfg_id`s ascend from 0; the
            published numbering of a rule may skip one.
        layers: The stitching layer of each joint.
        num_anchors: Number of uncut anchors, which come first.
    """

    stitches: Mapping[int, Stitch]
    layers: Mapping[Joint, LayerPath]
    num_anchors: int

    @classmethod
    def build(cls, anchors: Sequence[Shape], rule: Rule) -> StitchSpace:
        """The space of `anchors`, from cheap to costly, under `rule`: a pure function of labels, depths and rule.

        Raises:
            InputError: If there are fewer than two anchors, two share a label, or the rule does not fit them.
        """
        labels = [anchor.label for anchor in anchors]
        if len(labels) < 2:
            raise InputError(f"stitching needs at least two anchors, but got {labels or 'none'}; add one to 'anchors'")
        if repeated := {label for label in labels if labels.count(label) > 1}:
            raise InputError(f"anchors share the label {sorted(repeated)}; give each its own 'label'")
        # Anchors come first: ledgers, and the published tools that read them, rely on it.
        uncut = tuple(Stitch((Segment(a.label, 0, sum(a.depths)),)) for a in anchors)
        stitches, layers = rule.plan(anchors)
        numbered = enumerate((*uncut, *stitches))
        return cls({cfg_id: stitch for cfg_id, stitch in numbered if stitch is not None}, layers, len(uncut))

    def through(self, joints: Collection[Joint]) -> StitchSpace:
        """The anchors, and the stitches that pass through no other joints, numbered anew from 0 in the same order.

        Stitching layers keep their places, and so their names among weights.

        Raises:
            InputError: If this space has no such joint.
        """
        for joint in joints:
            if joint not in self.layers:
                raise unknown("joint", joint, map(str, self.layers))
        through = set(joints)
        kept = [stitch for stitch in self if through.issuperset(stitch.joints)]
        layers = {joint: path for joint, path in self.layers.items() if joint in through}
        return StitchSpace(dict(enumerate(kept)), layers, self.num_anchors)

    @property
    def ids(self) -> tuple[int, ...]:
        """The `cfg_id` of every stitch, ascending."""
        return tuple(self.stitches)

    @property
    def cut(self) -> tuple[int, ...]:
        """The `cfg_id` of every stitch with a joint, ascending."""
        return tuple(cfg_id for cfg_id, stitch in self.stitches.items() if not stitch.is_anchor)

    @property
    def ids_text(self) -> str:
        """The `cfg_id`s in words, such as `0 to 134, without 13`."""
        last = self.ids[-1]
        missing = ", ".join(str(cfg_id) for cfg_id in range(last) if cfg_id not in self.stitches)
        return f"0 to {last}" + (f", without {missing}" if missing else "")

    def select(self, text: str) -> list[int]:
        """The `cfg_id`s that a text such as `3,5,10-20` names, ascending.

        Raises:
            InputError: If the text does not consist of numbers and ranges, or a stitch does not exist.
        """
        chosen: set[int] = set()
        for part in text.split(","):
            match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part)
            if not match:
                raise InputError(f"'{text}' does not choose stitches; list their cfg_id, such as 3,5,10-20")
            first, last = int(match[1]), int(match[2] or match[1])
            _ = self[first], self[last]  # refuses numbers that no stitch has
            if last < first:
                raise InputError(f"'{text}' holds the range {first}-{last}, which runs backwards; write {last}-{first}")
            chosen.update(cfg_id for cfg_id in range(first, last + 1) if cfg_id in self.stitches)
        return sorted(chosen)

    def find(self, name: str | Stitch) -> int:
        """The `cfg_id` of a stitch or its name, such as `ti[0:6] > s[6:12]`.

        Raises:
            InputError: If no stitch of this space has the name.
        """
        names = {stitch.name: cfg_id for cfg_id, stitch in self.stitches.items()}
        if str(name) not in names:
            raise unknown("stitch", name, names)
        return names[str(name)]

    def __repr__(self) -> str:
        """A line: the number of stitches, their anchors, and the first and last that are not anchors."""
        stitches = list(self)
        anchors = ", ".join(map(str, stitches[: self.num_anchors]))
        joined = stitches[self.num_anchors :]
        ends = f"; {joined[0]} to {joined[-1]}" if joined else ""
        return f"<StitchSpace: {len(self)} stitches of {anchors}{ends}>"

    def __str__(self) -> str:
        """A line for each stitch."""
        return aligned([(str(cfg_id), stitch.name) for cfg_id, stitch in self.stitches.items()], left=[1])

    def _repr_html_(self) -> str:
        """The table that a notebook shows; of a large space its first stitches."""
        first = islice(self.stitches.items(), _SHOWN)
        rows = [f"<tr><td>{cfg_id}</td><td>{escape(stitch.name)}</td></tr>" for cfg_id, stitch in first]
        more = f"<p>and {len(self) - _SHOWN} more</p>" if len(self) > _SHOWN else ""
        head = "<tr><th>cfg_id</th><th>stitch</th></tr>"
        return f"<p>{escape(repr(self))}</p><table>{head}{''.join(rows)}</table>{more}"

    def __len__(self) -> int:
        return len(self.stitches)

    def __iter__(self) -> Iterator[Stitch]:
        return iter(self.stitches.values())

    def __getitem__(self, cfg_id: int) -> Stitch:
        """The stitch with this `cfg_id`."""
        if cfg_id not in self.stitches:
            raise InputError(f"cfg_id {cfg_id} does not exist; this space has {self.ids_text}")
        return self.stitches[cfg_id]
