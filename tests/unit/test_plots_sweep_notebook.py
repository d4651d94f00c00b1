"""Figures of a sweep for notebooks."""

import polars as pl

from dynosim.plots.sweep_notebook import attainment_figure


def test_attainment_is_drawn_by_layout_without_what_was_given_up() -> None:
    probes = pl.DataFrame(
        {
            "trial_id": [7, 7, 7, 9, 8],
            "load": [2.0, 1.0, 3.0, 1.0, 1.0],
            "offered_rps": [20.0, 10.0, 30.0, 10.0, 10.0],
            "attainment": [0.9, 1.0, None, 0.97, 0.2],
            "is_stopped": [False, False, True, False, False],
            "timing_source": ["estimated"] * 5,
        }
    )
    answer = pl.DataFrame({"trial_id": [9, 7], "layout": ["1xTP2", "2xTP1"]})
    figure = attainment_figure(probes, answer, target=0.95)
    (axes,) = figure.axes
    drawn = {line.get_label(): (*map(list, line.get_data()),) for line in axes.lines}
    assert drawn["2xTP1"] == ([10.0, 20.0], [1.0, 0.9])
    assert drawn["1xTP2"] == ([10.0], [0.97])
    assert drawn["target"][1] == [0.95, 0.95] and len(drawn) == 3
    assert "ESTIMATED TIMING" in [text.get_text() for text in axes.texts]
    assert "target" not in [
        line.get_label() for line in attainment_figure(probes, answer, target=None).axes[0].lines
    ]
