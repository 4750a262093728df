"""Samplers, and ways to keep the anchors, on digits."""
