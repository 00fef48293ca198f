"""What is open and what is set. The only file that names keys of the session state."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

import awd_core as awd
from analysis.clustering import Clusters, clusters
from analysis.view import View, factors_by_tensor
from awd_core import AwdError, Disentangled, Recipe, Settings, Study, zoo
from awd_core.disentangle import AlphaPath, match_norm
from awd_core.disentangle import alpha_path as solve_alpha_path
from awd_core.knobs import Value
from awd_core.method import LinearMethod, MergeMethod
from dashboard import studies
from dashboard.evaluations import Evaluator

CoreError = AwdError
# The parameter of a link that names the study, and what it calls the zoo.
LINKED_STUDY, ZOO = "study", "zoo"

# Range and step of the slider of lambda.
COEFFICIENTS = (0.0, 2.0)
COEFFICIENT_STEP = 0.01


@dataclass(frozen=True)
class Setting:
    """Where the sliders stand: everything that decides a merge of the open study.

    Attributes:
        disentangle: AWD's settings; None when AWD is off.
        method: Key of the merge method.
        coefficients: lambda of every expert.
        knobs: The method's own.
        equalise_norms: Whether every task vector is scaled to their mean length first.
        block_factors: What every lambda is multiplied with, by block; 1 in the others.
    """

    disentangle: Settings | None
    method: str
    coefficients: tuple[float, ...]
    knobs: tuple[tuple[str, Value], ...] = ()
    equalise_norms: bool = False
    block_factors: tuple[tuple[str, float], ...] = ()

    @property
    def words(self) -> str:
        """The setting in a line."""
        method = awd.find_method(self.method)
        said = [method.title]
        if method.takes_coefficients:
            low, high = min(self.coefficients), max(self.coefficients)
            said.append(f"λ {low:g}" if low == high else f"λ {low:g} to {high:g}")
        defaults = {knob.name: knob.default for knob in method.knobs()}
        said += [
            f"{name.replace('_', ' ')} {value}"
            for name, value in self.knobs
            if value != defaults[name]
        ]
        chosen = self.disentangle
        said.append(
            "no AWD"
            if chosen is None
            else f"AWD {chosen.granularity}, {constraint_in_words(chosen)}"
        )
        if self.block_factors:
            said.append(f"λ of its own in {len(self.block_factors)} blocks")
        return ", ".join([*said, "equal norms"] if self.equalise_norms else said)

    def recipe(self, study: Study) -> Recipe:
        """The merge as data."""
        fields: dict[str, Any] = {
            "base": study.base.source,
            "experts": [source.source for source in study.sources],
            "method": self.method,
            "disentangle": self.disentangle,
            "exclude": study.exclude,
            "vocabulary": study.vocabulary,
            "knobs": dict(self.knobs),
            "equalise_norms": self.equalise_norms,
            "block_factors": dict(self.block_factors),
        }
        if awd.find_method(self.method).takes_coefficients:
            if len(set(self.coefficients)) == 1:
                fields["coefficient"] = self.coefficients[0]
            else:
                fields["coefficients"] = self.coefficients
        return Recipe(**fields)

    def multipliers(self, study: Study) -> np.ndarray | None:
        """What a linear method multiplies every vector with; None for the others."""
        method = self.recipe(study).build_method()
        if not isinstance(method, LinearMethod):
            return None
        return method.multipliers(np.array(self.coefficients))


def constraint_in_words(settings: Settings) -> str:
    """What keeps delta short, in a few signs."""
    if settings.radius is not None:
        return f"r {settings.radius:g}"
    if settings.penalty == "none":
        return "no penalty"
    square = "²" if settings.penalty == "l2_squared" else ""
    if settings.alpha_relative is not None:
        return f"α{square} {settings.alpha_relative:g} α_crit"
    return f"α{square} {settings.alpha:g}"


def open_study() -> Study:
    """The study of this session: chosen on page Open, named by the link, given, or the zoo's.

    The address names it from then on, so that a pasted link opens the same one.

    Raises:
        AwdError: The link names a study that is not on this machine.
    """
    chosen = _chosen_study()
    if chosen == ZOO:
        evaluator()  # its process gets ready meanwhile
        with st.spinner("Reading the task vectors of the zoo, once…", show_time=True):
            study = _zoo_study()
        _name_in_link(ZOO)
    else:
        study = _study(chosen, _stamp(Path(chosen)))
        _name_in_link(studies.fingerprint(study))
    return study


def _chosen_study() -> str:
    """The folder of this session's study, or `ZOO`."""
    if chosen := st.session_state.get("study_folder"):
        return chosen
    linked = st.query_params.get(LINKED_STUDY)
    if linked is None:
        chosen = os.environ.get("AWD_STUDY", ZOO)
    elif linked == ZOO:
        chosen = ZOO
    else:
        folder = studies.find(linked)
        if folder is None:
            raise AwdError(
                "This link shows a study that is not on this machine",
                where="link",
                received=f"study {linked}",
                remedy="Drop its .awdstudy file on the page Open, or collect the same base and"
                " experts here; then this link shows it.",
            )
        chosen = str(folder)
    st.session_state["study_folder"] = chosen
    return chosen


def _name_in_link(name: str) -> None:
    if st.query_params.get(LINKED_STUDY) != name:
        st.query_params[LINKED_STUDY] = name


def choose_study(folder: Path | None) -> None:
    """Open another study in this session; None is the zoo."""
    st.session_state["study_folder"] = ZOO if folder is None else str(folder)


@st.cache_resource(show_spinner=False, max_entries=8)
def _study(folder: str, stamp: str) -> Study:
    return awd.open_study(folder)


def _stamp(folder: Path) -> str:
    """Changes when a study is collected anew at the same place."""
    marker = folder / "complete"
    return marker.read_text(encoding="utf-8") if marker.exists() else ""


@st.cache_resource(show_spinner=False)
def _zoo_study() -> Study:
    """With every level: its experts are of low rank, decomposing them takes half a second."""
    base = awd.open_checkpoint("zoo:base")
    experts = [awd.open_checkpoint(f"zoo:{key}") for key in zoo.TASK_KEYS]
    return awd.collect_spectra(awd.collect(base, experts), base, experts)


def equalised(study: Study) -> Study:
    """The study of task vectors of one length; one for everybody."""
    return _equalised(study.digest, study)


@st.cache_resource(show_spinner=False, max_entries=8)
def _equalised(digest: str, _study: Study) -> Study:
    return awd.equalise_norms(_study)


def solved(study: Study, settings: Settings | None) -> Disentangled:
    """AWD for these settings; solved once for everybody."""
    return _solved(study.digest, settings, study)


@st.cache_resource(show_spinner=False, max_entries=64)
def _solved(digest: str, settings: Settings | None, _study: Study) -> Disentangled:
    return awd.no_redundancy(_study) if settings is None else awd.solve(_study, settings)


def view(study: Study, setting: Setting) -> View:
    """What the measures look at. A method that is not linear is seen through its vectors alone."""
    multipliers = setting.multipliers(study)
    if multipliers is None:
        multipliers = np.array(setting.coefficients)
    weights = tuple(multipliers.tolist())
    factors, method = setting.block_factors, setting.method
    return _view(study.digest, setting.disentangle, weights, factors, method, study)


@st.cache_resource(show_spinner=False, max_entries=64)
def _view(
    digest: str,
    settings: Settings | None,
    multipliers: tuple[float, ...],
    block_factors: tuple[tuple[str, float], ...],
    method: str,
    _study: Study,
) -> View:
    by_block = factors_by_tensor(_study, dict(block_factors))
    chosen = awd.find_method(method)
    return View(_study, solved(_study, settings), np.array(multipliers), by_block, chosen)


def alpha_path(study: Study) -> AlphaPath:
    """Everything that alpha decides at granularity `model`; worked out once for everybody."""
    return _alpha_path(study.digest, study)


@st.cache_resource(show_spinner=False, max_entries=8)
def _alpha_path(digest: str, _study: Study) -> AlphaPath:
    return solve_alpha_path(_study)


def alike(study: Study) -> Clusters:
    """Which experts are alike, by their task vectors before AWD: no slider changes it."""
    return _alike(study.digest, study)


@st.cache_resource(show_spinner=False, max_entries=8)
def _alike(digest: str, _study: Study) -> Clusters:
    return clusters(plain_view(_study))


def plain_view(study: Study) -> View:
    """The task vectors as they are; for everything that no slider changes."""
    return _plain_view(study.digest, study)


@st.cache_resource(show_spinner=False, max_entries=8)
def _plain_view(digest: str, _study: Study) -> View:
    return View(_study, solved(_study, None), np.ones(_study.n_experts))


def coefficient_key(method: type[MergeMethod]) -> str:
    """The key of a method's slider of lambda."""
    return "lambda" if method.key == "task_arithmetic" else f"lambda_{method.key}"


@dataclass(frozen=True)
class NormMatch:
    """The lambda at which a merge with AWD is as long as the same one without.

    Attributes:
        reference: lambda of the merge without AWD.
        exact: lambda that gives the same norm.
        settable: `exact` as near as the slider comes.
    """

    reference: float
    exact: float
    settable: float

    @property
    def clipped(self) -> bool:
        """Whether `exact` lies beyond the slider."""
        return not COEFFICIENTS[0] <= self.exact <= COEFFICIENTS[1]


def norm_match(study: Study, setting: Setting) -> NormMatch | None:
    """What matches the norm of task arithmetic at this lambda; None where there is no such thing.

    Once a match is set, its reference stays that of the lambda it was made for.
    """
    each = set(setting.coefficients)
    linear = setting.multipliers(study) is not None
    takes_one = awd.find_method(setting.method).takes_coefficients and len(each) == 1
    if setting.disentangle is None or not linear or not takes_one or setting.block_factors:
        return None
    (now,) = each
    matched, reference = st.session_state.get("norm_matched", (None, now))
    reference = reference if matched == now else now
    exact = float(match_norm(solved(study, setting.disentangle), reference))
    if np.isnan(exact):
        return None
    nearest = round(round(exact / COEFFICIENT_STEP) * COEFFICIENT_STEP, 10)
    return NormMatch(reference, exact, min(max(nearest, COEFFICIENTS[0]), COEFFICIENTS[1]))


def set_norm_match(method: str, match: NormMatch) -> None:
    """Move the slider of lambda to the match; for the callback of a button."""
    st.session_state[coefficient_key(awd.find_method(method))] = match.settable
    st.session_state["norm_matched"] = (match.settable, match.reference)


@st.cache_resource(show_spinner=False)
def evaluator() -> Evaluator:
    """The one evaluator of this server, which gets ready as soon as it is first looked for."""
    found = Evaluator()
    found.start()
    return found


def choose_part(block: str, kind: str | None) -> None:
    """Look at a block, and at one kind of tensor in it; for the callback of a click."""
    st.session_state["block"] = block
    st.session_state["kind"] = kind
    choose_tensor(None)


def choose_tensor(name: str | None) -> None:
    """Look at one tensor; None is all of the block. The link remembers it."""
    if name is not None:
        st.query_params["tensor"] = name
    elif "tensor" in st.query_params:
        del st.query_params["tensor"]


def chosen_tensor() -> str | None:
    """The one tensor that is looked at."""
    return st.query_params.get("tensor")


def tick_row(key: str, row: int | None) -> None:
    """Tick one row of a table, or none; before it is drawn."""
    rows = [] if row is None else [row]
    ticked = st.session_state.get(key)
    if ticked is None or list(ticked["selection"].get("rows", ())) != rows:
        st.session_state[key] = {"selection": {"rows": rows}}


def forget_unless(key: str, options: Sequence[str]) -> None:
    """Forget what a widget was set to when it is no longer on offer, as in another study."""
    value = st.session_state.get(key)
    if any(one not in options for one in (value if isinstance(value, list) else [value]) if one):
        del st.session_state[key]


def keep_near(key: str, options: Sequence[float]) -> None:
    """Set a slider to the nearest of its stops where it has lost its own; before it is drawn.

    Stops that depend on the study, or on other controls, come and go; left to itself the slider
    would fall back to where it started, and the address would not follow.
    """
    value = st.session_state.get(key)
    if value is not None and value not in options:
        st.session_state[key] = min(options, key=lambda option: abs(option - value))


def remember(study: Study, setting: Setting) -> None:
    """Keep the setting for the page that runs next."""
    st.session_state["current"] = (study, setting)


def is_ready() -> bool:
    """Whether this session has drawn a page before."""
    return "current" in st.session_state


def current() -> tuple[Study, Setting]:
    """The open study and where the sliders stand."""
    return st.session_state["current"]


def session_id() -> str:
    """A name for this browser tab."""
    return st.session_state.setdefault("session_id", os.urandom(8).hex())


def note_evaluated(recipe: str, kind: Any, found: dict[str, Any], description: str) -> None:
    """Keep the newest results; those of another setting become the last ones.

    Args:
        recipe: Digest of what was evaluated.
        kind: Equal for results of the same tasks and texts: only like is compared with like.
        found: The results.
        description: Of the setting, in words.
    """
    newest = st.session_state.get("evaluated")
    if newest is not None and newest[0] == (recipe, kind):
        return
    st.session_state["evaluated"] = ((recipe, kind), found, description)
    alike = newest if newest is not None and newest[0][1] == kind else None
    st.session_state["evaluated_before"] = alike and (alike[1], alike[2])


def newest_evaluated(kind: Any) -> dict[str, Any] | None:
    """The newest results by name, `base`, `experts`, `merge`, where they are of this kind."""
    newest = st.session_state.get("evaluated")
    return newest[1] if newest is not None and newest[0][1] == kind else None


def evaluated() -> tuple[dict[str, Any], tuple[dict[str, Any], str] | None]:
    """The newest results, and those of the setting before with its description."""
    _, found, _ = st.session_state["evaluated"]
    return found, st.session_state.get("evaluated_before")


def job_id() -> str | None:
    """The job this session looks at."""
    return st.session_state.get("job")


def watch_job(job: str | None) -> None:
    """Look at this job from now on."""
    st.session_state["job"] = job


def pickle_allowed() -> bool:
    """Whether this session may open `pytorch_model.bin`; it says so on page Open."""
    return bool(st.session_state.get("pickle_allowed"))


def pickle_options() -> tuple[str, ...]:
    """The same for a command."""
    return ("--allow-pickle",) if pickle_allowed() else ()


def allow_pickle(allowed: bool) -> None:
    """Remember the choice on every page."""
    st.session_state["pickle_allowed"] = allowed


def show_error(error: AwdError) -> None:
    """What went wrong, where, what was expected, what to do."""
    st.error(f"**{error.problem.rstrip('.')}.**", icon=":material/error:")
    for name in ("where", "received", "expected"):
        if value := getattr(error, name):
            st.markdown(f"- **{name.capitalize()}:** {as_code(value)}")
    if error.remedy:
        st.markdown(f"**What to do:** {error.remedy}")


def as_code(value: object) -> str:
    """A value as it is, which Markdown would change; what has code in it is words."""
    return str(value) if "`" in str(value) else f"`{value}`"
