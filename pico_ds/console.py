"""Consoles that print text unchanged."""

from typing import Any

from rich.console import Console


def make_console(**settings: Any) -> Console:
    """Return a console without markup and emoji codes, so that `[kqv]` and `:key:` in a user's text are printed.

    Args:
        settings: arguments of `rich.console.Console`.
    """
    if "file" in settings:
        # in a notebook, rich displays the output of every console, even if it goes to a file
        settings.setdefault("force_jupyter", False)
    return Console(markup=False, emoji=False, highlight=False, **settings)
