"""Shows the progress of runs."""
