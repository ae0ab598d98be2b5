"""Checks before training that all ranks agree, and that their devices, network, disk and data work."""
