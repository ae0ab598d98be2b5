"""Users of transformers load and call a checkpoint in these ways."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AutoModelForCausalLM

from pico_ds.model.huggingface import PicoDecoderHF, PicoDecoderHFConfig, eager_attention

SHAPE = {
    "d_model": 64,
    "n_layers": 3,
    "attention_n_heads": 4,
    "attention_n_kv_heads": 2,
    "activation_hidden_dim": 96,
    "vocab_size": 101,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config: Any = PicoDecoderHFConfig(initializer_range=0.2, **SHAPE)
    model, directory = PicoDecoderHF(config), tmp_path_factory.mktemp("hf") / "model"
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(directory)
    return directory


def load(directory: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True, **options).eval()


def batch() -> dict[str, torch.Tensor]:
    """Two rows. The second row has 4 padding tokens on the left."""
    ids = torch.randint(0, SHAPE["vocab_size"], (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    return {"input_ids": ids, "attention_mask": mask}


def real(logits: torch.Tensor) -> torch.Tensor:
    """Logits of positions that are not padding."""
    return logits[batch()["attention_mask"].bool()]


@torch.no_grad()
def test_attention_implementations_agree(saved: Path) -> None:
    sdpa, eager = load(saved), load(saved, attn_implementation="eager")
    assert (sdpa.config._attn_implementation, eager.config._attn_implementation) == ("sdpa", "eager")
    torch.testing.assert_close(real(eager(**batch()).logits), real(sdpa(**batch()).logits), rtol=1e-5, atol=1e-5)
    told = [model.generate(**batch(), max_new_tokens=6, do_sample=False) for model in (sdpa, eager)]
    assert torch.equal(*told)


@torch.no_grad()
def test_requested_attention_implementation_is_called(saved: Path) -> None:
    layers: list[int] = []

    def recorded(module: Any, *tensors: torch.Tensor, **options: Any) -> Any:
        layers.append(module.layer_idx)
        return eager_attention(module, *tensors, **options)

    AttentionInterface.register("recorded", recorded)
    model = load(saved, attn_implementation="recorded")
    model(batch()["input_ids"])
    assert layers == [0, 1, 2]


@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("flash_attn") is None, reason="needs a GPU and flash-attn"
)
@torch.no_grad()
def test_flash_attention_2(saved: Path) -> None:
    inputs = {name: tensor.cuda() for name, tensor in batch().items()}
    flash, sdpa = (
        load(saved, attn_implementation=kernel, dtype=torch.bfloat16, device_map="cuda")
        for kernel in ("flash_attention_2", "sdpa")
    )
    assert flash.config._attn_implementation == "flash_attention_2"
    ours, wanted = (real(model(**inputs).logits.cpu().float()) for model in (flash, sdpa))
    assert (ours - wanted).norm() / wanted.norm() < 2e-2


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_flash_attention_2_fails_only_without_its_package(saved: Path) -> None:
    with pytest.raises(ImportError, match="FlashAttention2"):
        load(saved, attn_implementation="flash_attention_2")


@torch.no_grad()
def test_bf16(saved: Path) -> None:
    model, exact = load(saved, dtype=torch.bfloat16), load(saved)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    ours, wanted = real(model(**batch()).logits), real(exact(**batch()).logits)
    assert ours.dtype == torch.bfloat16
    assert (ours.float() - wanted).norm() / wanted.norm() < 3e-2
    assert model.generate(**batch(), max_new_tokens=4, do_sample=False).shape == (2, 16)


@torch.no_grad()
@pytest.mark.parametrize("placed", ["cpu", "auto", "layers on disk"])
def test_device_map(saved: Path, tmp_path: Path, placed: str) -> None:
    names = ["embedding_proj", "layers.0", "layers.1", "layers.2", "output_norm", "de_embedding_proj"]
    where: Any = placed
    if placed == "layers on disk":
        where = dict.fromkeys(names, "cpu") | {"layers.1": "disk", "embedding_proj": "disk"}
    model, exact = load(saved, device_map=where, offload_folder=tmp_path), load(saved)
    # `auto` uses a GPU if there is one
    exact = exact.to(model.device) if placed == "auto" else exact
    inputs = {name: tensor.to(exact.device) for name, tensor in batch().items()}
    assert torch.equal(real(model(**inputs).logits), real(exact(**inputs).logits))
    told = [each.generate(**inputs, max_new_tokens=4, do_sample=False) for each in (model, exact)]
    assert torch.equal(*told)


@torch.no_grad()
def test_hidden_states_and_attentions(saved: Path) -> None:
    model = load(saved, attn_implementation="eager")
    output = model(**batch(), output_hidden_states=True, output_attentions=True)
    states = output.hidden_states
    assert len(states) == SHAPE["n_layers"] + 1
    assert torch.equal(states[0], model.embedding_proj(batch()["input_ids"]))
    assert torch.equal(model.de_embedding_proj(states[-1]), output.logits)
    assert len(output.attentions) == SHAPE["n_layers"]
    assert output.attentions[0].shape == (2, SHAPE["attention_n_heads"], 12, 12)
    of_row = output.attentions[1][1, :, 4:]
    torch.testing.assert_close(of_row.sum(-1), torch.ones(SHAPE["attention_n_heads"], 8))
    assert (of_row[..., :4] == 0).all(), "no token attends to padding"
    assert model(**batch()).hidden_states is None
    assert model(**batch(), return_dict=False)[0].shape == output.logits.shape


def test_output_attentions_fails_for_a_fused_kernel(saved: Path) -> None:
    with pytest.raises(ValueError, match='attn_implementation="eager"'):
        load(saved)(**batch(), output_attentions=True)


def test_misspelled_keyword_argument_fails(saved: Path) -> None:
    with pytest.raises(TypeError, match="atention_mask"):
        load(saved)(batch()["input_ids"], atention_mask=batch()["attention_mask"])
