"""Cutting: pieces of any traceable model, between two of its nodes."""

from stitchkit.model.cut.nodes import Node, nodes
from stitchkit.model.cut.piece import CutPiece, cut, steps

__all__ = ["CutPiece", "Node", "cut", "nodes", "steps"]
