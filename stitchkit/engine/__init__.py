"""The training engine: steps, precision, checkpoints, exact resume, locks and signals, whatever a task trains."""
