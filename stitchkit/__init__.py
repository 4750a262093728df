"""stitchkit: from a few pretrained vision networks, every trade-off between cost and accuracy.

`__init__.pyi` names what is here; it is imported when it is asked for. Torch takes seconds; `--help` needs none of it.
"""

import lazy_loader

from stitchkit._version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
