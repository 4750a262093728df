"""Parts: the modules of a job's network."""
