"""Writes the README of a repository: the model, its training, its results, and how to load it."""

from collections.abc import Mapping

from huggingface_hub import ModelCardData

from pico_ds.config import RunConfig, dump_config
from pico_ds.evaluation.evaluator import EvaluationResult
from pico_ds.evaluation.few_shot import Estimate
from pico_ds.version import __version__


def model_card(repo_id: str, config: RunConfig, step: int, results: Mapping[int, EvaluationResult]) -> str:
    """Return the README as Markdown, with the metadata of the hub.

    Args:
        step: outer step of the weights.
        results: results of the evaluations, by step.
    """
    model, data, learner = config.model, config.data, config.meta.learner
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["pico", "pico_ds", "meta-learning", learner],
    )
    revision = config.checkpointing.hub.revision
    place = f'"{repo_id}", ' + ("" if revision is None else f'revision="{revision}", ')
    source = data.source if data.source != "files" else f"local files: {', '.join(data.paths)}"
    kind = "autoregressive training" if config.meta_ratio == 0 else f"meta-learning by `{learner}` on SMLMT tasks"
    return f"""---
{metadata.to_yaml()}
---

# {repo_id.rsplit("/", 1)[-1]}

A Pico language model (LLAMA-style decoder): {model.n_layers} layers of width {model.d_model},
{model.attention_n_heads} query and {model.attention_n_kv_heads} key/value heads, {model.vocab_size:,} tokens,
sequences of up to {model.max_seq_len}. These are the weights after
{step:,} of {config.training.max_steps:,} outer steps of {kind}, by pico_ds {__version__}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({place}trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained({place}trust_remote_code=True)
```

## Data

{source}; rows of {data.sequence_length} tokens; {100 * data.validation_fraction:g} % of the documents are held out.

## Results

{_results(config, results)}

`eval_results/` has the accuracy of each task and `logs/metrics.jsonl` the training metrics. If the run records learning
dynamics, `learning_dynamics/step_<N>/` has the snapshots.

## Configuration

```yaml
{dump_config(config).rstrip()}
```
"""


def _results(config: RunConfig, results: Mapping[int, EvaluationResult]) -> str:
    if not results:
        return "There are no evaluations yet."
    smlmt, steps = config.smlmt, config.evaluation.adaptation_steps
    lines = [
        f"Few-shot accuracy: {smlmt.n_ways[1]}-way {smlmt.k_shots[1]}-shot, held-out {config.evaluation.word_split} "
        f"words in held-out documents, before and after {steps} steps of adaptation [%, 95 % interval]; loss in nats "
        "per token.",
        "",
        "| step | validation loss | perplexity | readout | before | after |",
        "|---|---|---|---|---|---|",
    ]
    for step, result in sorted(results.items()):
        loss = "" if result.validation_loss is None else f"{result.validation_loss:.3f}"
        perplexity = "" if result.perplexity is None else f"{result.perplexity.total.perplexity:,.1f}"
        by_readout: list[tuple[str, str, str]] = [
            (readout, Estimate.of(found.before).percent(), Estimate.of(found.after).percent())
            for readout, found in result.few_shot.items()
        ]
        for readout, before, after in by_readout or [("", "", "")]:
            lines.append(f"| {step} | {loss} | {perplexity} | {readout} | {before} | {after} |")
    return "\n".join(lines)
