"""Loads environment variables from a `.env` file."""

from pathlib import Path

from pico_ds.errors import ConfigError


def load_environment(path: Path) -> None:
    """Set the variables of a `.env` file that are not set yet. Does nothing if the file does not exist.

    Raises:
        ConfigError: the file cannot be read, or a name or value in it is not allowed.
    """
    from dotenv import load_dotenv

    try:
        load_dotenv(path)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; make it readable, or remove it") from error
    except UnicodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error}; save it as UTF-8, or remove it") from error
    except ValueError as error:
        raise ConfigError(
            f"{path} has a name or value that environment variables cannot have: {error}; correct it, or remove it"
        ) from error
