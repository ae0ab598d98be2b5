"""Logs, tracks and displays the progress of runs."""
