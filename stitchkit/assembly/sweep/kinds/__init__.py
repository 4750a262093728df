"""The kinds of sweeps: over gaps, over data sets, of heads by encoders, and searches, each with its file and plan."""
