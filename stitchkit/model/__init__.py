"""How a stitch runs: the stitching layers, the network that holds them and its anchors, and fits in closed form."""
