"""The decoder agrees with transformers' Llama, and the HF model agrees with the decoder."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from pico_ds.config import ModelConfig
from pico_ds.model.decoder import PicoDecoder, initialize_weights
from pico_ds.model.huggingface import CACHE_NAME, PicoDecoderHF, PicoDecoderHFConfig

SHAPE = {
    "d_model": 48,
    "n_layers": 3,
    "attention_n_heads": 6,
    "attention_n_kv_heads": 2,
    "activation_hidden_dim": 96,
}
VOCAB_SIZE = 101


def make_decoder(**others: int) -> PicoDecoder:
    shape = ModelConfig(**{**SHAPE, **others})
    decoder = PicoDecoder(shape, VOCAB_SIZE)
    initialize_weights(decoder, std=0.2, generator=torch.Generator().manual_seed(0))
    return decoder


def to_halves(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Reorder the rows of q or k from adjacent rotary pairs (Pico) to halves (Llama)."""
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def llama_twin(decoder: PicoDecoder, shape: ModelConfig) -> LlamaForCausalLM:
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=shape.d_model,
            intermediate_size=shape.activation_hidden_dim,
            num_hidden_layers=shape.n_layers,
            num_attention_heads=shape.attention_n_heads,
            num_key_value_heads=shape.attention_n_kv_heads,
            max_position_embeddings=shape.max_seq_len,
            rms_norm_eps=shape.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": shape.position_emb_theta},
            tie_word_embeddings=False,
        )
    )
    state = decoder.state_dict()
    llama.load_state_dict({llama_name(name): state[name] for name in state})
    for block, pico in zip(llama.model.layers, decoder.layers, strict=True):
        for projection in ("q_proj", "k_proj"):
            weight = getattr(pico.attention, projection).weight.detach()
            getattr(block.self_attn, projection).weight.data.copy_(to_halves(weight, decoder.head_dim))
    return llama


def llama_name(name: str) -> str:
    """The name in Llama of a Pico parameter."""
    for pico, llama in (("de_embedding_proj", "lm_head"), ("embedding_proj", "model.embed_tokens")):
        if name.startswith(pico):
            return name.replace(pico, llama)
    name = "model." + name.replace("output_norm", "norm").replace("attention.", "self_attn.")
    for pico, llama in (
        ("swiglu.w_0", "mlp.gate_proj"),
        ("swiglu.w_1", "mlp.up_proj"),
        ("swiglu.w_2", "mlp.down_proj"),
        ("attention_norm", "input_layernorm"),
        ("swiglu_norm", "post_attention_layernorm"),
    ):
        name = name.replace(pico, llama)
    return name


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_logits_and_gradients_equal_llama(kv_heads: int) -> None:
    decoder = make_decoder(attention_n_kv_heads=kv_heads)
    llama = llama_twin(decoder, ModelConfig(**{**SHAPE, "attention_n_kv_heads": kv_heads}))
    ids = torch.randint(0, VOCAB_SIZE, (3, 40), generator=torch.Generator().manual_seed(1))
    ours, theirs = decoder(ids), llama(ids).logits
    assert (ours - theirs).norm() / theirs.norm() < 1e-5

    for logits in (ours, theirs):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    for name, weight in decoder.named_parameters():
        wanted = llama.get_parameter(llama_name(name)).grad
        got = weight.grad
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            got = to_halves(got, decoder.head_dim)
        assert (got - wanted).norm() / wanted.norm() < 1e-5, name


def test_state_dict_has_the_names_of_pico_train() -> None:
    block = ["attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"]
    block += ["swiglu.w_0", "swiglu.w_1", "swiglu.w_2", "attention_norm", "swiglu_norm"]
    wanted = {"embedding_proj.weight", "output_norm.weight", "de_embedding_proj.weight"}
    wanted |= {f"layers.{layer}.{part}.weight" for layer in range(3) for part in block}
    assert set(make_decoder().state_dict()) == wanted


def test_right_padding_does_not_change_earlier_logits() -> None:
    decoder = make_decoder()
    ids = torch.randint(0, VOCAB_SIZE, (2, 10))
    padded = torch.cat([ids, torch.full((2, 5), VOCAB_SIZE - 1)], dim=1)
    torch.testing.assert_close(decoder.hidden(padded)[:, :10], decoder.hidden(ids))


def test_initial_weights_have_the_configured_scale() -> None:
    decoder = PicoDecoder(ModelConfig(d_model=192, attention_n_heads=6, attention_n_kv_heads=2, n_layers=8), 500)
    initialize_weights(decoder, std=0.02, generator=torch.Generator().manual_seed(0))
    assert abs(decoder.embedding_proj.weight.std().item() - 0.02) < 5e-4
    assert abs(decoder.layers[0].attention.o_proj.weight.std().item() - 0.02 / 4) < 2e-4
    assert (decoder.output_norm.weight == 1).all()


@pytest.fixture
def hf_model() -> PicoDecoderHF:
    torch.manual_seed(0)
    model = PicoDecoderHF(PicoDecoderHFConfig(vocab_size=VOCAB_SIZE, **SHAPE)).eval()
    model.load_state_dict(make_decoder().state_dict())
    return model


def random_ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, VOCAB_SIZE, (rows, length), generator=torch.Generator().manual_seed(2))


def test_hf_model_equals_the_decoder(hf_model: PicoDecoderHF) -> None:
    ids = random_ids(2, 20)
    output = hf_model(ids, labels=ids)
    logits = make_decoder()(ids)
    torch.testing.assert_close(output.logits, logits)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(output.loss, loss)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@pytest.mark.parametrize("pieces", [[5, 15], [1] * 20, [19, 1], [3, 4, 13]])
def test_cached_decoding_equals_uncached(hf_model: PicoDecoderHF, pieces: list[int], name: str) -> None:
    ids = random_ids(2, 20)
    whole = hf_model(ids).logits
    cache, parts = None, []
    for piece in ids.split(pieces, dim=1):
        output = hf_model(piece, use_cache=True, **{name: cache})
        cache = getattr(output, CACHE_NAME)
        parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-5)


def test_left_padding_does_not_change_logits(hf_model: PicoDecoderHF) -> None:
    ids = random_ids(2, 12)
    padded = torch.cat([torch.zeros(2, 4, dtype=torch.long), ids], dim=1)
    mask = torch.cat([torch.zeros(2, 4, dtype=torch.long), torch.ones_like(ids)], dim=1)
    wanted = hf_model(ids).logits
    torch.testing.assert_close(hf_model(padded, attention_mask=mask).logits[:, 4:], wanted, rtol=1e-5, atol=1e-5)
    generated = hf_model.generate(ids, max_new_tokens=8, do_sample=False)
    from_padded = hf_model.generate(padded, attention_mask=mask, max_new_tokens=8, do_sample=False)
    assert torch.equal(generated[:, 12:], from_padded[:, 16:])


def test_generate_is_greedy_decoding(hf_model: PicoDecoderHF) -> None:
    ids = random_ids(1, 5)
    generated = hf_model.generate(ids, max_new_tokens=6, do_sample=False)
    for _ in range(6):
        ids = torch.cat([ids, hf_model(ids).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(generated, ids)


def test_save_and_load_are_bit_identical(hf_model: PicoDecoderHF, tmp_path: Path) -> None:
    hf_model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    for (name, ours), theirs in zip(hf_model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    ids = random_ids(2, 7)
    assert torch.equal(loaded(ids).logits, hf_model(ids).logits)


def test_inputs_embeds_are_rejected(hf_model: PicoDecoderHF) -> None:
    with pytest.raises(ValueError, match="needs input_ids"):
        hf_model(inputs_embeds=torch.zeros(1, 2, 48))
