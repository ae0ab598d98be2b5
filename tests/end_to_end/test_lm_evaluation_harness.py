"""Runs lm-evaluation-harness, unmodified and offline, on a checkpoint and a small task."""

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
    model_options = ["--model", "hf", "--model_args", model, "--device", "cpu", "--batch_size", "3"]
    task_options = ["--tasks", "own_choice", "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
    real.python(
        "-m", "lm_eval", *model_options, *task_options, "--log_samples", HF_DATASETS_CACHE=str(tmp_path / "cache")
    )
    (results,) = (tmp_path / "out").rglob("results_*.json")
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    answers = {sample["doc"]["context"]: sample for sample in map(json.loads, samples.read_text().splitlines())}
    correct = 0
    for question in QUESTIONS:
        expected = [log_likelihood(checkpoint, question["context"], choice) for choice in question["choices"]]
        got = [float(answer[0][0]) for answer in answers[question["context"]]["resps"]]
        assert got == pytest.approx(expected, rel=1e-4)
        correct += expected.index(max(expected)) == question["label"]
    assert json.loads(results.read_text())["results"]["own_choice"]["acc,none"] == correct / len(QUESTIONS)


def log_likelihood(checkpoint: Path, context: str, choice: str) -> float:
    """The log-likelihood of `choice` after `context`, computed directly with the model."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True)
    prompt, whole = (tokenizer(text)["input_ids"] for text in (context, context + choice))
    with torch.no_grad():
        predicted = model(torch.tensor([whole[:-1]])).logits[0].log_softmax(-1)
    return float(sum(predicted[position - 1, whole[position]] for position in range(len(prompt), len(whole))))
