"""Sweeps: every gap bridged by every stitcher."""
