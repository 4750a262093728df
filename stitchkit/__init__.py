"""stitchkit: from a few pretrained vision networks, every trade-off between cost and accuracy."""

from stitchkit._version import __version__
from stitchkit.config import AnchorSpec, StitchConfig
from stitchkit.errors import InputError
from stitchkit.model.anchor import Anchor
from stitchkit.model.create import create_anchor, create_model, create_snnet
from stitchkit.model.snnet import SNNet
from stitchkit.model.solve import fit_stitching_layers
from stitchkit.model.weights import load_checkpoint
from stitchkit.routes import Joint, PairedWindow, Segment, Stitch, StitchSpace
from stitchkit.ship.budget import BudgetedModel
from stitchkit.ship.formats import load_stitch
from stitchkit.ship.hub import HubSNNet

__all__ = [
    "Anchor",
    "AnchorSpec",
    "BudgetedModel",
    "HubSNNet",
    "InputError",
    "Joint",
    "PairedWindow",
    "SNNet",
    "Segment",
    "Stitch",
    "StitchConfig",
    "StitchSpace",
    "__version__",
    "create_anchor",
    "create_model",
    "create_snnet",
    "fit_stitching_layers",
    "load_checkpoint",
    "load_stitch",
]
