"""The tasks of dense prediction: what each learns, is judged by, and draws."""
