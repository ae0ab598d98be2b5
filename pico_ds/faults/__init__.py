"""Detects and reports failures of a run, and handles stop signals."""
