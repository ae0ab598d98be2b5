import pytest

from pico_ds.config import ConfigError, RunConfig, parse_config
from pico_ds.meta.meta_model_builder import build_model_skeleton
from pico_ds.meta.task_batching import batched, tasks_per_batch
from pico_ds.meta.task_memory import task_bytes
from tests.fomaml_reference import random_episode


@pytest.mark.parametrize(
    ("count", "largest", "sizes"), [(0, 3, []), (1, 3, [None]), (3, 3, [3]), (7, 3, [2, 2, 3]), (4, 1, [None] * 4)]
)
def test_batch_sizes_differ_by_at_most_one(count: int, largest: int, sizes: list[int | None]) -> None:
    episodes = [random_episode(i) for i in range(count)]
    batches = batched(episodes, largest)
    assert [batch.n_tasks for batch in batches] == sizes
    assert sum((batch.words for batch in batches), ()) == sum((episode.words for episode in episodes), ())


def test_auto_batches_small_models_on_a_gpu() -> None:
    auto = RunConfig()
    body = build_model_skeleton(auto.model, auto.meta, auto.smlmt.n_way, vocab_size=5000)
    assert tasks_per_batch(auto, body, on_gpu=False) == 1
    count = tasks_per_batch(auto, body, on_gpu=True)
    each = sum(task_bytes(body, auto).values())
    assert count * each <= 8 * 2**30 < (count + 1) * each
    assert count > 16
    wide = parse_config("{model: {d_model: 2048, activation_hidden_dim: 8192, attention_n_heads: 16}}")
    assert tasks_per_batch(wide, build_model_skeleton(wide.model, wide.meta, 5, vocab_size=50304), on_gpu=True) == 1
    many = parse_config("{smlmt: {n_way: 32, k_shot: 100}}")
    assert tasks_per_batch(many, body, on_gpu=True) < count / 32, "the limit includes activations"
    assert tasks_per_batch(parse_config("{meta: {tasks_per_batch: 3}}"), body, on_gpu=False) == 3
    assert tasks_per_batch(parse_config("{training: {compile: block}}"), body, on_gpu=True) == 1
    assert tasks_per_batch(parse_config("{training: {activation_checkpointing: block}}"), body, on_gpu=True) == 1
    several = "{meta: {tasks_per_batch: 3}, training: {activation_checkpointing: block, compile: MODE}}"
    assert tasks_per_batch(parse_config(several.replace("MODE", "model")), body, on_gpu=True) == 3
    with pytest.raises(ConfigError, match=r"got 3 with training\.activation_checkpointing: block"):
        parse_config(several.replace("MODE", "auto"))
    with pytest.raises(ConfigError, match=r"got 3 with training\.compile: block"):
        parse_config("{meta: {tasks_per_batch: 3}, training: {compile: block}}")
