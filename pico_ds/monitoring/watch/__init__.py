"""Shows a run live in a terminal."""
