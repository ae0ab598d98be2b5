"""Detects and reports failures of a run."""
