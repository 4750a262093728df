"""Running a job: its network, its epochs, its result."""
