"""Costs and accuracies of stitches: profile, evaluation, ledger, Pareto front."""
