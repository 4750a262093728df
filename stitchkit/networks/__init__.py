"""Networks: built, loaded, cut, seen as steps, and the layouts of the tensors in them."""
