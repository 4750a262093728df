"""Data sets: opened, split, read image by image, and loaded in batches."""
