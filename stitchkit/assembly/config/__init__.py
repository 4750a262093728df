"""Configurations of jobs: reading and checking them."""
