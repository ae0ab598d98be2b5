"""Estimates memory and communication of a run before it starts."""
