"""Saves under every ZeRO stage and resumes at other world sizes and stages; compares with uninterrupted runs."""

from collections.abc import Callable
from pathlib import Path

import torch

from pico_ds.checkpoint.background_saver import CheckpointSaver
from pico_ds.checkpoint.checkpoint_store import CheckpointStore
from pico_ds.checkpoint.sharded_state_reader import StateReader
from pico_ds.config import CheckpointingConfig, RunConfig
from pico_ds.config.deepspeed_config import load_deepspeed_config, resolve_deepspeed_config
from pico_ds.engine.distributed import Process
from pico_ds.engine.meta_engine import MetaEngine
from pico_ds.engine.optimizer_state import OptimizerState
from pico_ds.meta.functional_model import FunctionalModel
from pico_ds.meta.meta_model_builder import build_meta_model, build_model_skeleton
from pico_ds.runs.resume import Resumer
from scripts.benchmarks.checkpoint import bare_index
from tests.distributed.workers.equivalence import CONFIG, TASKS_PER_STEP, share_of_gradient, train_reference
from tests.fomaml_reference import SHAPE, relative_error

SAVED_AFTER = 3
WORLDS = (1, 2, 3, 4)
CONFIGS = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")


def config_of(precision: str) -> RunConfig:
    training = CONFIG.training.model_copy(update={"precision": precision})
    return CONFIG.model_copy(update={"model": SHAPE, "training": training})


def make_engine(name: str, config: RunConfig, process: Process) -> MetaEngine:
    settings = load_deepspeed_config(f"ds_configs/{name}.json")
    resolved = resolve_deepspeed_config(settings, config, process.world_size)
    module = build_meta_model(SHAPE, config.meta, config.smlmt.n_way, 61, seed=0)
    return MetaEngine(module, config.training, resolved, process)


def take_step(
    engine: MetaEngine, network: FunctionalModel, step: int, pre_optim_step: Callable[[], None] | None = None
) -> None:
    theta = engine.full_parameters(for_update=True)
    gradient = share_of_gradient(network, theta, step, engine.process)
    if pre_optim_step is not None:
        pre_optim_step()
    engine.apply_gradient(gradient, CONFIG.training.lr)


def weights_of(engine: MetaEngine) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in engine.full_parameters().items()}


def save(
    name: str, config: RunConfig, process: Process, network: FunctionalModel, directory: Path
) -> dict[str, torch.Tensor]:
    """Train to the end and save once in between. Returns the final weights."""
    engine = make_engine(name, config, process)
    state, store = OptimizerState(engine), CheckpointStore(directory)
    saver = CheckpointSaver(store, state, process, 1, lambda *_: None, lambda *_: None)
    for step in range(len(TASKS_PER_STEP)):
        if step == SAVED_AFTER:
            saver.start(bare_index(step, state, config))
        take_step(engine, network, step, saver.pre_optim_step)
    saver.finish()
    saver.abandon()
    return weights_of(engine)


def resume(
    name: str, config: RunConfig, process: Process, network: FunctionalModel, directory: Path
) -> dict[str, torch.Tensor]:
    engine = make_engine(name, config, process)
    asked = config.model_copy(update={"checkpointing": CheckpointingConfig(resume="auto")})
    state = OptimizerState(engine)
    point = Resumer(asked, {}, CheckpointStore(directory), state, process).resume()
    assert point is not None
    assert point.index.step == state.steps == SAVED_AFTER
    with StateReader(point.checkpoint) as reader:
        for fragment in state.fragments:
            for kind in ("master", "exp_avg", "exp_avg_sq"):
                wanted = torch.empty(fragment.length)
                reader.read(fragment.name, kind, fragment.offset, wanted)
                assert torch.equal(state.read(fragment, kind).cpu(), wanted), (name, fragment, kind)
    for step in range(SAVED_AFTER, len(TASKS_PER_STEP)):
        take_step(engine, network, step)
    return weights_of(engine)


def same(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(got[name], wanted[name]) for name in wanted)


def save_and_resume(process: Process, directory: str) -> dict[str, bool]:
    """Save and resume under every stage. Returns whether each run equals an uninterrupted run."""
    skeleton = build_model_skeleton(SHAPE, CONFIG.meta, CONFIG.smlmt.n_way, 61)
    results = {}
    for precision, dtype, names in (("fp32", torch.float32, CONFIGS), ("bf16", torch.bfloat16, CONFIGS[1:4])):
        config, network = config_of(precision), FunctionalModel(skeleton, dtype, CONFIG.meta.feature_squared_norm)
        for name in names:
            place = place_of(directory, name, precision, process.world_size)
            uninterrupted = save(name, config, process, network, place)
            results[f"{precision} {name}"] = same(resume(name, config, process, network, place), uninterrupted)
    return results


def resume_all(process: Process, directory: str) -> dict[str, float]:
    """Resume the checkpoints of all world sizes and stages. Returns relative errors against a plain loop."""
    network = FunctionalModel(
        build_model_skeleton(SHAPE, CONFIG.meta, CONFIG.smlmt.n_way, 61),
        torch.float32,
        CONFIG.meta.feature_squared_norm,
    )
    module = build_meta_model(SHAPE, CONFIG.meta, CONFIG.smlmt.n_way, 61, seed=0)
    reference = {name: weight.clone() for name, weight in train_reference(module).items()}
    results = {}
    for source_world in WORLDS:
        for number, source in enumerate(CONFIGS):
            # over all world sizes, every stage is resumed under every other stage
            target = CONFIGS[(number + source_world + process.world_size) % len(CONFIGS)]
            place = place_of(directory, source, "fp32", source_world)
            weights = resume(target, config_of("fp32"), process, network, place)
            error = relative_error(weights, reference)
            results[f"{source} on {source_world} -> {target} on {process.world_size}"] = error
    return results


def place_of(directory: str, name: str, precision: str, world_size: int) -> Path:
    return Path(directory) / f"{precision}-{name}-{world_size}"
