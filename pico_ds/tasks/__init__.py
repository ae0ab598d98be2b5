"""Subset Masked Language Modeling Tasks."""
