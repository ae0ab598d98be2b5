"""Pages that show what runs did."""
