"""Panels of the report: bands, thinning, labels."""

import numpy as np

from pico_ds.monitoring.report.panels import Line, Panel, group_colours


def test_a_band_surrounds_its_line_and_has_no_hover_entry() -> None:
    x = np.array([0.0, 1.0])
    line = Line("run", "#0072B2", x, np.array([2.0, 3.0]), np.array([1.0, 2.5]), np.array([4.0, 3.5]))
    band, curve = Panel("caption", "tokens", "loss", [line]).figure().data
    np.testing.assert_array_equal(band.x, [0, 1, 1, 0])
    np.testing.assert_array_equal(band.y, [4, 3.5, 2.5, 1])
    assert (band.hoverinfo, curve.name, curve.mode) == ("skip", "run", "lines+markers")


def test_a_long_line_becomes_means_of_bins_and_its_band_keeps_the_extremes() -> None:
    x = np.arange(10_000, dtype=np.float64)
    line = Line("run", "#000", x, 2 * x + 1, -x, x)
    band, curve = Panel("caption", "tokens", "loss", [line]).figure().data
    assert len(curve.x) == 500
    np.testing.assert_allclose(curve.y, 2 * np.asarray(curve.x) + 1)
    assert (max(band.y), min(band.y)) == (9_999, -9_999)
    assert curve.mode == "lines"


def test_names_are_shown_as_text_and_not_as_markup() -> None:
    line = Line("<b>a", "#000", np.zeros(1), np.zeros(1))
    assert Panel("caption", "tokens", "loss", [line]).figure().data[0].name == "&lt;b&gt;a"


def test_more_experiments_than_colours_reuse_them_in_order() -> None:
    colours = group_colours([str(number) for number in range(20)])
    assert colours["0"] == colours["8"] != colours["1"]
