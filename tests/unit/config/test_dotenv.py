import re
from pathlib import Path

import pytest

from pico_ds.config import ConfigError
from pico_ds.config.dotenv import load_environment


@pytest.mark.parametrize("content", [b"\xff\xfe", b"A=\0"])
def test_unreadable_dotenv_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path / ".env"))):
        load_environment(tmp_path / ".env")
