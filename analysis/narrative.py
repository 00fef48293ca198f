"""What is worth saying about a merge, ranked, with the number, threshold and source behind it.

Every rule is a function from a view to findings; a rule that has nothing to say returns none. A
finding's `strength` is how far its number lies beyond its threshold, in units of the threshold, so
that findings of different measures can be ranked against one another.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.arithmetic import diagonal, pairs
from analysis.measures import measure
from analysis.view import View
from awd_core.disentangle import Granularity, cosines
from awd_core.elements import DENSITIES

# A pair stands out where its |cos| is this many times the mean over all pairs and tensors,
STANDS_OUT = 2.0
# is at least this large,
LEAST_COSINE = 0.05
# and is this many standard deviations, 1 / sqrt(n), away from that of random directions.
SIGMAS = 5.0
# Parts that hold less than this share of what the pair moves are left to the tables.
LEAST_ENERGY = 0.01
# Two experts nearer than this are one expert; TSV-M's orthogonalisation breaks down there.
DUPLICATE = 0.98
CONFLICT = 0.55
IMBALANCE = 2.0
# Share of an even part of the merge that an expert must have, and that it may have at most.
LEAST_RETAINED, MOST_ENERGY = 0.5, 2.0
LOST = 0.1
CATASTROPHIC = 0.1
# AWD is worth a word where it changes its objective by this share.
EFFECT = 0.05
# A block whose singular task interference is this many times the model's.
COLLIDES = 1.5
# Methods that do already what a finding advises.
ELECT_SIGNS = ("ties", "ties_mergekit", "dare_ties", "della", "sce", "knots")
MASK = ("consensus", *ELECT_SIGNS)
ORTHOGONALISE = ("tsv_m", "rtsvm_style")
# Most findings of one rule: the picture beside them shows the rest.
MOST_OF_A_RULE = 3


@dataclass(frozen=True)
class Finding:
    """One sentence worth saying.

    Attributes:
        text: The sentence, with its numbers.
        where: The part of the model.
        measure: Key of the measure it is about.
        value: The number.
        threshold: What it was compared with.
        strength: value beyond threshold, in units of the threshold; findings are ranked by it.
        why: Why it matters.
        advice: What to do.
        source: Where measure and threshold come from.
        experts: The experts it names.
        blocks: The blocks it is about; none for the whole model.
    """

    text: str
    where: str
    measure: str
    value: float
    threshold: float
    strength: float
    why: str
    advice: str
    source: str
    experts: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()


def findings(view: View, most: int = 8) -> tuple[Finding, ...]:
    """The findings of all rules, strongest first; at least one, which may say that nothing is odd.

    Args:
        view: What is looked at.
        most: At most so many.
    """
    found = [finding for rule in RULES for finding in _strongest(rule(view), MOST_OF_A_RULE)]
    return tuple(_strongest(found, most)) or tuple(_nothing(view))


def table(found: Sequence[Finding]) -> pd.DataFrame:
    """[finding, where, measure, value, threshold, why, advice, source]."""
    columns = ["text", "where", "measure", "value", "threshold", "why", "advice", "source"]
    rows = [[getattr(one, name) for name in columns] for one in found]
    return pd.DataFrame(rows, columns=["finding", *columns[1:]])


def _strongest(found: Iterable[Finding], most: int) -> list[Finding]:
    return sorted(found, key=lambda one: -one.strength)[:most]


# --- rules ---------------------------------------------------------------------------------------


def _opposed_or_aligned(view: View) -> Iterator[Finding]:
    """Pairs whose cosine stands out, over neighbouring blocks of one kind."""
    if view.n_experts < 2:
        return
    usual = _of_model(view, "mean_absolute_cosine_by_energy_before")
    for group in _groups(view, max(LEAST_COSINE, STANDS_OUT * usual)):
        threshold = max(LEAST_COSINE, STANDS_OUT * usual, SIGMAS / np.sqrt(group.n_elements))
        if abs(group.cosine) >= DUPLICATE or group.energy < LEAST_ENERGY:
            continue
        acts = "oppose each other" if group.cosine < 0 else "share a direction"
        times = f", {abs(group.cosine) / usual:.1f} × the model's mean" if usual > 0 else ""
        first, second = (view.experts[k] for k in group.pair)
        where = f"{_span(group.blocks)}, {group.kind}"
        yield Finding(
            text=f"{where}: ‘{first}’ and ‘{second}’ {acts}, cos {_number(group.cosine)}{times}.",
            where=where,
            measure="cosine_before",
            value=group.cosine,
            threshold=threshold,
            strength=abs(group.cosine) / threshold - 1,
            why="A merge adds the two: where they oppose each other both lose,"
            " where they share a direction it is counted twice.",
            advice=_awd_below_the_model(view),
            source=f"{measure('cosine_before').source}; threshold: {STANDS_OUT:g} × the mean |cos|"
            f" by energy, at least {LEAST_COSINE:g} and {SIGMAS:g} / √n, in parts that hold"
            f" {LEAST_ENERGY:.0%} of ‖τ_i‖ ‖τ_j‖",
            experts=(first, second),
            blocks=group.blocks,
        )


def _duplicates(view: View) -> Iterator[Finding]:
    found = view.cosines("model", "before")[0]
    for i, j in zip(*pairs(view.n_experts), strict=True):
        if found[i, j] >= DUPLICATE:
            first, second = view.experts[i], view.experts[j]
            yield Finding(
                text=f"‘{first}’ and ‘{second}’ are nearly one expert, cos {found[i, j]:.3f}.",
                where="model",
                measure="cosine_before",
                value=float(found[i, j]),
                threshold=DUPLICATE,
                strength=10.0,
                why="What they share is counted twice, and methods that orthogonalise are not"
                " defined for equal experts.",
                advice="Leave one of them out.",
                source=f"{measure('cosine_before').source}; threshold: ours",
                experts=(first, second),
            )


def _sign_conflicts(view: View) -> Iterator[Finding]:
    conflict = measure("sign_conflict_of_largest").of(view, "block")
    shared = view.elements("block").overlap[:, DENSITIES.index(0.2)]
    for at, block in enumerate(view.labels("block")):
        for i, j in zip(*pairs(view.n_experts), strict=True):
            # A fair coin of that many throws stays below with near certainty.
            threshold = max(CONFLICT, 0.5 + SIGMAS / 2 / np.sqrt(max(shared[at, i, j], 1)))
            if not conflict[at, i, j] >= threshold:
                continue
            first, second = view.experts[i], view.experts[j]
            yield Finding(
                text=f"{block}: ‘{first}’ and ‘{second}’ pull {conflict[at, i, j]:.0%} of the"
                " largest weights they share in opposite directions; chance is 50%.",
                where=block,
                measure="sign_conflict_of_largest",
                value=float(conflict[at, i, j]),
                threshold=float(threshold),
                strength=float((conflict[at, i, j] - 0.5) / (threshold - 0.5)) - 1,
                why="Summed, opposite moves cancel and neither task keeps its own.",
                advice=_advice(view, "Try TIES, which elects a sign", ELECT_SIGNS, "row"),
                source=f"{measure('sign_conflict_of_largest').source}; threshold: ours",
                experts=(first, second),
                blocks=(block,),
            )


def _imbalance(view: View) -> Iterator[Finding]:
    lengths = measure("task_vector_norm").of(view, "model")[0]
    ratio = _of_model(view, "norm_imbalance")
    if not ratio >= IMBALANCE:
        return
    longest, shortest = (view.experts[at] for at in (lengths.argmax(), lengths.argmin()))
    yield Finding(
        text=f"‘{longest}’ moved {ratio:.1f} × as far from the base as ‘{shortest}’.",
        where="model",
        measure="norm_imbalance",
        value=ratio,
        threshold=IMBALANCE,
        strength=ratio / IMBALANCE - 1,
        why="The longest task vector dominates the merge, and AWD amplifies the shortest.",
        advice="Switch on “equalise norms”, or give the long one a smaller coefficient.",
        source=f"{measure('norm_imbalance').source}; threshold: ours",
        experts=(longest, shortest),
    )


def _retained(view: View) -> Iterator[Finding]:
    if not view.is_of_merge:
        return
    retained = measure("retained_signal").of(view, "model")[0]
    for expert, own, share in zip(view.experts, view.multipliers, retained, strict=True):
        threshold = LEAST_RETAINED * own
        if not (own > 0 and share < threshold):
            continue
        yield Finding(
            text=f"Only {share:.2f} of ‘{expert}’ is left in the merge; its coefficient alone would"
            f" keep {own:.2f}.",
            where="model",
            measure="retained_signal",
            value=float(share),
            threshold=float(threshold),
            strength=float((threshold - share) / threshold),
            why="The other experts, or AWD, move the merge against it.",
            advice="Raise its coefficient, or look which pair opposes it.",
            source=f"{measure('retained_signal').source}; threshold: {LEAST_RETAINED:g} λ, ours",
            experts=(expert,),
        )


def _dominates(view: View) -> Iterator[Finding]:
    shares = measure("energy_share").of(view, "model")[0]
    threshold = min(MOST_ENERGY / view.n_experts, 0.9)
    dominated = view.is_of_merge and view.n_experts > 2 and np.nanmax(shares) > threshold
    if not dominated:
        return
    at = int(np.nanargmax(shares))
    yield Finding(
        text=f"‘{view.experts[at]}’ makes up {shares[at]:.0%} of the merge's energy;"
        f" an even share is {1 / view.n_experts:.0%}.",
        where="model",
        measure="energy_share",
        value=float(shares[at]),
        threshold=threshold,
        strength=float(shares[at] / threshold - 1),
        why="The merge is mostly this expert; the others are its noise.",
        advice="Lower its coefficient, or equalise norms.",
        source=f"{measure('energy_share').source}; threshold: {MOST_ENERGY:g} / K, ours",
        experts=(view.experts[at],),
    )


def _lost(view: View) -> Iterator[Finding]:
    share = _of_model(view, "lost_update_fraction_of_merge")
    half = any(tensor.dtype == "bfloat16" for tensor in view.study.tensors)
    if not share >= LOST:
        return
    kept = "The base is stored" if half else "If the merge is saved"
    yield Finding(
        text=f"{kept} as bfloat16: {share:.0%} of the moves of task arithmetic at λ = 0.3 are too"
        " small for it and vanish.",
        where="model",
        measure="lost_update_fraction_of_merge",
        value=share,
        threshold=LOST,
        strength=(share / LOST - 1) * (1.0 if half else 0.1),
        why="What rounding takes away no method can bring back.",
        advice="Write the merge as float32: `dtype: float32` in the recipe.",
        source=f"{measure('lost_update_fraction_of_merge').source}; threshold: ours",
    )


def _catastrophic(view: View) -> Iterator[Finding]:
    share = _of_model(view, "catastrophic_fraction")
    if not share >= CATASTROPHIC:
        return
    yield Finding(
        text=f"{share:.0%} of the moved weights end where no expert needs them.",
        where="model",
        measure="catastrophic_fraction",
        value=share,
        threshold=CATASTROPHIC,
        strength=share / CATASTROPHIC - 1,
        why="There the task vectors cancel or drown one another; moving them helps no task.",
        advice=_advice(view, "Try a consensus mask or TIES", MASK, "row"),
        source=f"{measure('catastrophic_fraction').source}; threshold: ours",
    )


def _effect_of_awd(view: View) -> Iterator[Finding]:
    solved = view.disentangled
    before, after = (float(number) for number in solved.objective)
    if not solved.redundant_norm or not before > 0:
        return
    change = after / before - 1
    if abs(change) < EFFECT:
        return
    words = "lowers" if change < 0 else "raises"
    yield Finding(
        text=f"AWD {words} the mean |cos| in its groups from {before:.4f} to {after:.4f}"
        f" ({_number(100 * change, 0)}%), with a redundant vector of"
        f" {solved.relative_redundant_norm:.1%} of a task vector.",
        where=f"granularity {solved.settings.granularity}",
        measure="mean_absolute_cosine_after",
        value=after,
        threshold=before * (1 - EFFECT if change < 0 else 1 + EFFECT),
        strength=abs(change) / EFFECT - 1 if change > 0 else abs(change),
        why="This is what AWD makes small; accuracy decides whether it was worth it."
        if change < 0
        else "A descent that ends above its start took steps that are too long.",
        advice="Compare at each one's best λ, or with the norm matched."
        if change < 0
        else "Lower the step size, or take the preset “converged”.",
        source="Xiong et al., arXiv 2411.18729, Eq. 9; threshold: ours",
    )


def _collisions(view: View) -> Iterator[Finding]:
    if not view.study.has_spectra or view.n_experts < 2:
        return
    usual = _of_model(view, "singular_task_interference")
    of_pairs = measure("singular_task_interference_of_pairs").of(view, "block")
    culprits = measure("singular_task_interference_by_culprit").of(view, "block")
    values = measure("singular_task_interference").of(view, "block")
    for at, block in enumerate(view.labels("block")):
        if not (usual > 0 and values[at] >= COLLIDES * usual):
            continue
        upper = np.triu(of_pairs[at], 1)
        i, j = np.unravel_index(int(upper.argmax()), upper.shape)
        culprit = view.experts[int(np.nanargmax(culprits[at]))]
        yield Finding(
            text=f"{block}: leading directions collide, {values[at] / usual:.1f} × as much as in"
            f" the model; most between ‘{view.experts[i]}’ and ‘{view.experts[j]}’, most of it"
            f" caused by ‘{culprit}’.",
            where=block,
            measure="singular_task_interference",
            value=float(values[at]),
            threshold=COLLIDES * usual,
            strength=float(values[at] / (COLLIDES * usual)) - 1,
            why="A sum cannot keep what several experts put into the same direction.",
            advice=_advice(
                view,
                "Try TSV-M, which makes the directions orthogonal",
                ORTHOGONALISE,
                "spectral",
            ),
            source=f"{measure('singular_task_interference').source}; threshold: {COLLIDES:g} × the"
            " model's, ours",
            experts=(view.experts[i], view.experts[j], culprit),
            blocks=(block,),
        )


def _nothing(view: View) -> Iterator[Finding]:
    usual = _of_model(view, "mean_absolute_cosine_by_energy_before")
    threshold = max(LEAST_COSINE, STANDS_OUT * usual) if usual > 0 else LEAST_COSINE
    yield Finding(
        text=f"Nothing stands out: no pair of experts reaches |cos| {threshold:.2f} in any block.",
        where="model",
        measure="mean_absolute_cosine_by_energy_before",
        value=usual,
        threshold=threshold,
        strength=0.0,
        why="Where task vectors are nearly orthogonal, adding them costs each little.",
        advice="Plain task arithmetic is a good start; tune λ.",
        source=f"{measure('cosine_before').source}; threshold: ours",
    )


RULES: tuple[Callable[[View], Iterator[Finding]], ...] = (
    _duplicates,
    _opposed_or_aligned,
    _sign_conflicts,
    _imbalance,
    _retained,
    _dominates,
    _effect_of_awd,
    _collisions,
    _catastrophic,
    _lost,
)


# --- advice that depends on what is set ----------------------------------------------------------


def _awd_below_the_model(view: View) -> str:
    # AWD that is off stands at the whole model.
    granularity = view.disentangled.settings.granularity
    if granularity == "model":
        return "Tune AWD at a granularity below the model, or lower the coefficient there."
    return f"AWD is at granularity {granularity} already: lower the coefficient there."


def _advice(view: View, first: str, methods: Sequence[str], granularity: Granularity) -> str:
    """`first` unless one of these methods is set, AWD at this granularity unless it is set."""
    awd_is_set = view.disentangled.settings.granularity == granularity
    if view.method is None or view.method.key not in methods:
        return f"{first}." if awd_is_set else f"{first}, or AWD at granularity {granularity}."
    title = view.method.title
    if awd_is_set:
        return f"{title} and AWD at granularity {granularity} act on it: compare accuracies."
    return f"{title} acts on it already. Try AWD at granularity {granularity} before it."


# --- neighbouring blocks of one kind -------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
    pair: tuple[int, int]
    kind: str
    blocks: tuple[str, ...]
    cosine: float
    energy: float
    n_elements: int


def _groups(view: View, least: float) -> Iterator[_Group]:
    """Runs of neighbouring blocks in which a pair's cosine has one sign and stands out."""
    grams, sizes = view.grams("tensor", "before"), view.n_elements("tensor")
    places = [(tensor.kind, tensor.block) for tensor in view.study.tensors]
    order = {block: at for at, block in enumerate(view.labels("block"))}
    parts: dict[tuple[str, str], list[int]] = {}
    for at, place in enumerate(places):
        parts.setdefault(place, []).append(at)
    summed = {place: grams[inside].sum(0) for place, inside in parts.items()}
    numbers = {place: int(sizes[inside].sum()) for place, inside in parts.items()}
    found = {place: cosines(gram[None])[0] for place, gram in summed.items()}
    whole = diagonal(grams.sum(0))
    for i, j in zip(*pairs(view.n_experts), strict=True):
        strong = sorted(
            (
                place
                for place, cos in found.items()
                if abs(cos[i, j]) >= max(least, SIGMAS / np.sqrt(numbers[place]))
            ),
            key=lambda place: (place[0], order[place[1]]),
        )
        for run in _runs(strong, order, lambda place, i=i, j=j: found[place][i, j] > 0):
            gram = np.sum([summed[place] for place in run], axis=0)
            both = np.sqrt(np.prod(np.diag(gram)[[i, j]]))
            yield _Group(
                (int(i), int(j)),
                run[0][0],
                tuple(block for _, block in run),
                float(gram[i, j] / both),
                float(both / np.sqrt(whole[i] * whole[j])),
                sum(numbers[place] for place in run),
            )


def _runs(
    places: Sequence[tuple[str, str]],
    order: dict[str, int],
    positive: Callable[[tuple[str, str]], bool],
) -> Iterator[list[tuple[str, str]]]:
    run: list[tuple[str, str]] = []
    for place in places:
        if run and (
            place[0] != run[-1][0]
            or order[place[1]] != order[run[-1][1]] + 1
            or positive(place) != positive(run[-1])
        ):
            yield run
            run = []
        run.append(place)
    if run:
        yield run


def _span(blocks: Sequence[str]) -> str:
    """`blocks 9-11`, `block 3`, `embedding`."""
    if len(blocks) == 1:
        return blocks[0]
    first, last = blocks[0], blocks[-1].rsplit(" ", 1)[-1]
    head, _, number = first.rpartition(" ")
    return f"{head}s {number}–{last}" if number.isdigit() else f"{first} to {blocks[-1]}"


def _of_model(view: View, key: str) -> float:
    return float(np.ravel(measure(key).of(view, "model"))[0])


def _number(value: float, digits: int = 2) -> str:
    """`−0.31`, `+0.08`."""
    return f"{value:+.{digits}f}".replace("-", "−")
