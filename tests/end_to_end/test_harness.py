"""lm-evaluation-harness on a checkpoint of a run, unmodified and offline, on a task of its own making."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.hf_checkpoint import write_checkpoint
from tests.launching import real

lm_eval = pytest.importorskip("lm_eval", reason="pip install 'pico_ds[harness]'")

QUESTIONS = [
    {"context": "a few words", "choices": [" to learn", " from a few", " words"], "label": 0},
    {"context": "to learn from", "choices": [" a", " few words to", " learn"], "label": 2},
    {"context": "words to", "choices": [" learn from", " words a", " few"], "label": 1},
    {"context": "from a", "choices": [" few", " to", " from"], "label": 0},
]
TASK = """task: own_choice
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: choices
doc_to_target: label
target_delimiter: ""
metric_list: [{metric: acc}]
"""


@pytest.mark.slow
def test_harness_scores_equal_direct_log_likelihoods(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    data = tmp_path / "own.jsonl"
    data.write_text("\n".join(map(json.dumps, QUESTIONS)))
    (tmp_path / "own_choice.yaml").write_text(TASK.replace("DATA", str(data)))
    model = f"pretrained={checkpoint},trust_remote_code=True,dtype=float32"
    how = ["--model", "hf", "--model_args", model, "--device", "cpu", "--batch_size", "3"]
    where = ["--tasks", "own_choice", "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
    real.python("-m", "lm_eval", *how, *where, "--log_samples", HF_DATASETS_CACHE=str(tmp_path / "cache"))
    (results,) = (tmp_path / "out").rglob("results_*.json")
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    found = {one["doc"]["context"]: one for one in map(json.loads, samples.read_text().splitlines())}
    correct = 0
    for question in QUESTIONS:
        wanted = [log_likelihood(checkpoint, question["context"], choice) for choice in question["choices"]]
        got = [float(answer[0][0]) for answer in found[question["context"]]["resps"]]
        assert got == pytest.approx(wanted, rel=1e-4)
        correct += wanted.index(max(wanted)) == question["label"]
    assert json.loads(results.read_text())["results"]["own_choice"]["acc,none"] == correct / len(QUESTIONS)


def log_likelihood(checkpoint: Path, context: str, choice: str) -> float:
    """Of a continuation, by the model itself."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True)
    known, whole = (tokenizer(text)["input_ids"] for text in (context, context + choice))
    with torch.no_grad():
        predicted = model(torch.tensor([whole[:-1]])).logits[0].log_softmax(-1)
    return float(sum(predicted[place - 1, whole[place]] for place in range(len(known), len(whole))))
