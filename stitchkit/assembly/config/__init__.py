"""What a job's file says, read and checked."""
