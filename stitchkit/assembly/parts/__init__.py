"""Parts: what networks of jobs are made of."""
