"""Loads and completes DeepSpeed's JSON, which contains only DeepSpeed's own settings. The YAML sets all others."""

import json
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pico_ds.config.schema import RunConfig
from pico_ds.errors import ConfigError

#: top-level keys that a DeepSpeed JSON may set
OWN_KEYS = frozenset(
    {
        "zero_optimization",
        "aio",
        "communication_data_type",
        "comms_logger",
        "wall_clock_breakdown",
        "memory_breakdown",
        "dump_state",
    }
)
#: keys of DeepSpeed that the YAML sets -> the keys of the YAML
_SET_BY_YAML = {
    "train_batch_size": "training.global_batch_size and meta.tasks_per_step",
    "train_micro_batch_size_per_gpu": "training.micro_batch_size",
    "gradient_accumulation_steps": "training.global_batch_size and training.micro_batch_size",
    "gradient_clipping": "training.max_grad_norm",
    "bf16": "training.precision",
    "fp16": "training.precision",
    "optimizer": "training.lr, weight_decay and adam_*",
    "scheduler": "training.lr_schedule and lr_warmup_steps",
}
#: keys of `aio` and their types
_AIO = {
    **dict.fromkeys(("block_size", "queue_depth", "intra_op_parallelism"), int),
    **dict.fromkeys(("single_submit", "overlap_events", "use_gds"), bool),
}


def load_deepspeed_config(path: str | Path) -> dict[str, Any]:
    """Read and check a DeepSpeed JSON.

    Raises:
        ConfigError: the file cannot be read, is not a JSON object, or has an invalid setting.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_reject_duplicates)
    except OSError as error:
        raise ConfigError(f"cannot read the DeepSpeed configuration {path}: {error.strerror}") from error
    except UnicodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error}") from error
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must contain a JSON object, got {type(content).__name__}")
    zero = content.get("zero_optimization")
    if not isinstance(zero, dict) or type(zero.get("stage")) is not int or zero["stage"] not in (0, 1, 2, 3):
        raise ConfigError(f"{path}: zero_optimization.stage must be 0, 1, 2 or 3, got {zero!r}")
    for problem in _problems(content):
        raise ConfigError(f"{path}: {problem}")
    return content


def _problems(content: dict[str, Any]) -> Iterator[str]:
    """Yield problems that DeepSpeed itself reports late or never."""
    for name in ("offload_optimizer", "offload_param"):
        offload = content["zero_optimization"].get(name)
        if offload is None:
            continue
        key = f"zero_optimization.{name}"
        if not isinstance(offload, dict):
            yield f'{key}: got {offload!r}; write an object with a device, such as {{"device": "cpu"}}'
        elif offload.get("device", "none") == "nvme" and not isinstance(offload.get("nvme_path"), str):
            yield f"{key}.nvme_path: got {offload.get('nvme_path')!r}; device nvme needs a directory on a local disk"
    for name in ("cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory"):
        if content["zero_optimization"].get(name) is not None:
            yield f"zero_optimization.{name}: is no longer a key of DeepSpeed; write offload_optimizer or offload_param"
    kind = content.get("communication_data_type")
    if kind not in (None, "fp32", "fp16", "bf16"):
        yield f"communication_data_type: got {kind!r}; write fp32, fp16 or bf16, or leave it out"
    for name in ("aio", "comms_logger"):
        if not isinstance(content.get(name, {}), dict):
            yield f"{name}: got {content[name]!r}; write an object with the keys that DeepSpeed documents"
    for name, value in (content.get("aio") or {}).items():
        if name not in _AIO:
            yield f"aio.{name}: unknown key; allowed: {', '.join(_AIO)}"
        elif type(value) is not _AIO[name] or (type(value) is int and value < 1):
            yield f"aio.{name}: got {value!r}; write {'true or false' if _AIO[name] is bool else 'a positive integer'}"
    for name in ("wall_clock_breakdown", "memory_breakdown", "dump_state"):
        if not isinstance(content.get(name, False), bool):
            yield f"{name}: got {content[name]!r}; write true or false"


def zero_stage(deepspeed_json: dict[str, Any]) -> int:
    """Return the ZeRO stage of a configuration from `load_deepspeed_config`."""
    return int(deepspeed_json["zero_optimization"]["stage"])


def offloads(deepspeed_json: dict[str, Any]) -> bool:
    """Return whether master weights and optimizer moments are offloaded from the device."""
    offload = deepspeed_json["zero_optimization"].get("offload_optimizer") or {}
    return bool(offload.get("device", "none") != "none")


def resolve_deepspeed_config(
    deepspeed_json: dict[str, Any], config: RunConfig, world_size: int, name: str = "the DeepSpeed configuration"
) -> dict[str, Any]:
    """Return the complete configuration for `deepspeed.initialize`.

    One engine step is one outer step. The outer loop accumulates gradients, so DeepSpeed sees one micro-batch.
    `MetaEngine.apply_gradient` clips gradients and skips non-finite ones instead of DeepSpeed, which would read the
    gradient in fp64 and wait for the device.

    Args:
        name: name of the JSON in messages.

    Raises:
        ConfigError: a top-level key is unknown, a key contradicts the YAML, or stage 0 is combined with bf16.
    """
    bf16 = config.training.precision == "bf16"
    from_yaml: dict[str, Any] = {
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.training.max_grad_norm,
        "bf16": {"enabled": bf16},
        "fp16": {"enabled": False},
    }
    for key, value in deepspeed_json.items():
        if key in _SET_BY_YAML:
            if from_yaml.get(key) != value:
                raise ConfigError(
                    f"{name}: {key} is set to {value!r} here, but {_SET_BY_YAML[key]} of the YAML decides it"
                    f"{f' ({from_yaml[key]!r})' if key in from_yaml else ''}; remove it from the JSON"
                )
        elif key not in OWN_KEYS:
            near = get_close_matches(key, OWN_KEYS, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(sorted(OWN_KEYS))}"
            raise ConfigError(f"{name}: unknown top-level key {key!r}; {hint}")
    if bf16 and zero_stage(deepspeed_json) == 0:
        raise ConfigError(
            f"training.precision: bf16 with ZeRO stage 0 ({name}) trains wrongly in DeepSpeed (it makes an optimizer "
            "step during initialisation); use stage 1 (ds_configs/zero1.json), which needs no more memory"
        )
    zero = dict(deepspeed_json["zero_optimization"])
    if zero["stage"] in (1, 2) and not offloads(deepspeed_json):
        zero["compute_grad_norm"] = False
    return {
        **deepspeed_json,
        **from_yaml,
        "zero_optimization": zero,
        "gradient_clipping": 0.0,
        "bf16": {"enabled": bf16, "check_grad_overflow": False},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**12,
    }


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"key {key!r} appears twice in the DeepSpeed configuration; keep one of them")
    return dict(pairs)
