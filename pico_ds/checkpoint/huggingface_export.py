"""Writes the weights of a checkpoint in Hugging Face format."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch

from pico_ds.checkpoint.safetensors_writer import SafetensorsWriter
from pico_ds.checkpoint.sharded_state_reader import StateReader
from pico_ds.config import ModelConfig
from pico_ds.model.meta_model import DECODER
from pico_ds.progress import track

#: file name that transformers expects
WEIGHTS_NAME = "model.safetensors"
#: file of the parameters of the head and the learner
META_NAME = "meta_parameters.safetensors"


def export_weights(
    reader: StateReader,
    directory: Path,
    shape: ModelConfig,
    vocab_size: int,
    dtype: torch.dtype,
    special_token_ids: dict[str, int],
    tokenizer_directory: Path,
) -> None:
    """Write a model that `AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)` loads.

    The weights are the fp32 master weights rounded to `dtype`, which is the precision of training. The parameters of
    the head and the learner are written to `meta_parameters.safetensors`. Memory holds one tensor at a time.

    Args:
        special_token_ids: ids such as `eos_token_id`, which `generate` needs.

    Raises:
        CheckpointError: a file cannot be written, or a shard is damaged.
    """
    from transformers.utils.logging import disable_progress_bar

    from pico_ds.model.huggingface import PicoDecoderHF, PicoDecoderHFConfig

    disable_progress_bar()
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
    # writes configuration and modeling code; the weights are streamed later
    model.save_pretrained(directory, state_dict={})
    (directory / WEIGHTS_NAME).unlink(missing_ok=True)
    for file in tokenizer_directory.iterdir():
        shutil.copy(file, directory / file.name)
    names = list(reader.index.parameters)
    decoder = [name for name in names if name.startswith(DECODER)]
    write_parameters(reader, decoder, directory / WEIGHTS_NAME, dtype)
    if head := [name for name in names if not name.startswith(DECODER)]:
        write_parameters(reader, head, directory / META_NAME, torch.float32)


def write_parameters(reader: StateReader, names: Iterable[str], path: Path, dtype: torch.dtype) -> None:
    """Write whole parameters into one safetensors file, with the names of the decoder's state dict.

    Memory holds one tensor at a time.

    Raises:
        CheckpointError: the file cannot be written, or a shard is damaged.
    """
    chosen = {name.removeprefix(DECODER): name for name in names}
    entries = {short: (dtype, reader.index.parameters[name].shape) for short, name in chosen.items()}
    with SafetensorsWriter(path, entries, {"format": "pt"}) as writer:
        for name in track(chosen.values(), f"writing {path.name}, tensors", len(chosen)):
            writer.append(reader.read_whole(name, "master").to(dtype))
        writer.finish()
