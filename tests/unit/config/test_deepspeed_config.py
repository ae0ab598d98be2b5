import json
from pathlib import Path
from typing import Any

import pytest

from pico_ds.config import ConfigError, parse_config
from pico_ds.config.deepspeed_config import load_deepspeed_config, offloads, resolve_deepspeed_config

CONFIG = parse_config("training: {precision: bf16, max_grad_norm: 0.7}")
ZERO1 = {"zero_optimization": {"stage": 1}}


def test_batch_precision_and_clipping_come_from_the_yaml() -> None:
    settings = resolve_deepspeed_config(ZERO1, CONFIG, world_size=4)
    assert settings["gradient_clipping"] == 0.0, "the engine clips"
    assert settings["bf16"] == {"enabled": True, "check_grad_overflow": False}
    assert settings["train_batch_size"] == 4
    assert settings["gradient_accumulation_steps"] == 1
    assert settings["zero_optimization"] == {"stage": 1, "compute_grad_norm": False}


@pytest.mark.parametrize(
    ("zero", "expected"),
    [
        ({"stage": 2}, False),
        # DeepSpeed always computes the norm here
        ({"stage": 0}, None),
        ({"stage": 3}, None),
        ({"stage": 2, "offload_optimizer": {"device": "cpu"}}, None),
    ],
)
def test_gradient_norm_is_computed_once(zero: dict, expected: bool | None) -> None:
    settings = resolve_deepspeed_config({"zero_optimization": zero}, parse_config(""), world_size=1)
    assert settings["zero_optimization"].get("compute_grad_norm") is expected
    assert "compute_grad_norm" not in zero, "the argument is not modified"


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"gradient_clipping": 0.5}, ["gradient_clipping", "0.5", "training.max_grad_norm", "0.7"]),
        ({"train_batch_size": 99}, ["train_batch_size", "training.global_batch_size"]),
        ({"optimizer": {"type": "AdamW"}}, ["optimizer", "training.lr"]),
        ({"bf16": {"enabled": False}}, ["bf16", "training.precision"]),
        ({"zero_optimisation": {}}, ["unknown top-level key 'zero_optimisation'", "zero_optimization?"]),
        ({"nonsense": 1}, ["unknown top-level key 'nonsense'", "allowed:"]),
    ],
)
def test_deepspeed_json_must_not_set_keys_of_the_yaml(extra: dict, expected: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_deepspeed_config({**ZERO1, **extra}, CONFIG, world_size=4)
    for part in expected:
        assert part in str(caught.value)


def test_deepspeed_json_may_repeat_values_of_the_yaml() -> None:
    resolve_deepspeed_config({**ZERO1, "gradient_clipping": 0.7, "bf16": {"enabled": True}}, CONFIG, world_size=4)


def test_stage_0_with_bf16_is_rejected() -> None:
    with pytest.raises(ConfigError, match="use stage 1"):
        resolve_deepspeed_config({"zero_optimization": {"stage": 0}}, CONFIG, world_size=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "not valid JSON"),
        ("[]", "must contain a JSON object"),
        ("{}", "zero_optimization.stage must be 0, 1, 2 or 3"),
        ('{"zero_optimization": {"stage": 5}}', "must be 0, 1, 2 or 3"),
        ('{"zero_optimization": {"stage": 1, "stage": 2}}', "appears twice"),
    ],
)
def test_invalid_deepspeed_json_is_a_clear_error(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected.replace(".", r"\.")):
        load_deepspeed_config(path)


def test_optimizer_offload_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "offload.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}))
    assert offloads(load_deepspeed_config(path))
    assert not offloads(ZERO1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"zero_optimization": {"stage": True}}, "zero_optimization.stage must be 0, 1, 2 or 3"),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}},
            "zero_optimization.offload_optimizer.nvme_path: got None; device nvme needs a directory on a local disk",
        ),
        (
            {"zero_optimization": {"stage": 2, "cpu_offload": True}},
            "zero_optimization.cpu_offload: is no longer a key of DeepSpeed",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_param": "cpu"}},
            "zero_optimization.offload_param: got 'cpu'; write",
        ),
        ({"zero_optimization": {"stage": 1}, "communication_data_type": "fp8"}, "got 'fp8'; write fp32, fp16 or bf16"),
        ({"zero_optimization": {"stage": 1}, "aio": "x"}, "aio: got 'x'; write an object"),
        (
            {"zero_optimization": {"stage": 1}, "aio": {"queue_depth": "8"}},
            "aio.queue_depth: got '8'; write a positive",
        ),
    ],
)
def test_late_deepspeed_errors_are_reported_at_once(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "zero.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError) as caught:
        load_deepspeed_config(tmp_path / "zero.json")
    assert message in str(caught.value)
