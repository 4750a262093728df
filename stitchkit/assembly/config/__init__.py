"""The file of a job, read and checked."""
