"""Joint training of all stitches: recipe, data, task, loop and checkpoints."""
