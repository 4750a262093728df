"""The report of sweeps: their results as tables and pictures."""
