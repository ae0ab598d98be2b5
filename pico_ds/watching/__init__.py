"""A run seen from beside it: what its directory says, live on a terminal."""
