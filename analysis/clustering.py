"""Which experts are alike: an order that puts them side by side, and a map."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy.cluster.hierarchy import dendrogram, leaves_list, linkage
from scipy.spatial.distance import squareform

from analysis.drawing import figure, numbers
from analysis.theme import LIGHT, Theme
from analysis.view import Scope, View, When


@dataclass(frozen=True)
class Clusters:
    """How the experts of one part lie to one another.

    Attributes:
        experts: Labels of those that move there, in the study's order.
        distances: `sqrt(2 - 2 cos)`: between task vectors scaled to length 1, (k, k).
        order: Positions in `experts`, so that like ones are neighbours (average linkage, leaves in
            the order that makes neighbours nearest).
        steps: SciPy's linkage matrix, (k - 1, 4); what is joined at which distance.
        places: Where multidimensional scaling puts them on a plane, (k, 2), mean 0.
        stress: Kruskal's stress 1 of the map: 0 is faithful, above 0.2 it misleads.
    """

    experts: tuple[str, ...]
    distances: np.ndarray
    order: np.ndarray
    steps: np.ndarray
    places: np.ndarray
    stress: float

    @property
    def ordered(self) -> tuple[str, ...]:
        """Labels in that order."""
        return tuple(self.experts[at] for at in self.order)

    @property
    def table(self) -> pd.DataFrame:
        """[expert, position, x, y]: place in the order, and on the map."""
        position = np.argsort(self.order)
        x, y = self.places.T
        return pd.DataFrame({"expert": self.experts, "position": position, "x": x, "y": y})


def clusters(
    view: View, scope: Scope = "model", name: str = "model", when: When = "before"
) -> Clusters:
    """Order and map of the experts by the cosines of one part.

    Orthogonal experts are all sqrt(2) apart, equal ones 0, opposed ones 2. The map is the metric
    MDS of scikit-learn, started from classical scaling, so that it is the same every time.

    Raises:
        ValueError: The scope has no part of this name.
    """
    cosines = view.cosines(scope, when)[view.labels(scope).index(name)]
    moved = np.flatnonzero(~np.isnan(np.diag(cosines)))
    experts = tuple(view.experts[at] for at in moved)
    found = np.clip(cosines[np.ix_(moved, moved)], -1.0, 1.0)
    distances = np.sqrt(np.maximum(2.0 - 2.0 * (found + found.T) / 2.0, 0.0))
    np.fill_diagonal(distances, 0.0)
    if len(experts) < 2:
        nothing = np.zeros((len(experts), 2))
        return Clusters(experts, distances, np.arange(len(experts)), np.zeros((0, 4)), nothing, 0.0)
    steps = linkage(squareform(distances), "average", optimal_ordering=True)
    places = _map(distances)
    return Clusters(
        experts, distances, leaves_list(steps), steps, places, _stress(distances, places)
    )


def _map(distances: np.ndarray) -> np.ndarray:
    # scikit-learn takes a second to load, which only those who look at the map shall wait for.
    from sklearn.manifold import smacof

    start = _classical(distances)
    places = np.asarray(smacof(distances, n_components=2, init=start, n_init=1)[0])
    return places - places.mean(0)


def _classical(distances: np.ndarray) -> np.ndarray:
    """Classical scaling: the plane of the largest eigenvalues of the centred squares."""
    centring = np.eye(len(distances)) - 1.0 / len(distances)
    values, vectors = np.linalg.eigh(-0.5 * centring @ distances**2 @ centring)
    places = (vectors * np.sqrt(np.maximum(values, 0.0)))[:, ::-1][:, :2]
    # The sign of an eigenvector is no one's choice; the largest entry shall be positive.
    largest = np.abs(places).argmax(0)
    places = places * np.where(places[largest, range(places.shape[1])] < 0, -1.0, 1.0)
    return np.pad(places, ((0, 0), (0, 2 - places.shape[1])))


def _stress(distances: np.ndarray, places: np.ndarray) -> float:
    drawn = np.linalg.norm(places[:, None] - places[None], axis=-1)
    whole = float((distances**2).sum())
    return float(np.sqrt(((distances - drawn) ** 2).sum() / whole)) if whole else 0.0


def expert_map(
    found: Clusters, title: str = "Which experts are alike", theme: Theme = LIGHT
) -> go.Figure:
    """Experts on a plane: near ones share directions; a dashed circle's radius is orthogonality.

    Args:
        found: From `clusters`.
        title: What is seen.
        theme: Of the page.
    """
    x, y = found.places.T
    trace = {
        "type": "scatter",
        "mode": "markers+text",
        "x": x.tolist(),
        "y": y.tolist(),
        "text": list(found.experts),
        "textposition": "top center",
        "textfont": {"color": theme.text, "size": 12},
        "cliponaxis": False,
        "marker": {"size": 12, "color": [theme.expert(k) for k in range(len(found.experts))]},
        "hovertemplate": "%{text}<extra></extra>",
    }
    reach = float(np.abs(found.places).max(initial=0.5)) * 1.35
    plane = {"range": [-reach, reach], "showticklabels": False, "zeroline": False}
    drawn = f"distance √(2 − 2 cos); stress {found.stress:.2f}"
    if found.stress > 0.2:
        drawn += "<br>on a plane they cannot all be as far apart as they are"
    return figure(
        [trace],
        title,
        theme,
        key="map",
        height=420,
        xaxis=numbers(theme, drawn) | plane,
        yaxis=numbers(theme, "") | plane | {"scaleanchor": "x"},
    )


def expert_tree(
    found: Clusters, title: str = "Experts by likeness", theme: Theme = LIGHT
) -> go.Figure:
    """The dendrogram: where two branches meet is the mean distance between them.

    Args:
        found: From `clusters`.
        title: What is seen.
        theme: Of the page.
    """
    drawn = (
        dendrogram(found.steps, no_plot=True) if len(found.steps) else {"icoord": [], "dcoord": []}
    )
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": across,
            "y": up,
            "line": {"color": theme.muted, "width": 1.5},
            "hovertemplate": "distance %{y:.3f}<extra></extra>",
            "showlegend": False,
        }
        for across, up in zip(drawn["icoord"], drawn["dcoord"], strict=True)
    ]
    at = [5.0 + 10.0 * position for position in range(len(found.experts))]
    names = {"tickmode": "array", "tickvals": at, "ticktext": list(found.ordered)}
    # Slanted names end at their tick: on a narrow page the last would end beyond the figure's
    # edge otherwise, where names are hidden.
    names |= {"autotickangles": [0, -45, -90], "ticklabeloverflow": "allow"}
    return figure(
        traces,
        title,
        theme,
        key="tree",
        height=320,
        xaxis=numbers(theme, "") | names | {"showgrid": False, "range": [0, 10 * len(at)]},
        yaxis=numbers(theme, "distance √(2 − 2 cos)") | {"rangemode": "tozero"},
    )
