"""What stitches cost and how well they do: profile, evaluation, ledger, Pareto front."""
