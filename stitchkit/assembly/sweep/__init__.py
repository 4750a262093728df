"""Sweeps: jobs that one file describes together, planned, run and reported."""
