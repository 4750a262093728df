"""Heads for dense prediction: they turn the levels of a route into outputs at each pixel."""
