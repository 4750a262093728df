"""Experiments, one folder a study. They are not in the wheel."""
