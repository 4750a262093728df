"""The names of `import stitchkit`; each is imported on first use."""

from .errors import InputError as InputError
from .measure.recalibrate import recalibrate as recalibrate
from .model.create import create_snnet as create_snnet
from .model.snnet import SNNet as SNNet
from .model.solve import fit_stitching_layers as fit_stitching_layers
from .networks.anchor import Anchor as Anchor
from .networks.create import create_anchor as create_anchor, create_model as create_model
from .routes import (
    Joint as Joint,
    Segment as Segment,
    Stitch as Stitch,
    StitchSpace as StitchSpace,
)
from .settings.stitch_config import AnchorSpec as AnchorSpec, StitchConfig as StitchConfig
from .ship.budgeted import BudgetedModel as BudgetedModel
from .ship.hub import HubSNNet as HubSNNet
from .ship.load import load_checkpoint as load_checkpoint
from .ship.stitch_files import load_stitch as load_stitch
from .training.api import TrainedRun as TrainedRun, evaluate as evaluate, train as train

__version__: str
