"""Cutting: pieces of any traceable model, between two of its nodes."""

from stitchkit.networks.cut.nodes import Node, nodes
from stitchkit.networks.cut.piece import CutPiece, cut, steps

__all__ = ["CutPiece", "Node", "cut", "nodes", "steps"]
