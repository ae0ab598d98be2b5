"""Variables of the environment that a user keeps in a file."""

from pathlib import Path

from pico_ds.errors import ConfigError


def load_environment(path: Path) -> None:
    """Set the variables of a `.env` file that are not set already; does nothing if there is no such file.

    Raises:
        ConfigError: the file cannot be read, or holds what no variable can.
    """
    from dotenv import load_dotenv

    try:
        load_dotenv(path)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; make it readable, or remove it") from error
    except UnicodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error}; write it anew, or remove it") from error
    except ValueError as error:
        raise ConfigError(f"{path} holds what no variable can: {error}; mend it, or remove it") from error
