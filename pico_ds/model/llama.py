"""Converts weights between a Pico decoder and transformers' LLAMA.

The two differ in parameter names and in how rotary embeddings pair the features of a head: Pico rotates neighbours
(2i, 2i + 1), transformers' LLAMA rotates halves (i, i + head_dim / 2). Permuting the rows of the query and key
projections converts between the two and does not change the logits.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor

_NAMES_OUTSIDE_BLOCKS = MappingProxyType(
    {
        "embedding_proj.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "de_embedding_proj.weight": "lm_head.weight",
    }
)
_NAMES_IN_BLOCKS: Mapping[str, str] = MappingProxyType(
    {
        "attention.q_proj": "self_attn.q_proj",
        "attention.k_proj": "self_attn.k_proj",
        "attention.v_proj": "self_attn.v_proj",
        "attention.o_proj": "self_attn.o_proj",
        "swiglu.w_0": "mlp.gate_proj",
        "swiglu.w_1": "mlp.up_proj",
        "swiglu.w_2": "mlp.down_proj",
        "attention_norm": "input_layernorm",
        "swiglu_norm": "post_attention_layernorm",
    }
)
_BLOCK = re.compile(r"layers\.(\d+)\.(.+)\.weight")
_ROTATED = ("attention.q_proj.weight", "attention.k_proj.weight")


def llama_name(name: str) -> str:
    """Return the name of a decoder parameter in `LlamaForCausalLM`.

    Raises:
        ValueError: the decoder has no such parameter.
    """
    if name in _NAMES_OUTSIDE_BLOCKS:
        return _NAMES_OUTSIDE_BLOCKS[name]
    match = _BLOCK.fullmatch(name)
    if match is None or match[2] not in _NAMES_IN_BLOCKS:
        raise ValueError(f"{name} is not a parameter of a decoder")
    return f"model.layers.{match[1]}.{_NAMES_IN_BLOCKS[match[2]]}.weight"


def to_llama(name: str, weight: Tensor, head_dim: int) -> Tensor:
    """Convert the decoder parameter `name` to the LLAMA parameter `llama_name(name)`."""
    if not name.endswith(_ROTATED):
        return weight
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def from_llama(name: str, weight: Tensor, head_dim: int) -> Tensor:
    """Convert the LLAMA parameter `llama_name(name)` to the decoder parameter `name`."""
    if not name.endswith(_ROTATED):
        return weight
    return weight.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)
