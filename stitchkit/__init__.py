"""stitchkit: from a few pretrained vision networks, every trade-off between cost and accuracy.

`__init__.pyi` lists the names, which are imported on first use: torch takes seconds to import, and `--help` needs none.
"""

import lazy_loader

from stitchkit._version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
