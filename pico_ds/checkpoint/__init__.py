"""What a run leaves on disk for others to load."""
