"""How a stitch runs: anchors as steps, stitching layers, and the network that holds them."""
