"""Training starts from pretrained weights (`model.init_from`)."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pico_ds.config import ConfigError, ModelConfig
from pico_ds.model.decoder import PicoDecoder
from pico_ds.model.huggingface import PicoDecoderHF, PicoDecoderHFConfig
from pico_ds.model.pretrained import load_initial_weights

SHAPE = {"d_model": 32, "n_layers": 2, "attention_n_heads": 4, "attention_n_kv_heads": 2, "activation_hidden_dim": 64}
IDS = torch.arange(40)[None] % 97


def decoder_of(directory: Path, vocab_size: int = 97, **changes: object) -> PicoDecoder:
    config = ModelConfig.model_validate(
        {**SHAPE, "norm_eps": 1e-5, "vocab_size": vocab_size, "init_from": str(directory), **changes}
    )
    decoder = PicoDecoder(config, vocab_size)
    load_initial_weights(decoder, config)
    return decoder


@pytest.fixture
def llama(tmp_path: Path) -> LlamaForCausalLM:
    return make_llama(tmp_path)


def make_llama(directory: Path, **changes: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    settings = {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.3,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.normal_(1.0, 0.2)
    model.save_pretrained(directory, max_shard_size="20KB")
    return model


def assert_same_logits(decoder: PicoDecoder, wanted: torch.nn.Module) -> None:
    with torch.no_grad():
        logits = wanted(IDS).logits
        assert float((decoder(IDS) - logits).abs().max() / logits.abs().max()) < 2e-6


def test_sharded_llama_weights_keep_their_logits(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_logits(decoder_of(tmp_path), llama)


def test_tied_embedding_initializes_input_and_output(tmp_path: Path) -> None:
    model = make_llama(tmp_path, tie_word_embeddings=True)
    assert_same_logits(decoder_of(tmp_path), model)


@pytest.mark.parametrize("prefix", ["", "pico_decoder."])
def test_pico_checkpoint_keeps_its_logits(prefix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = PicoDecoderHF(PicoDecoderHFConfig(**SHAPE, vocab_size=97, norm_eps=1e-5)).eval()
    # upstream adds a prefix to the names
    model.save_pretrained(tmp_path, state_dict={prefix + name: weight for name, weight in model.state_dict().items()})
    assert_same_logits(decoder_of(tmp_path), model)


def test_embedding_rows_beyond_the_source_keep_their_initialization(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    torch.manual_seed(5)
    decoder = decoder_of(tmp_path, vocab_size=100)
    assert torch.equal(decoder.embedding_proj.weight[:97], llama.model.embed_tokens.weight)
    torch.manual_seed(5)
    assert torch.equal(decoder.embedding_proj.weight[97:], torch.nn.Embedding(100, 32).weight[97:])


def test_norm_epsilon_rounded_to_fp32_is_accepted(tmp_path: Path) -> None:
    """Models converted from GGUF have such a value."""
    model = make_llama(tmp_path, rms_norm_eps=9.999999747378752e-06)
    assert_same_logits(decoder_of(tmp_path), model)


def test_shape_error_lists_every_key_to_change(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        decoder_of(tmp_path, d_model=64, n_layers=3, norm_eps=1e-6)
    message = str(caught.value)
    assert "set model.d_model: 32 (got 64), model.n_layers: 2 (got 3), model.norm_eps: 1e-05 (got 1e-06)" in message
    with pytest.raises(ConfigError, match=r"model\.vocab_size: at least 97 \(got 96\)"):
        decoder_of(tmp_path, vocab_size=96)


def test_unsupported_architectures_are_named(tmp_path: Path) -> None:
    make_llama(tmp_path, attention_bias=True)
    with pytest.raises(ConfigError, match="has attention_bias, which a Pico decoder does not support"):
        decoder_of(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ConfigError, match="has model_type 'gpt2'; the supported types are pico_decoder and llama"):
        decoder_of(tmp_path)


def test_missing_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: cannot be read \(No such file or directory\)"):
        decoder_of(tmp_path)
    with pytest.raises(ConfigError, match="is neither a directory nor a model on the Hub that can be downloaded"):
        decoder_of(tmp_path / "no" / "such" / "place")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 97}))
    with pytest.raises(ConfigError, match="weights must be in safetensors files"):
        decoder_of(tmp_path)
