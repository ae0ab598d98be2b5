import pytest

from pico_ds.config import ConfigError
from pico_ds.config.deepspeed_config import load_deepspeed_config
from pico_ds.engine.zero_checks import check_zero_settings
from tests.launching import REPOSITORY


def test_shipped_ds_configs_are_accepted() -> None:
    for path in sorted((REPOSITORY / "ds_configs").glob("*.json")):
        check_zero_settings(load_deepspeed_config(path)["zero_optimization"], path.name)


def test_unknown_keys_and_wrong_types_are_clear_errors() -> None:
    with pytest.raises(
        ConfigError, match=r"x\.json: zero_optimization\.overlap_com: unknown key; did you mean overlap_comm"
    ):
        check_zero_settings({"stage": 2, "overlap_com": True}, "x.json")
    with pytest.raises(ConfigError, match=r"zero_optimization\.reduce_bucket_size.*'big'"):
        check_zero_settings({"stage": 2, "reduce_bucket_size": "big"}, "x.json")
