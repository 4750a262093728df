"""Joint training of all stitches: data, network, task, checkpoints, and their evaluation."""
