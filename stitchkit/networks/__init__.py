"""Networks as they come: built, loaded, cut, seen as steps, and the layouts of what passes in them."""
