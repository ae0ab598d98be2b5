"""Writes an HTML page that compares runs."""
