"""All fragments of some networks, and the input of each in its own network."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from stitchkit.distributed import choose_device
from stitchkit.errors import InputError, one_line
from stitchkit.networks.layout import Layout
from stitchkit.settings.stitch_config import AnchorSpec
from stitchnet.activations import Activation, run
from stitchnet.data import as_images
from stitchnet.fragments import Fragment, fragments
from stitchnet.networks import Nets, load_networks

_device: torch.device | None = None


def set_device(device: str | torch.device | None) -> None:
    """Choose where later compositions run: `cpu`, `cuda` or `cuda:N`; with None, where the stitching images are.

    Raises:
        InputError: If there is no such device.
    """
    global _device  # as in the published package
    _device = None if device is None else choose_device(str(device))


class Pool:
    """The fragments, with their inputs on the stitching images, each computed once; arguments as in `Search`.

    Attributes:
        starts: The first fragment of each network.
        followers: All other fragments, in the order of the networks.
    """

    def __init__(self, data: np.ndarray | torch.Tensor, nets: Nets | None = None, *, pretrained: bool = True):
        self.images = as_images(data, what="stitching images")
        if _device is not None:
            self.images = self.images.to(_device)
        if not len(self.images):
            raise InputError("there are no stitching images; at least one is needed")
        if not self.images.isfinite().all():
            raise InputError("a stitching image has values that are not finite; check the preparation of images")
        self.specs: dict[str, AnchorSpec | None] = {}
        self.fragments: list[Fragment] = []
        self._inputs: dict[Fragment, Activation] = {}
        height, width = self.images.shape[2:]
        for label, (model, spec) in load_networks(nets, pretrained=pretrained, img_size=(height, width)).items():
            self.specs[label] = spec
            self._add(label, model.to(self.images.device))
        self.starts = [fragment for fragment in self.fragments if fragment.is_start]
        self.followers = [fragment for fragment in self.fragments if not fragment.is_start]

    def _add(self, label: str, model: torch.nn.Module) -> None:
        try:
            found = fragments(label, model, self.images)
            self.fragments += found
            x = Activation(self.images, Layout("NCHW"))
            for fragment, following in pairwise(found):
                output = Activation(run(fragment.module, x.tensor), fragment.layout)
                x.forget()
                output.shelve()  # a pool of five networks has gigabytes of them
                self._inputs[following] = x = output
            x.forget()
        except InputError:
            raise
        except (RuntimeError, ValueError, AssertionError) as error:  # networks raise all of these
            raise InputError(
                f"network '{label}' does not accept images of {list(self.images.shape[1:])}: {one_line(error)}; "
                "use images of another size, or another network"
            ) from error

    def input_of(self, fragment: Fragment) -> Activation:
        """The input of a fragment in its own network; not for starts."""
        return self._inputs[fragment]

    def own_output(self, fragment: Fragment) -> Activation:
        """The output of a fragment in its own network; not for ends."""
        return self._inputs[self.fragments[self.fragments.index(fragment) + 1]]
