"""Snapshots and measures."""
