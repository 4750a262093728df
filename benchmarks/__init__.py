"""Ours against a plain reference, as ratios measured in one run; README.md says how to read them."""
