"""Data sets: opening, splitting, reading images, and loading batches."""
