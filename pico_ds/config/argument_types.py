"""Argument types for the command line."""

import argparse
from collections.abc import Callable


def at_least(minimum: int) -> Callable[[str], int]:
    """Return an `argparse` type for integers that are at least `minimum`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(f"got {text!r}; give an integer of at least {minimum}")
        return value

    return parse


def task_shape(text: str) -> tuple[int, int]:
    """Parse `5x1` as 5-way 1-shot; an `argparse` type."""
    n_way, cross, k_shot = text.partition("x")
    if not (cross and n_way.isdigit() and k_shot.isdigit() and int(n_way) > 1 and int(k_shot) > 0):
        raise argparse.ArgumentTypeError(f"got {text!r}; give N-way x K-shot, such as 5x1")
    return int(n_way), int(k_shot)
