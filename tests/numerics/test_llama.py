"""A Pico decoder as transformers' own LLAMA: the same logits, the same words."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from pico_ds.checkpoint.errors import CheckpointError
from pico_ds.checkpoint.llama_export import export_llama
from pico_ds.data.tokenizer import train_tokenizer
from pico_ds.model.huggingface import PicoDecoderHF, PicoDecoderHFConfig
from pico_ds.model.llama import from_llama, llama_name, to_llama

SHAPE = {"d_model": 48, "n_layers": 3, "vocab_size": 303, "attention_n_heads": 6, "attention_n_kv_heads": 2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("llama") / "checkpoint"
    torch.manual_seed(0)
    config = PicoDecoderHFConfig(**SHAPE, activation_hidden_dim=96, max_seq_len=64, norm_eps=1e-3)
    config.eos_token_id = config.bos_token_id = 302
    config.pad_token_id = 301
    model = PicoDecoderHF(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            # norms as well: a norm of ones would hide that two are exchanged
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.2)
    model.save_pretrained(directory)
    train_tokenizer(["a few words to learn from"] * 3, 300, directory)
    return directory


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> Path:
    count = export_llama(checkpoint, checkpoint.parent / "llama")
    assert count == sum(
        weight.numel() for weight in LlamaForCausalLM.from_pretrained(checkpoint.parent / "llama").parameters()
    )
    return checkpoint.parent / "llama"


def test_logits_are_those_of_the_checkpoint(checkpoint: Path, exported: Path) -> None:
    ids = torch.randint(0, 303, (3, 40), generator=torch.Generator().manual_seed(1))
    pico = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True)
    llama = AutoModelForCausalLM.from_pretrained(exported)
    assert type(llama) is LlamaForCausalLM
    with torch.no_grad():
        wanted, got = pico(ids).logits, llama(ids).logits
    assert float((got - wanted).abs().max() / wanted.abs().max()) < 2e-6
    generated = [model.generate(ids[:1, :5], max_new_tokens=10, do_sample=False) for model in (pico, llama)]
    assert torch.equal(*generated)


def test_nothing_of_the_package_is_needed_and_special_tokens_stay(exported: Path) -> None:
    assert not list(exported.glob("*.py"))
    config = json.loads((exported / "config.json").read_text())
    assert "auto_map" not in config
    assert (config["eos_token_id"], config["pad_token_id"], config["rope_theta"]) == (302, 301, 10000.0)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    ids = tokenizer("a [MASK]")["input_ids"]
    assert tokenizer.convert_tokens_to_ids("[MASK]") in ids


def test_the_way_back_is_exact(checkpoint: Path) -> None:
    model = PicoDecoderHF.from_pretrained(checkpoint)
    names = set()
    for name, weight in model.state_dict().items():
        assert torch.equal(from_llama(name, to_llama(name, weight, 8), 8), weight)
        names.add(llama_name(name))
    assert len(names) == len(model.state_dict())


def test_mistakes_are_said(checkpoint: Path, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is there already"):
        export_llama(checkpoint, exported)
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        export_llama(tmp_path, tmp_path / "out")
    with pytest.raises(CheckpointError, match="is a model of type 'llama'"):
        export_llama(exported, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
