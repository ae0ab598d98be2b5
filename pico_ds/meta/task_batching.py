"""Groups the tasks of a rank into batches that are computed together."""

from collections.abc import Sequence
from itertools import pairwise

from pico_ds.config import RunConfig
from pico_ds.meta.learners import make_learner
from pico_ds.meta.task_memory import task_bytes
from pico_ds.model.meta_model import MetaModel
from pico_ds.tasks.episode import Episode

#: memory limit of `auto` for the weights and activations of one batch of tasks [bytes]
_AUTO_BYTES = 8 * 2**30


def tasks_per_batch(config: RunConfig, skeleton: MetaModel, on_gpu: bool) -> int:
    """Return `meta.tasks_per_batch`, with `auto` resolved.

    If tasks share their weights, a batch holds as many tasks as fit in memory. If each task adapts its own weights,
    batches help only on a GPU, where small models are limited by kernel launches. Then a batch holds one task if blocks
    are compiled separately, which excludes vmap, or if activations are recomputed to save memory.
    """
    if config.meta.tasks_per_batch != "auto":
        return config.meta.tasks_per_batch
    shared = make_learner(config.meta, skeleton.decoder).shares_weights
    needs_single_tasks = config.training.compile == "block" or config.training.activation_checkpointing != "none"
    if not shared and (needs_single_tasks or not on_gpu):
        return 1
    return max(1, _AUTO_BYTES // sum(task_bytes(skeleton, config).values()))


def batched(episodes: Sequence[Episode], largest: int) -> list[Episode]:
    """Return batches of tasks of equal shape. Their sizes differ by at most one. A single task has no axis of tasks."""
    by_shape: dict[tuple[int, int], list[Episode]] = {}
    for episode in episodes:
        by_shape.setdefault((episode.n_way, len(episode.support.labels)), []).append(episode)
    batches = []
    for of_shape in by_shape.values():
        count = -(-len(of_shape) // largest)
        bounds = [len(of_shape) * part // count for part in range(count + 1)]
        groups = [of_shape[first:end] for first, end in pairwise(bounds)]
        batches += [group[0] if len(group) == 1 else Episode.stack(group) for group in groups]
    return batches
