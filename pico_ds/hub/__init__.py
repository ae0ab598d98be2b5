"""Models, snapshots and results on the Hugging Face hub."""
