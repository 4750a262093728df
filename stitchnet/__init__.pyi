"""The names of `import stitchnet`, each imported on first use."""

from .data import image_folder as image_folder, load_hf_dataset as load_hf_dataset, stitching_images as stitching_images
from .net import Net as Net, load as load
from .scores import Scores as Scores
from .search import Search as Search, generate as generate
