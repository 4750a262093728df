"""Data sets of images with a mask or a depth map each."""
