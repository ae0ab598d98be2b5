"""Finds the words of a corpus and their contexts."""
