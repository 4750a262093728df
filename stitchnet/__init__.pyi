"""The names of `import stitchnet`, each imported on first use."""

from .activations import Scores as Scores
from .data import image_folder as image_folder, load_hf_dataset as load_hf_dataset, stitching_images as stitching_images
from .loading import load as load
from .net import Net as Net
from .networks import get_cache_folder as get_cache_folder
from .pool import set_device as set_device
from .search import Search as Search, generate as generate

__version__: str
