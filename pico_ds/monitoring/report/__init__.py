"""Writes an HTML report that compares runs."""
