"""Every reader of the house, each with good files for it."""

from tests.fuzz.readers import composing, dense, networks, results, settings
from tests.fuzz.readers.base import Reader

READERS: dict[str, Reader] = settings.READERS | results.READERS | networks.READERS | composing.READERS | dense.READERS
