"""Corpora of token shards."""
