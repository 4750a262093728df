"""Stitching jobs: assemblies of pretrained parts and trainable adapters, and sweeps of them."""
