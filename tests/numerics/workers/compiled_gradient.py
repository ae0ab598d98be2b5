"""An evaluation and then a gradient, through inductor; prints the relative error against the eager gradient.

python -m tests.numerics.workers.compiled_gradient [evaluate] [train]
"""

import sys

import torch

from pico_ds.config import MetaConfig
from pico_ds.meta.functional_model import CompileMode, FunctionalModel, Parameters
from pico_ds.meta.gradient_sum import GradientSum
from pico_ds.meta.language_model_gradient import add_language_model_gradient
from pico_ds.meta.meta_model_builder import build_meta_model, build_model_skeleton
from tests.fomaml_reference import SHAPE, adapt_to, add_task_gradient, random_episode, relative_error

META = MetaConfig(inner_steps=3, inner_lr=0.05, head_inner_lr=0.5)
N_WAY = 3


def network_of(mode: CompileMode) -> FunctionalModel:
    return FunctionalModel(
        build_model_skeleton(SHAPE, META, N_WAY, vocab_size=61), torch.float32, META.feature_squared_norm, mode
    )


def gradient_of(network: FunctionalModel, theta: Parameters) -> dict[str, torch.Tensor]:
    total = GradientSum(theta)
    add_task_gradient(network, theta, random_episode(0), "fim", META, total, scale=1.0, measure=False)
    rows = torch.randint(0, 61, (4, 9), generator=torch.Generator().manual_seed(0))
    add_language_model_gradient(network, theta, rows, total, scale=0.1, micro_batch_size=2)
    return total.result()


def main() -> None:
    module = build_meta_model(SHAPE, META, N_WAY, vocab_size=61, seed=0)
    theta = {name: weight.detach() for name, weight in module.named_parameters()}
    network = network_of("model")
    if "evaluate" in sys.argv:
        # the first backward pass frees the graph
        adapt_to(network, theta, random_episode(0), META, steps=1, measure=False)
    if "train" in sys.argv:
        error = relative_error(gradient_of(network, theta), gradient_of(network_of("none"), theta))
        print(f"relative error {error:.3e}")


if __name__ == "__main__":
    main()
