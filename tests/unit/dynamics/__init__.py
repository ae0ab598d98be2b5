"""Tests of the measures of learning dynamics."""
