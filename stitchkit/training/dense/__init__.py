"""Training and evaluation of networks for dense prediction."""
