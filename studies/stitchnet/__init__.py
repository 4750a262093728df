"""The experiments of the StitchNet paper: stitching images, accuracy over MACs, ensembles, fine-tuning."""
