"""Weights of the decoder in HF format."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from pico_ds.config import ModelConfig
from pico_ds.meta.network import Parameters
from pico_ds.model.meta_model import DECODER


def save_weights(
    theta: Parameters,
    shape: ModelConfig,
    vocab_size: int,
    dtype: torch.dtype,
    special_token_ids: dict[str, int],
    tokenizer_directory: Path,
    checkpoints: Path,
    step: int,
) -> Path:
    """Write `checkpoints/step_<N>`, which `AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True)` loads.

    Everything is written beside its place and renamed, then `latest` is replaced: a directory that exists is complete.
    A meta-learned head goes into `meta_head.safetensors`.

    Args:
        special_token_ids: `eos_token_id` and the like, which `generate` needs.
    """
    from transformers.utils.logging import disable_progress_bar

    from pico_ds.model.huggingface import PicoDecoderHF, PicoDecoderHFConfig

    disable_progress_bar()
    final = checkpoints / f"step_{step}"
    staging = checkpoints / f".step_{step}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    hf_config = PicoDecoderHFConfig(
        d_model=shape.d_model,
        n_layers=shape.n_layers,
        vocab_size=vocab_size,
        attention_n_heads=shape.attention_n_heads,
        attention_n_kv_heads=shape.attention_n_kv_heads,
        activation_hidden_dim=shape.activation_hidden_dim,
        max_seq_len=shape.max_seq_len,
        norm_eps=shape.norm_eps,
        position_emb_theta=shape.position_emb_theta,
        initializer_range=shape.initializer_std,
        dtype=dtype,
    )
    hf_config.update(special_token_ids)
    with torch.device("meta"):
        model = PicoDecoderHF(hf_config)
    decoder = {
        name.removeprefix(DECODER): weight.to("cpu", dtype)
        for name, weight in theta.items()
        if name.startswith(DECODER)
    }
    model.save_pretrained(staging, state_dict=decoder)
    head = {name: weight.cpu().contiguous() for name, weight in theta.items() if not name.startswith(DECODER)}
    if head:
        save_file(head, staging / "meta_head.safetensors")
    for file in tokenizer_directory.iterdir():
        shutil.copy(file, staging / file.name)
    staging.rename(final)
    point_latest(checkpoints, final.name)
    return final


def point_latest(checkpoints: Path, name: str) -> None:
    """Make `latest` name a checkpoint, atomically."""
    partial = checkpoints / ".latest.partial"
    partial.write_text(name + "\n")
    partial.replace(checkpoints / "latest")
