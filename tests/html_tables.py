"""Reads coloured matrices back from their HTML, as a screen reader would."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

import numpy as np


@dataclass
class HtmlMatrix:
    """One table: its heading, its names, what is written, numbers in full and colours."""

    heading: str
    columns: list[str] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)
    texts: list[list[str]] = field(default_factory=list)
    styles: list[list[str]] = field(default_factory=list)

    @property
    def array(self) -> np.ndarray:
        """K x K; NaN where a cell holds no number."""
        return np.array(self.values)


def read_matrices(html: str) -> list[HtmlMatrix]:
    """Every matrix in the HTML, in its order."""
    parser = _Parser()
    parser.feed(html)
    return parser.found


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[HtmlMatrix] = []
        self._in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attrs}
        if tag == "table":
            self.found.append(HtmlMatrix(known["aria-label"]))
        elif tag == "th":
            matrix = self.found[-1]
            (matrix.columns if known["scope"] == "col" else matrix.rows).append(known["title"])
            if known["scope"] == "row":
                for rows in (matrix.values, matrix.texts, matrix.styles):
                    rows.append([])
        elif tag == "td" and known.get("class") != "heading":
            self.found[-1].values[-1].append(np.nan)
            self.found[-1].texts[-1].append("")
            self.found[-1].styles[-1].append(known["style"])
        elif tag == "data":
            self.found[-1].values[-1][-1] = float(known["value"])
            self._in_cell = True

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.found[-1].texts[-1][-1] = data

    def handle_endtag(self, tag: str) -> None:
        if tag == "data":
            self._in_cell = False
