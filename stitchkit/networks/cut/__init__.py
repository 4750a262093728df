"""The tracer: finds the steps of networks without a view, by torch.fx."""
