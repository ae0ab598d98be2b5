"""Exports as transformers' LLAMA and in the layout of pico-train keep the logits and the tokens."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from pico_ds.checkpoint.llama_and_pico_train_export import LLAMA, PICO_TRAIN, export_model
from pico_ds.config import ModelConfig
from pico_ds.errors import CheckpointError
from pico_ds.model.decoder import PicoDecoder
from pico_ds.model.huggingface import PicoDecoderHF
from pico_ds.model.llama import from_llama, llama_name, to_llama
from pico_ds.model.pretrained import load_initial_weights
from tests.hf_checkpoint import SHAPE, write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("llama") / "checkpoint")


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> Path:
    count = export_model(checkpoint, checkpoint.parent / "llama", LLAMA)
    assert count == sum(
        weight.numel() for weight in LlamaForCausalLM.from_pretrained(checkpoint.parent / "llama").parameters()
    )
    return checkpoint.parent / "llama"


def test_llama_export_keeps_the_logits(checkpoint: Path, exported: Path) -> None:
    ids = torch.randint(0, 303, (3, 40), generator=torch.Generator().manual_seed(1))
    pico = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True)
    llama = AutoModelForCausalLM.from_pretrained(exported)
    assert type(llama) is LlamaForCausalLM
    with torch.no_grad():
        wanted, got = pico(ids).logits, llama(ids).logits
    assert float((got - wanted).abs().max() / wanted.abs().max()) < 2e-6
    generated = [model.generate(ids[:1, :5], max_new_tokens=10, do_sample=False) for model in (pico, llama)]
    assert torch.equal(*generated)


def test_llama_export_needs_no_package_and_keeps_special_tokens(exported: Path) -> None:
    assert not list(exported.glob("*.py"))
    config = json.loads((exported / "config.json").read_text())
    assert "auto_map" not in config
    assert (config["eos_token_id"], config["pad_token_id"], config["rope_theta"]) == (302, 301, 10000.0)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    ids = tokenizer("a [MASK]")["input_ids"]
    assert tokenizer.convert_tokens_to_ids("[MASK]") in ids


def test_import_of_a_llama_export_is_exact(checkpoint: Path) -> None:
    model = PicoDecoderHF.from_pretrained(checkpoint)
    names = set()
    for name, weight in model.state_dict().items():
        assert torch.equal(from_llama(name, to_llama(name, weight, 8), 8), weight)
        names.add(llama_name(name))
    assert len(names) == len(model.state_dict())


def assert_equal_files(got: Path, wanted: Path) -> None:
    weights = [load_file(path / "model.safetensors") for path in (got, wanted)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.usefixtures("exported")
def test_pico_train_export_has_the_layout_of_pico_train(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "pico"
    export_model(checkpoint, out, PICO_TRAIN)
    with safe_open(out / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
    assert names == {f"pico_decoder.{name}" for name in PicoDecoderHF.from_pretrained(checkpoint).state_dict()}
    config = json.loads((out / "config.json").read_text())
    # the keys that pico-train's modules read from a configuration
    asked = "d_model n_layers vocab_size batch_size max_seq_len attention_n_heads attention_n_kv_heads"
    assert set(f"{asked} activation_hidden_dim norm_eps position_emb_theta".split()) <= config.keys()
    model, wanted = (AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True) for path in (out, checkpoint))
    for (name, ours), theirs in zip(model.state_dict().items(), wanted.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    # export to LLAMA works too, and a second export is identical
    for layout, name in ((LLAMA, "llama"), (PICO_TRAIN, "again")):
        export_model(out, tmp_path / name, layout)
    assert_equal_files(tmp_path / "llama", checkpoint.parent / "llama")
    assert_equal_files(tmp_path / "again", out)
    # training can start from the export
    shape = ModelConfig(**SHAPE, activation_hidden_dim=96, norm_eps=1e-3, init_from=str(out))
    decoder = PicoDecoder(shape, SHAPE["vocab_size"])
    load_initial_weights(decoder, shape)
    assert torch.equal(decoder.layers[1].swiglu.w_2.weight, wanted.layers[1].swiglu.w_2.weight)


def test_invalid_exports_are_clear_errors(checkpoint: Path, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="already exists; choose another directory"):
        export_model(checkpoint, exported, LLAMA)
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        export_model(tmp_path, tmp_path / "out", LLAMA)
    with pytest.raises(CheckpointError, match="has model_type 'llama', not 'pico_decoder'"):
        export_model(exported, tmp_path / "out", PICO_TRAIN)
    assert list(tmp_path.iterdir()) == []
    odd = tmp_path / "odd"
    shutil.copytree(checkpoint, odd)
    weights = load_file(checkpoint / "model.safetensors")
    save_file({name: weight.half() for name, weight in weights.items()}, odd / "model.safetensors")
    export_model(odd, tmp_path / "half", LLAMA)
    assert {weight.dtype for weight in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.float16}
    save_file({name: weight.double() for name, weight in weights.items()}, odd / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .* has type F64; the supported types are F32"):
        export_model(odd, tmp_path / "out", LLAMA)
    save_file({"lora.weight": torch.zeros(2)}, odd / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: lora\.weight is not a parameter of a decoder"):
        export_model(odd, tmp_path / "out", LLAMA)
