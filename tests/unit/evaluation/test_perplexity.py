"""Tests perplexity against the loss of transformers."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pico_ds.config import MetaConfig, ModelConfig, PerplexityConfig
from pico_ds.data.text.tokenizer import TextTokenizer
from pico_ds.engine.distributed import Process
from pico_ds.errors import DataError
from pico_ds.evaluation.perplexity import (
    Perplexity,
    PerplexityDataset,
    PerplexityResult,
    evaluate_perplexity,
    perplexity_dataset_name,
)
from pico_ds.meta.functional_model import FunctionalModel, Parameters
from pico_ds.meta.meta_model_builder import build_meta_model, build_model_skeleton
from pico_ds.model.huggingface import PicoDecoderHF, PicoDecoderHFConfig
from pico_ds.model.meta_model import DECODER

SHAPE = {
    "d_model": 24,
    "n_layers": 2,
    "attention_n_heads": 4,
    "attention_n_kv_heads": 2,
    "activation_hidden_dim": 48,
    "max_seq_len": 64,
}
VOCAB_SIZE = 600
CPU = Process(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def theta() -> Parameters:
    model = build_meta_model(ModelConfig(**SHAPE, initializer_std=0.3), MetaConfig(), 5, VOCAB_SIZE, seed=0)
    return {name: weight.detach() for name, weight in model.named_parameters()}


@pytest.fixture(scope="module")
def network() -> FunctionalModel:
    return FunctionalModel(build_model_skeleton(ModelConfig(**SHAPE), MetaConfig(), 5, VOCAB_SIZE), torch.float32, 24.0)


def texts() -> list[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    lengths = [2, 3, 7, 64, 64, 65, 90, 130, 190, 33, 1, 64]
    return [(f"domain {number % 3}", rng.integers(0, VOCAB_SIZE, length)) for number, length in enumerate(lengths)]


def hf_losses(theta: Parameters, rows: list[np.ndarray]) -> list[float]:
    """The loss of transformers for each row, computed separately."""
    model = PicoDecoderHF(PicoDecoderHFConfig(vocab_size=VOCAB_SIZE, **SHAPE)).eval()
    model.load_state_dict({name.removeprefix(DECODER): weight for name, weight in theta.items() if DECODER in name})
    with torch.no_grad():
        ids = [torch.from_numpy(row)[None] for row in rows]
        return [float(model(row, labels=row).loss) for row in ids]


def test_perplexity_equals_the_loss_of_transformers(
    network: FunctionalModel, theta: Parameters, tokenizer: TextTokenizer
) -> None:
    rows = PerplexityDataset(texts(), tokenizer, VOCAB_SIZE, length=64)
    result = evaluate_perplexity(network, theta, rows, 4, CPU, lambda: True)
    expected = np.array(hf_losses(theta, rows.rows)) * rows.tokens_of_row
    assert result.total.n_tokens == sum(len(ids) - 1 for _, ids in texts())
    assert result.total.loss == pytest.approx(expected.sum() / result.total.n_tokens, rel=1e-5)
    assert result.total.perplexity == pytest.approx(math.exp(result.total.loss))
    assert list(result.by_domain) == ["domain 0", "domain 1", "domain 2"]
    for number, found in enumerate(result.by_domain.values()):
        here = rows.domain_of_row == number
        assert found.n_tokens == sum(len(ids) - 1 for name, ids in texts() if name == f"domain {number}")
        assert found.loss == pytest.approx(expected[here].sum() / found.n_tokens, rel=1e-5)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 100])
def test_loss_does_not_depend_on_the_micro_batch_size(
    network: FunctionalModel, theta: Parameters, tokenizer: TextTokenizer, micro_batch_size: int
) -> None:
    rows = PerplexityDataset(texts(), tokenizer, VOCAB_SIZE, length=64)
    expected = evaluate_perplexity(network, theta, rows, 4, CPU, lambda: True)
    found = evaluate_perplexity(network, theta, rows, micro_batch_size, CPU, lambda: True)
    assert found.total.loss == pytest.approx(expected.total.loss, rel=1e-6)


def test_windows_predict_every_token_except_the_first_once(tokenizer: TextTokenizer) -> None:
    ids = np.arange(150)
    rows = PerplexityDataset([("a", ids)], tokenizer, VOCAB_SIZE, length=64)
    assert [row.tolist() for row in rows.rows] == [[*range(64)], [*range(63, 127)], [*range(126, 150)]]
    tokens, targets = rows.read(0, 3)
    assert tokens.shape == (3, 65)
    assert sorted(targets[targets != -100].tolist()) == [*range(1, 150)]
    predicted_after = tokens[:, :-1][targets != -100]
    assert torch.equal(predicted_after + 1, targets[targets != -100])


def test_text_is_tokenized_without_special_tokens(tokenizer: TextTokenizer) -> None:
    rows = PerplexityDataset([("a", "the garden"), ("b", "a hammer")], tokenizer, VOCAB_SIZE, length=64)
    assert {tuple(row.tolist()) for row in rows.rows} == {
        tuple(ids) for ids in tokenizer.encode(["the garden", "a hammer"])
    }


def test_unknown_token_ids_and_too_short_texts_fail(tokenizer: TextTokenizer) -> None:
    with pytest.raises(DataError, match=r"token ids from 1 to 600, but the model has 600"):
        PerplexityDataset([("a", np.array([1, 600]))], tokenizer, VOCAB_SIZE, length=64)
    with pytest.raises(DataError, match="no text has two or more tokens"):
        PerplexityDataset([("a", np.array([1]))], tokenizer, VOCAB_SIZE, length=64)


def test_result_survives_a_json_round_trip(tmp_path: Path) -> None:
    result = PerplexityResult(Perplexity(1000.0, 3), {"a": Perplexity(1.0, 2)})
    assert result.total.perplexity == math.inf
    assert result.to_json()["perplexity"] is None
    assert PerplexityResult.from_json(result.to_json()) == result


def test_different_texts_or_settings_give_different_names() -> None:
    configs = [{"data": "a/texts.jsonl"}, {"data": "b/texts.jsonl"}, {"data": "a/texts.jsonl", "max_length": 8}]
    names = {perplexity_dataset_name(PerplexityConfig.model_validate(one)) for one in configs}
    assert len(names) == 3
    assert all(name.startswith("texts_") for name in names)
    assert re.fullmatch(r"of-any_[0-9a-f]{8}", perplexity_dataset_name(PerplexityConfig(data="here/[of] any*.jsonl")))
