"""Tables and figures of learning dynamics."""

from pico_ds.dynamics.snapshot_analysis import Measurement
from pico_ds.monitoring.report.dynamics_figures import dynamics_plots, dynamics_table


def test_modules_outside_the_blocks_have_a_row_and_a_panel_of_their_own() -> None:
    layers = ["layers.0.swiglu.w_2", "layers.1.swiglu.w_2", "output_norm", "embedding_proj"]
    found = [Measurement(step, "weights", "norm", layer, 1.0) for step in (0, 5) for layer in layers]
    found += [
        Measurement(0, "attention", "head_entropy", f"layers.{block}.heads.{head}", 0.5)
        for block in range(2)
        for head in range(8)
    ]
    table = dynamics_table(found, "val")
    assert list(table.columns[2].cells) == ["swiglu.w_2", "output_norm", "embedding_proj", "heads"]
    weights, heads = dynamics_plots(found)
    panels = [panel.get_title() for panel in weights.figure.axes if panel.get_title()]
    assert panels == ["swiglu.w_2", "output_norm", "embedding_proj"]
    # by block: the heads of all of them could not be told apart
    assert [panel.get_title() for panel in heads.figure.axes] == ["heads of layers.0", "heads of layers.1"]
    assert all(len(panel.get_legend().get_texts()) == 8 for panel in heads.figure.axes)


def test_a_condition_number_that_is_rounding_noise_is_no_number() -> None:
    values = [Measurement(0, "weights", "condition_number", f"layers.{block}.a", 2e7 * block + 3) for block in range(2)]
    assert [*dynamics_table(values, "val").columns[3].cells] == ["singular"]
    assert [*dynamics_table(values[:1], "val").columns[3].cells] == ["3"]
