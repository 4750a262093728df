"""What all rows of the study share: its size, its images, the given anchors, and what they may reuse."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.utils import random_seed
from torch import nn

from stitchkit.errors import InputError, one_line
from stitchkit.files import replacing
from stitchkit.settings.stitch_config import AnchorSpec, StitchConfig
from studies.evidence.images import Split
from studies.evidence.networks import NAME, arguments, create_network
from studies.evidence.size import Size
from studies.evidence.train import Spent, flop_counter, train

_logger = logging.getLogger(__name__)

_LABELS = ("s", "l")


@dataclass(frozen=True)
class Study:
    """The study on this machine.

    Args:
        splits: `train`, `validation` and `test`.
        cache: Folder of weights that several rows use.
        typefaces: Which of them each split has, as text.
    """

    size: Size
    splits: Mapping[str, Split]
    cache: Path
    device: torch.device
    typefaces: str = ""

    @cached_property
    def images(self) -> str:
        """What identifies the images: the SHA-256 of their pixels."""
        digest = hashlib.sha256()
        for split in self.splits.values():
            digest.update(split.images.numpy().tobytes())
        return digest.hexdigest()

    @property
    def has_anchors(self) -> bool:
        """Whether the anchors that all rows are given are trained."""
        return all(self._file(f"anchor_{width}").exists() for width in self.size.anchors)

    def pretrain(self) -> None:
        """Train the anchors that all rows are given, unless that is done."""
        for number, width in enumerate(self.size.anchors):
            self._kept(f"anchor_{width}", partial(self._pretrained, width, number))

    def _pretrained(self, width: int, seed: int, spent: Spent) -> nn.Module:
        size, split = self.size, self.splits["train"]
        _logger.info("training the given anchor of width %d", width)
        random_seed(seed, 0)
        network = create_network(size, width)
        epochs = size.pretraining * len(split)
        with counting(probe := Spent()):
            network(torch.zeros(1, 1, size.side, size.side))
        train(
            network, split, size, budget=3 * probe.flops * epochs, lr=size.lr_scratch, seed=seed, device=self.device,
            spent=spent,
        )  # fmt: skip
        return network

    def anchor(self, number: int) -> nn.Module:
        """A copy of a given anchor, the cheap one (0) or the costly one (1)."""
        return self._load(f"anchor_{self.size.anchors[number]}", self.size.anchors[number])

    def fine_tuned(self, seed: int, spent: Spent) -> list[nn.Module]:
        """Both anchors after half of the budget each, which several rows use and each of them pays."""
        found = []
        for number, width in enumerate(self.size.anchors):
            name = f"fine_tuned_{width}_seed{seed}"
            spent.add(self._kept(name, partial(self._fine_tuned, number, seed)))
            found.append(self._load(name, width))
        return found

    def _fine_tuned(self, number: int, seed: int, spent: Spent) -> nn.Module:
        network = self.anchor(number)
        train(
            network, self.splits["train"], self.size, budget=self.size.budget / 2, lr=self.size.lr, seed=seed,
            device=self.device, spent=spent,
        )  # fmt: skip
        return network

    def config(self, **options: object) -> StitchConfig:
        """A stitch configuration of the given anchors."""
        anchors = [
            AnchorSpec(
                name=NAME,
                label=label,
                kwargs={**arguments(self.size, width), "img_size": self.size.side},
                checkpoint=str(self._file(name)),
            )
            for label, width in zip(_LABELS, self.size.anchors, strict=True)
            for name in [f"anchor_{width}"]
        ]
        return StitchConfig(anchors=tuple(anchors), **options)  # type: ignore[arg-type]

    def _file(self, name: str) -> Path:
        return self.cache / f"{name}.safetensors"

    def _load(self, name: str, width: int) -> nn.Module:
        network = create_network(self.size, width)
        network.load_state_dict(load_file(self._file(name)))
        return network.to(self.device)

    def _kept(self, name: str, make: Callable[[Spent], nn.Module]) -> Spent:
        """What a network cost whose weights are in a file of the cache, made now if there is none."""
        path = self._file(name)
        if not path.exists():
            spent = Spent()
            network = make(spent).cpu()
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as draft:
                save_file(network.state_dict(), draft, metadata={"spent": json.dumps(asdict(spent)), "of": self._of})
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
        except Exception as error:  # a damaged file can hold anything
            raise InputError(f"'{path}' cannot be read: {one_line(error)}; remove it to train it again") from error
        if about.get("of") != self._of:
            raise InputError(
                f"'{path}' was trained at another size or on other images; give another folder by -o, or remove it"
            )
        return Spent(**json.loads(about["spent"]))

    @property
    def _of(self) -> str:
        """All that weights depend on, beside their name."""
        return json.dumps({**asdict(self.size), "images of": self.images})


@contextmanager
def counting(spent: Spent) -> Iterator[None]:
    """Add the multiply-adds of matrix products to what was spent."""
    with flop_counter() as counter:
        yield
    spent.flops += float(counter.get_total_flops()) / 2
