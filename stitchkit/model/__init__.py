"""Running stitches: the stitching layers, the network of these and the anchors, and closed-form fits."""
