"""What `import stitchkit` offers; each name is imported when it is asked for."""

from .config import AnchorSpec as AnchorSpec, StitchConfig as StitchConfig
from .errors import InputError as InputError
from .model.anchor import Anchor as Anchor
from .model.create import create_anchor as create_anchor, create_model as create_model, create_snnet as create_snnet
from .model.snnet import SNNet as SNNet
from .model.solve import fit_stitching_layers as fit_stitching_layers
from .model.weights import load_checkpoint as load_checkpoint
from .routes import (
    Joint as Joint,
    PairedWindow as PairedWindow,
    Segment as Segment,
    Stitch as Stitch,
    StitchSpace as StitchSpace,
)
from .ship.budget import BudgetedModel as BudgetedModel
from .ship.formats import load_stitch as load_stitch
from .ship.hub import HubSNNet as HubSNNet

__version__: str
