"""Reads configurations of pico-train and pico-maml."""
