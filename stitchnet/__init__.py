"""StitchNet: networks composed of fragments of pretrained ones, guided by similarity, without training.

Names are imported on first use; `__init__.pyi` lists them.

Source: StitchNet: Composing Neural Networks from Pre-Trained Fragments, arXiv 2301.01947.
"""

import lazy_loader

from stitchkit._version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
