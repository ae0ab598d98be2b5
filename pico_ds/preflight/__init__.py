"""What can be known before a run starts: do the ranks agree, and does everything they need work."""
