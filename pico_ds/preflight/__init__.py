"""Checks to run before training: whether all ranks agree, and whether the resources that they need work."""
