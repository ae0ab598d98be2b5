import pytest

from pico_ds.config import ConfigError
from pico_ds.engine.meta_engine import _check_deepspeed


@pytest.mark.parametrize("version", ["0.19.8", "0.19.10", "0.19.8+d254d75"])
def test_supported_deepspeed_releases_are_accepted(version: str) -> None:
    _check_deepspeed(version)


@pytest.mark.parametrize("version", ["0.19.7", "0.20.0", "1.0"])
def test_other_deepspeed_releases_are_rejected(version: str) -> None:
    with pytest.raises(ConfigError, match=rf"DeepSpeed {version} is installed.*pip install"):
        _check_deepspeed(version)
