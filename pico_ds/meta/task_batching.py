"""Which tasks of a rank are computed together."""

from collections.abc import Sequence
from itertools import pairwise

from pico_ds.config import RunConfig
from pico_ds.meta.learners import make_learner
from pico_ds.meta.task_memory import task_bytes
from pico_ds.model.meta_model import MetaModel
from pico_ds.tasks.episode import Episode

#: weights and activations of tasks that auto lets stand beside each other [bytes]
_AUTO_BYTES = 8 * 2**30


def tasks_per_batch(config: RunConfig, skeleton: MetaModel, on_gpu: bool) -> int:
    """`meta.tasks_per_batch`, auto resolved.

    Where tasks share their weights, as many as fit go through the model in one pass. Else small models are bound by
    the launches of kernels on a GPU, which a batch of tasks shares; on a CPU they are not. A block that is compiled on
    its own cannot be run for several tasks; and who recomputes activations has no memory for more than one.
    """
    if config.meta.tasks_per_batch != "auto":
        return config.meta.tasks_per_batch
    shared = make_learner(config.meta, skeleton.decoder).shares_weights
    alone = config.training.compile == "block" or config.training.activation_checkpointing != "none"
    if not shared and (alone or not on_gpu):
        return 1
    return max(1, _AUTO_BYTES // sum(task_bytes(skeleton, config).values()))


def batched(episodes: Sequence[Episode], largest: int) -> list[Episode]:
    """Tasks of one shape in batches of one size, give or take one; a batch of one has no axis of tasks."""
    alike: dict[tuple[int, int], list[Episode]] = {}
    for episode in episodes:
        alike.setdefault((episode.n_way, len(episode.support.labels)), []).append(episode)
    batches = []
    for same in alike.values():
        count = -(-len(same) // largest)
        bounds = [len(same) * part // count for part in range(count + 1)]
        groups = [same[first:end] for first, end in pairwise(bounds)]
        batches += [group[0] if len(group) == 1 else Episode.stack(group) for group in groups]
    return batches
