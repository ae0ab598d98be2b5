"""Measurements of the product itself, each beside the floor that the machine sets."""
