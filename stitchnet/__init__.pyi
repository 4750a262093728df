"""The names of `import stitchnet`, each imported on first use."""

from .activations import Scores as Scores
from .composition import set_device as set_device
from .data import image_folder as image_folder, load_hf_dataset as load_hf_dataset, stitching_images as stitching_images
from .net import Net as Net, load as load
from .networks import get_cache_folder as get_cache_folder
from .search import Search as Search, generate as generate

__version__: str
