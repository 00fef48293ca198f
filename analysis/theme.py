"""Colours of the figures, for pages with a light or a dark background."""

from dataclasses import dataclass

FONT = '"Source Sans 3", "Source Sans Pro", "Source Sans", system-ui, sans-serif'


@dataclass(frozen=True)
class Theme:
    """What a figure needs to know of its page. Backgrounds are transparent.

    Attributes:
        text: Titles and numbers.
        muted: Axis labels.
        grid: Grid lines.
        quiet: Bars that stand for comparison only.
        empty: Cells that hold no number, for instance a diagonal that is 1 by definition.
        diverging: Colour scale from negative over zero to positive, symmetric.
        sequential: Colour scale from zero to large.
        experts: One colour for each expert, by Okabe and Ito, in an order that never changes.
    """

    text: str
    muted: str
    grid: str
    quiet: str
    empty: str
    diverging: tuple[str, ...]
    sequential: tuple[str, ...]
    experts: tuple[str, ...]

    def expert(self, index: int) -> str:
        """Colour of expert `index`; from the ninth on colours come again."""
        return self.experts[index % len(self.experts)]


# ColorBrewer RdBu, blue first, white in the middle.
LIGHT = Theme(
    text="#1F2933",
    muted="#52606D",
    grid="#E4E8ED",
    quiet="#B6C0CB",
    empty="#D3D9E0",
    diverging=(
        "#053061", "#2166AC", "#4393C3", "#92C5DE", "#D1E5F0", "#F7F7F7",
        "#FDDBC7", "#F4A582", "#D6604D", "#B2182B", "#67001F",
    ),
    sequential=("#F7FBFF", "#C6DBEF", "#6BAED6", "#2171B5", "#08306B"),
    experts=(
        "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442",
    ),
)  # fmt: skip

# Zero is dark as the page is: the eye goes to the large values on both sides.
DARK = Theme(
    text="#E6EAEF",
    muted="#A9B4C0",
    grid="#2C343D",
    quiet="#56616E",
    empty="#353E48",
    diverging=(
        "#A8C8FF", "#6FA8E8", "#3F85C0", "#2A5F8A", "#1E3D56", "#1B2027",
        "#4A2F1C", "#7C4A22", "#B5692D", "#E39150", "#FFC391",
    ),
    sequential=("#1B2027", "#1E3D56", "#2A5F8A", "#6FA8E8", "#D6E6FF"),
    experts=(
        "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2", "#C8CED6",
    ),
)  # fmt: skip
