"""The Python interface that notebooks use."""

import subprocess
import sys
from pathlib import Path

import pico_ds
from tests.launching import REPOSITORY, environment
from tests.run_results import TINY
from tests.shared_runs import SharedRuns

TRAIN = """
import sys
import pico_ds

config = pico_ds.load_config(sys.argv[1], sys.argv[2:])
corpus = pico_ds.open_corpus(config)
task = pico_ds.build_tasks(config, corpus).sample(step=0, index=0)
model = pico_ds.build_model(config, corpus)
assert len(pico_ds.adapt(model, task, config.smlmt.readout, steps=2).accuracies) == 3
run = pico_ds.train(config)
assert run.step == 4, run.step
longer = config.model_copy(update={"training": config.training.model_copy(update={"max_steps": 6})})
run = pico_ds.train(longer)
print("trained", run.step, sorted(run.layer("layers.0.attention.v_proj")))
"""


def test_importing_pico_ds_does_not_import_torch() -> None:
    code = "import sys, pico_ds; dir(pico_ds); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


def test_all_exported_names_exist() -> None:
    assert all(getattr(pico_ds, name) is not None for name in pico_ds.__all__)


def test_loaded_run_adapts_and_evaluates(shared_runs: SharedRuns) -> None:
    run = pico_ds.load_run(shared_runs["plain"])
    task = run.tasks("test").sample(step=0, index=0)
    assert "[MASK]" in pico_ds.show_task(task, run.corpus)
    learner = pico_ds.make_learner(run.config, run.model)
    assert learner.config == run.config.meta
    accuracies = run.adapt(task, steps=2).accuracies
    result = run.evaluate(n_tasks=2, split="test", steps=2)
    assert [values[0] for values in result.tasks.by_step] == accuracies
    assert "% before adaptation" in str(result)


def test_one_process_trains_and_resumes(shared_runs: SharedRuns, tmp_path: Path) -> None:
    _, _, config, *settings = shared_runs.arguments(tmp_path, "trained")
    steps = ["training.max_steps=4", "learning_dynamics.save_every_n_steps=4", "evaluation.n_tasks=2"]
    process = subprocess.run(
        [sys.executable, "-c", TRAIN, config, *settings, *steps],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert "trained 6 [0, 4]" in process.stdout, process.stderr
    assert config == TINY
