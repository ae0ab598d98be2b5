"""Corpora that are stored as token shards."""
