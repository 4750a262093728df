"""Networks: building, loading and cutting them, their steps, and the layouts of the tensors in them."""
