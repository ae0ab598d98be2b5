"""Writes a small checkpoint in Hugging Face format, with a tokenizer and without a training run."""

from pathlib import Path

import torch

from pico_ds.data.text.tokenizer import train_tokenizer
from pico_ds.model.huggingface import PicoDecoderHF, PicoDecoderHFConfig

SHAPE = {"d_model": 48, "n_layers": 3, "vocab_size": 303, "attention_n_heads": 6, "attention_n_kv_heads": 2}


def write_checkpoint(directory: Path) -> Path:
    """Write random weights and a tokenizer of fewer than 303 entries. Returns `directory`."""
    torch.manual_seed(0)
    config = PicoDecoderHFConfig(**SHAPE, activation_hidden_dim=96, max_seq_len=64, norm_eps=1e-3)
    config.eos_token_id = config.bos_token_id = 302
    config.pad_token_id = 301
    model = PicoDecoderHF(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            # norms are random too: with norms of one, tests would not notice that two of them are swapped
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.2)
    model.save_pretrained(directory)
    train_tokenizer(["a few words to learn from"] * 3, 300, directory)
    return directory
