"""Matrices as HTML hold exactly their tables, in the colours of the heatmaps, safely."""

import re

import numpy as np
import pandas as pd
import plotly.colors
import pytest

from analysis import figures
from analysis.theme import DARK, LIGHT, Theme
from tests.html_tables import read_matrices

NAMES = ["law", "medicine", "a_rather_long_expert_name"]


def square(*pairs: float) -> pd.DataFrame:
    a, b, c = pairs
    values = np.array([[1, a, b], [a, 1, c], [b, c, 1]], dtype=float)
    return pd.DataFrame(values, index=pd.Index(NAMES), columns=pd.Index(NAMES))


def test_every_number_is_there_but_the_diagonal() -> None:
    table = square(0.1234, -0.056, 0.001)
    kept = table.copy(deep=True)
    (found,) = read_matrices(figures.cosine_matrices({"before AWD": table}))
    assert found.heading == "before AWD"
    assert found.columns == found.rows == NAMES
    expected = table.to_numpy(copy=True)
    np.fill_diagonal(expected, np.nan)
    np.testing.assert_allclose(found.array, expected, rtol=1e-8)
    assert found.texts[0][1:] == ["0.12", "\N{MINUS SIGN}0.06"]
    pd.testing.assert_frame_equal(table, kept)


def test_what_rounds_to_zero_has_no_sign() -> None:
    (found,) = read_matrices(figures.cosine_matrices({"": square(-0.001, 0.2, 0.2)}))
    assert found.texts[0][1] == "0.00"


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_colours_are_those_of_the_scale(theme: Theme) -> None:
    html = figures.cosine_matrices({"": square(-0.3, 0.0, 0.17)}, 0.3, theme=theme)
    (found,) = read_matrices(html)
    for (row, column), value in {(0, 1): -0.3, (0, 2): 0.0, (1, 2): 0.17}.items():
        (expected,) = plotly.colors.sample_colorscale(
            list(theme.diverging), [(value + 0.3) / 0.6], colortype="rgb"
        )
        match = re.search(r"background:#(..)(..)(..)", found.styles[row][column])
        assert match
        drawn = [int(channel, 16) for channel in match.groups()]
        exact = [float(channel) for channel in re.findall(r"[0-9.]+", str(expected))]
        np.testing.assert_allclose(drawn, exact, atol=1)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_numbers_can_be_read_on_every_colour(theme: Theme) -> None:
    for value in np.linspace(-0.3, 0.3, 25):
        html = figures.cosine_matrices({"": square(value, value, value)}, 0.3, theme=theme)
        style = read_matrices(html)[0].styles[0][1]
        background, text = re.findall(r"#[0-9A-Fa-f]{6}", style)
        assert contrast(background, text) >= 4.5, "WCAG AA"


def contrast(first: str, second: str) -> float:
    """WCAG 2's contrast ratio."""

    def luminance(colour: str) -> float:
        channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(
            channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_two_matrices_share_a_scale_that_says_its_range() -> None:
    html = figures.cosine_matrices({"before": square(0.1, 0.2, 0.1), "after": square(0, 0, 0.31)})
    assert [found.heading for found in read_matrices(html)] == ["before", "after"]
    assert html.count('class="awd-scale"') == 1
    assert "cos, range ±0.35" in html
    assert "≥ 0.25" in figures.cosine_matrices({"": square(0, 0, 0.31)}, 0.25)


def test_cells_without_a_number_say_why() -> None:
    html = figures.cosine_matrices({"": square(np.nan, 0.1, 0.1)})
    assert np.isnan(read_matrices(html)[0].array[0, 1])
    assert html.count("not moved by both experts") == 2


def test_large_matrices_have_colours_without_numbers() -> None:
    names = [f"expert {number}" for number in range(17)]
    table = pd.DataFrame(np.full((17, 17), 0.1), index=names, columns=names)
    (found,) = read_matrices(figures.cosine_matrices({"": table}))
    assert set(found.texts[0]) == {""}
    assert found.array[0, 1] == 0.1


def test_names_cannot_bring_markup() -> None:
    names = ["<script>x</script>", '"&{0}', "b"]
    table = square(0.1, 0.1, 0.1).set_axis(names).set_axis(names, axis=1)
    html = figures.cosine_matrices({"<b>": table}, title="<i>")
    assert not re.search(r"<script|<b>|<i>", html)
    assert read_matrices(html)[0].columns == names
