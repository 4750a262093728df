"""Classifiers on the outputs of a composed network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from timm.data import ImageNetInfo

from stitchkit.classes import in_order
from stitchkit.errors import InputError, NotFinite, unknown
from stitchkit.settings.files import read_settings_file

_NEIGHBOURS = 5


class Classifier:
    """Nearest neighbours of outputs `[N, D]` with labels `[N]`.

    Attributes:
        classes: The labels in the order of the scores.

    Source: StitchNet, section 4: five nearest neighbours.
    """

    def __init__(self, outputs: np.ndarray, labels: np.ndarray):
        check_finite(outputs)
        # scikit-learn takes over a second to import, and every command imports this package.
        from sklearn.neighbors import KNeighborsClassifier

        self._model = KNeighborsClassifier(min(_NEIGHBOURS, len(outputs))).fit(outputs, labels)
        self.outputs, self.labels = outputs, labels
        self.classes = np.asarray(self._model.classes_)

    def scores(self, outputs: np.ndarray) -> np.ndarray:
        """Scores of the classes `[N, classes]` for outputs `[N, D]`; each row sums to 1."""
        check_finite(outputs)
        return np.asarray(self._model.predict_proba(outputs))


def check_finite(outputs: np.ndarray) -> None:
    """Refuse outputs that are not finite."""
    if not np.isfinite(outputs).all():
        raise NotFinite("the network's outputs for these images are not finite; use another network")


MAPS = ("argmax", "max", "sum")
Outputs: TypeAlias = str | Path | Mapping[str, object]
"""Outputs by class, as in `Net.map_outputs`: the path of a file, or its content."""
_NUMBERS = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")
_MOST = 100_000


@dataclass(frozen=True)
class OutputMap:
    """The outputs that mean each class, and how those of a class are joined, as in `Net.map_outputs`.

    Attributes:
        groups: Numbers of the outputs of each class.
        num_outputs: Number of outputs that a network must have; 0 if those of the classes are enough.
    """

    kind: str
    groups: tuple[tuple[int, ...], ...]
    num_outputs: int = 0

    @classmethod
    def read(cls, source: Outputs, kind: str, classes: Sequence[str] = ()) -> OutputMap:
        """The map of a file or mapping for these classes, in the order of their numbers; by default for its own."""
        if kind not in MAPS:
            raise unknown("way to join outputs", kind, MAPS)
        where = f"'{source}'" if isinstance(source, str | Path) else "the output map"
        entries = _content(source, where)
        classes = classes or in_order(entries)
        if extra := set(entries) - set(classes):
            raise unknown(f"class in {where}:", min(extra), classes)
        names = _imagenet_names()
        groups = [sorted({n for entry in entries.get(label, []) for n in _numbers(entry, names)}) for label in classes]
        taken: dict[int, str] = {}
        for label, group in zip(classes, groups, strict=True):
            if not group:
                raise InputError(f"{where} has no output for class '{label}'; name at least one")
            for number in group:
                if taken.setdefault(number, label) != label:
                    raise InputError(f"{where} gives output {number} to '{taken[number]}' and '{label}'; choose one")
        is_named = any(not _NUMBERS.fullmatch(entry) for each in entries.values() for entry in each)
        return cls(kind, tuple(map(tuple, groups)), ImageNetInfo().num_classes() if is_named else 0)

    @property
    def classes(self) -> np.ndarray:
        """The labels in the order of the scores; with `argmax`, -1 for all other outputs is the last."""
        return np.array([*range(len(self.groups)), *([-1] if self.kind == "argmax" else [])])

    def scores(self, outputs: np.ndarray) -> np.ndarray:
        """Scores of the classes `[N, classes]` for logits `[N, D]`; each row sums to 1."""
        check_finite(outputs)
        width, last = outputs.shape[1], max((number for group in self.groups for number in group), default=-1)
        if width <= last or self.num_outputs not in (0, width):
            need = self.num_outputs or f"at least {last + 1}"
            raise InputError(f"the network has {width} outputs, but the output map needs {need}; use other networks")
        groups = [list(group) for group in self.groups]
        if self.kind == "argmax":
            groups.append(sorted(set(range(width)).difference(*groups)))
        # The softmax of the highest logits gives the highest probabilities; that of the log-sum-exp their sums.
        logits, join = torch.from_numpy(outputs).double(), torch.logsumexp if self.kind == "sum" else torch.amax
        lowest = logits.new_full((len(logits), 1), -torch.inf)
        joined = [join(torch.cat([lowest, logits[:, group]], 1), 1) for group in groups]
        return torch.stack(joined, 1).softmax(1).numpy()


def _content(source: Outputs, where: str) -> dict[str, list[str]]:
    if str(source).endswith(".csv"):
        raise InputError(f"{where}: maps in CSV were removed; write it as JSON or YAML")
    content = read_settings_file(source) if isinstance(source, str | Path) else source
    by_class: dict[str, list[str]] = {}
    for label, value in content.items():
        entries = list(value) if isinstance(value, list | tuple | range) else [value]
        if wrong := [entry for entry in entries if not isinstance(entry, int | str) or isinstance(entry, bool)]:
            raise InputError(f"{where}, class '{label}': {wrong[0]!r} is not an output; use numbers, names or synsets")
        by_class[str(label)] = [str(entry) for entry in entries]
    return by_class


def _imagenet_names() -> dict[str, set[int]]:
    """The outputs of ImageNet's networks by synset, name and list of names, in lower case."""
    imagenet, by_name = ImageNetInfo(), dict[str, set[int]]()
    for number, synset in enumerate(imagenet.label_names()):
        words = imagenet.index_to_description(number).lower()
        for name in {synset, words, *words.split(", ")}:
            by_name.setdefault(name, set()).add(number)
    return by_name


def _numbers(entry: str, names: Mapping[str, set[int]]) -> Iterable[int]:
    """The outputs that an entry means: a number, a range such as `151-268`, a name of ImageNet's or a synset."""
    if match := _NUMBERS.fullmatch(entry):
        first, last = int(match[1]), int(match[2] or match[1])
        if last > _MOST:
            raise InputError(f"output {last} is too large; networks have fewer than {_MOST} outputs")
        return range(first, last + 1)
    name = entry.strip().lower().replace("_", " ")
    if name not in names:
        raise unknown("class of ImageNet", entry, names)
    if len(names[name]) > 1:
        places = " and ".join(map(str, sorted(names[name])))
        raise InputError(f"'{entry}' is the name of the outputs {places}; use the number")
    return names[name]
