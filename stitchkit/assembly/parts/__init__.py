"""Parts: the modules of which a job's network consists."""
