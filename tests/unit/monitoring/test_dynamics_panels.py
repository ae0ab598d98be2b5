"""The table and the panels of learning dynamics."""

import numpy as np

from pico_ds.dynamics.snapshot_analysis import Measurement
from pico_ds.monitoring.report.dynamics_panels import dynamics_sections, dynamics_table


def test_modules_outside_the_blocks_have_their_own_row_and_panel() -> None:
    layers = ["layers.0.swiglu.w_2", "layers.1.swiglu.w_2", "output_norm", "embedding_proj"]
    found = [Measurement(step, "weights", "norm", layer, 1.0) for step in (0, 5) for layer in layers]
    found += [
        Measurement(0, "attention", "head_entropy", f"layers.{block}.heads.{head}", 0.5)
        for block in range(2)
        for head in range(8)
    ]
    table = dynamics_table(found, "val")
    assert [row[2] for row in table.rows] == ["swiglu.w_2", "output_norm", "embedding_proj", "heads"]
    weights, heads = dynamics_sections(found)
    assert [panel.caption for panel in weights.panels] == ["swiglu.w_2", "output_norm", "embedding_proj"]
    np.testing.assert_array_equal(weights.panels[0].lines[1].x, [0, 5])
    # one panel per block, because the heads of all blocks could not be told apart in one
    assert [panel.caption for panel in heads.panels] == ["heads of layers.0", "heads of layers.1"]
    assert all(len(panel.lines) == 8 for panel in heads.panels)


def test_a_condition_number_beyond_rounding_is_called_singular() -> None:
    values = [Measurement(0, "weights", "condition_number", f"layers.{block}.a", 2e7 * block + 3) for block in range(2)]
    assert dynamics_table(values, "val").rows[0][3] == "singular"
    assert dynamics_table(values[:1], "val").rows[0][3] == "3"
