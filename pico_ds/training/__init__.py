"""The outer loop and everything around it."""
