"""The Pico decoder as a transformers model.

A checkpoint contains a copy of this file and of the files that it imports from this folder, so that
`AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True)` works without pico_ds. Imports from this folder are
therefore relative, and nothing else of pico_ds is imported.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import can_return_tuple

from .attention import Attend
from .decoder import PicoDecoder

# transformers 5.24 renamed `past_key_values` to `cache`. A model that accepts only the old name would silently lose its
# cache among the keyword arguments.
CACHE_NAME = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"


class PicoDecoderHFConfig(PretrainedConfig):
    """Configuration of a PicoDecoderHF. Names are those of pico-train; transformers' names are aliases."""

    model_type = "pico_decoder"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "attention_n_heads",
        "num_key_value_heads": "attention_n_kv_heads",
        "intermediate_size": "activation_hidden_dim",
        "max_position_embeddings": "max_seq_len",
    }

    def __init__(
        self,
        d_model: int = 96,
        n_layers: int = 12,
        vocab_size: int = 50304,
        attention_n_heads: int = 12,
        attention_n_kv_heads: int = 4,
        activation_hidden_dim: int = 384,
        max_seq_len: int = 2048,
        norm_eps: float = 1e-6,
        position_emb_theta: float = 10000.0,
        initializer_range: float = 0.02,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ) -> None:
        self.d_model = d_model
        self.n_layers = n_layers
        self.vocab_size = vocab_size
        self.attention_n_heads = attention_n_heads
        self.attention_n_kv_heads = attention_n_kv_heads
        self.activation_hidden_dim = activation_hidden_dim
        self.max_seq_len = max_seq_len
        self.norm_eps = norm_eps
        self.position_emb_theta = position_emb_theta
        self.initializer_range = initializer_range
        self.tie_word_embeddings = tie_word_embeddings
        super().__init__(**kwargs)


class PicoDecoderHF(PicoDecoder, PreTrainedModel, GenerationMixin):
    """PicoDecoder with transformers' loading, key-value cache, masks and `generate`."""

    config_class = PicoDecoderHFConfig
    # prefix of names in pico-train checkpoints; transformers strips it when loading
    base_model_prefix = "pico_decoder"
    _tied_weights_keys = {}  # noqa: RUF012
    _no_split_modules = ["DecoderBlock"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: PicoDecoderHFConfig) -> None:
        PreTrainedModel.__init__(self, config)
        decoder = PicoDecoder(config, config.vocab_size)
        self.head_dim, self.theta = decoder.head_dim, decoder.theta
        for name, module in decoder.named_children():
            self.add_module(name, module)
        for layer, block in enumerate(self.layers):
            attention: Any = block.attention
            # attributes that transformers' attention functions read
            attention.config, attention.layer_idx, attention.is_causal = config, layer, True
            attention.num_key_value_groups = config.attention_n_heads // config.attention_n_kv_heads
        self.post_init()

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embedding_proj

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        self.embedding_proj = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.de_embedding_proj

    def set_output_embeddings(self, new_embeddings: torch.nn.Module) -> None:
        self.de_embedding_proj = new_embeddings  # type: ignore[assignment]

    # no **kwargs, so that a renamed or misspelled keyword raises an error instead of being ignored
    @can_return_tuple
    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
    ) -> CausalLMOutputWithPast:
        """Return logits, the cache, and the mean next-token loss if `labels` (`[batch, seq]`, -100 ignored) are given.

        `cache` and `past_key_values` are the names of one argument since and before transformers 5.24. Hidden states
        are the input of every block and the normalised output of the last; attentions need
        `attn_implementation="eager"`.
        """
        if input_ids is None or inputs_embeds is not None:
            raise ValueError("PicoDecoderHF needs input_ids and does not support inputs_embeds")
        if cache is not None and past_key_values is not None:
            raise ValueError("got both cache and past_key_values, two names of one argument; pass only one of them")
        cache = past_key_values if cache is None else cache
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        seen = cache.get_seq_length() if cache is not None else 0
        if position_ids is None:
            if attention_mask is not None and attention_mask.ndim == 2:
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
            else:
                position_ids = torch.arange(seen, seen + input_ids.shape[1], device=input_ids.device)[None]
        attentions: list[Tensor] | None = [] if self._is_requested("attentions", output_attentions) else None
        if attentions is not None and self.config._attn_implementation != "eager":
            raise ValueError(
                f"output_attentions: {self.config._attn_implementation} attention does not return attention weights; "
                'load the model with attn_implementation="eager"'
            )
        states: list[Tensor] | None = [] if self._is_requested("hidden_states", output_hidden_states) else None
        attend = self._attend(input_ids, attention_mask, position_ids, cache, attentions)
        hidden = self.hidden(input_ids, position_ids, attend, states=states)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.de_embedding_proj(hidden[:, kept, :])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        output: dict[str, Any] = {"loss": loss, "logits": logits, CACHE_NAME: cache}
        if states is not None:
            output["hidden_states"] = (*states, hidden)
        if attentions is not None:
            output["attentions"] = tuple(attentions)
        return CausalLMOutputWithPast(**output)

    def _is_requested(self, name: str, argument: bool | None) -> bool:
        return bool(getattr(self.config, f"output_{name}", False) if argument is None else argument)

    def _attend(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor,
        cache: Cache | None,
        attentions: list[Tensor] | None,
    ) -> Attend:
        cache_argument: dict[str, Any] = {CACHE_NAME: cache}
        mask: Any = create_causal_mask(
            config=self.config,
            inputs_embeds=torch.empty((*input_ids.shape, 0), dtype=self.dtype, device=input_ids.device),
            attention_mask=attention_mask,
            position_ids=position_ids,
            **cache_argument,
        )
        kernel = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)

        def attend(queries: Tensor, keys: Tensor, values: Tensor, layer: int) -> Tensor:
            if cache is not None:
                keys, values = cache.update(keys, values, layer)
            # with device_map, blocks may be on different devices
            local_mask = mask.to(queries.device) if isinstance(mask, Tensor) else mask
            attention = self.layers[layer].attention
            mixed, weights = kernel(
                attention, queries, keys, values, local_mask, dropout=0.0, scaling=self.head_dim**-0.5
            )
            if attentions is not None:
                attentions.append(weights)
            return mixed.transpose(1, 2)

        return attend


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Compute attention by explicit matrix products, with the interface of transformers' attention functions.

    Args:
        query: `[batch, heads, seq, head_dim]`; key and value are `[batch, kv_heads, cached, head_dim]`.
        attention_mask: added to the scores, `[batch or 1, 1, seq, cached]`.

    Returns:
        the output, `[batch, seq, heads, head_dim]`, and the attention weights, `[batch, heads, seq, cached]`.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


PicoDecoderHFConfig.register_for_auto_class()
PicoDecoderHF.register_for_auto_class("AutoModelForCausalLM")
