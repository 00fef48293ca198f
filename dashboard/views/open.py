"""Open: the zoo, studies of this machine or from a file, or checkpoints of one's own."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import pandas as pd
import streamlit as st

import awd_core as awd
from analysis.words import counted, size
from awd_core import AwdError, archive, files
from awd_core.archive import SUFFIX
from awd_core.checkpoints import BaseFit, Estimate, Problem
from awd_core.checkpoints.estimate import in_words
from dashboard import jobs, roots, sources, state, studies
from dashboard.job_panel import show_job
from dashboard.state import as_code
from dashboard.zoo_study import is_whole_zoo

MOST_STUDIES = 8
PROBLEM = ["severity", "kind", "where", "received", "expected", "remedy"]
# Commands whose end is told here.
OF_PAGE = ("collect", "locks")
PICKLE_HELP = """
For models that have no safetensors file. Only plain tensors are read, by PyTorch's restricted
unpickler; no code in the file is run. Leave it off for files of people you do not know.
"""
LOCKS_HELP = """
An expert can be locked against merging (MergeLock): its attention weights are moved far from the
base while the model computes the same. Reads the attention weights once.
"""
VERDICT_COLOURS: dict[str, Literal["green", "orange", "red", "off"]] = {
    "fits": "green",
    "tight": "orange",
    "will not fit": "red",
    "unknown": "off",
}


def show() -> None:
    """Draw the page."""
    st.title("Open other models")
    known, new = st.columns([2, 3], gap="large")
    with known:
        _studies()
    with new:
        _checkpoints()


# --- studies -------------------------------------------------------------------------------------


def _studies() -> None:
    st.subheader("Studies")
    st.caption("A study holds the statistics of one pass. It opens without the weights.")
    if st.button("The zoo: 8 LoRA experts of a text encoder", icon=":material/pets:"):
        _look_at(None)
    for folder in studies.recent()[:MOST_STUDIES]:
        try:
            study = awd.open_study(folder)
        except AwdError as error:
            st.caption(f":material/error: `{folder}`: {error.problem}. {error.remedy or ''}")
            continue
        if is_whole_zoo(study) and folder.name == study.digest[: studies.FINGERPRINT]:
            continue  # as the app collects it: the button above opens it
        label = f"{study.base.label}: {', '.join(study.experts)}"
        if st.button(label[:80], key=f"study_{folder}", icon=":material/analytics:"):
            _look_at(folder)
    _dropped()
    path = st.text_input("Or a study folder", placeholder="path of a folder `awd collect` wrote")
    if path and st.button("Open study"):
        try:
            folder = studies.open_folder(path)
        except AwdError as error:
            state.show_error(error)
        else:
            _look_at(folder)


def _dropped() -> None:
    file = st.file_uploader(
        f"Or drop a {SUFFIX} file",
        SUFFIX.removeprefix("."),
        key="dropped",
        help="What `awd export-study` wrote: numbers and names, no weights.",
    )
    if file is None:
        return
    try:
        study = archive.import_study(file, file.name)
    except AwdError as error:
        state.show_error(error)
        return
    st.success(
        f"{study.base.label} and {counted(study.n_experts, 'expert')},"
        f" {counted(len(study.tensors), 'tensor')}.",
        icon=":material/check_circle:",
    )
    if st.button("Look at this study", type="primary", icon=":material/visibility:"):
        _look_at(study.path)


def _look_at(folder: Path | None) -> None:
    state.choose_study(folder)
    # Left to itself it clears the address, which fails where a widget has its value there.
    st.switch_page("views/interference.py", query_params={})


# --- checkpoints ---------------------------------------------------------------------------------


def _checkpoints() -> None:
    st.subheader("Checkpoints")
    st.caption(
        "Folders of models or LoRA adapters on this machine, or hub ids such as `owner/name`."
        " Only headers are read to check them."
    )
    with st.expander("Find them on this machine", icon=":material/travel_explore:"):
        _browse()
    base = st.text_input("Base", key="base", placeholder="folder or hub id of the base").strip()
    lines = st.text_area(
        "Experts, one a line",
        key="expert_lines",
        placeholder="folder or hub id of an expert",
        height=140,
    )
    experts = [line.strip() for line in lines.splitlines() if line.strip()]
    pickle = _pickle_choice()
    if not base or not experts:
        st.info("Give a base and at least two experts fine-tuned from it.", icon=":material/info:")
        show_job(lambda job: job.command[0] in OF_PAGE)
        return
    try:
        opened = [
            awd.open_checkpoint(roots.allowed_source(one), allow_pickle=pickle)
            for one in (base, *experts)
        ]
        report = awd.preflight(opened[0], opened[1:])
        fit = awd.base_fit(opened[0], opened[1:]) if report.ok else None
    except AwdError as error:
        state.show_error(error)
        if "--allow-pickle" in (error.remedy or ""):
            st.caption("Here that is the switch **Allow pytorch_model.bin** above.")
        return
    _preflight(report, fit)
    _estimate(report.estimate)
    asked = tuple(checkpoint.source for checkpoint in opened)
    name = f"{opened[0].label}-{counted(len(opened) - 1, 'expert')}".replace(" ", "-")
    _jobs(asked, name, report)
    show_job(partial(_is_about, asked))
    _open_collected(asked)


def _browse() -> None:
    """Folders below the allowed roots, and what the hub's cache holds."""
    where, cache = st.tabs(["Folders", "Hub cache"])
    with where:
        listed = st.session_state.get("browsed") or str(roots.allowed_roots()[0])
        place = roots.allowed(listed)
        st.code(str(place), language=None)
        with st.container(horizontal=True):
            above = place.parent
            st.button(
                "Up",
                icon=":material/arrow_upward:",
                key="browse_up",
                disabled=not roots.is_allowed(above),
                on_click=_browse_to,
                args=(above,),
            )
            for root in dict.fromkeys(roots.allowed_roots()):
                st.button(
                    str(root),
                    key=f"root_{root}",
                    type="tertiary",
                    on_click=_browse_to,
                    args=(root,),
                )
        _listed(sources.list_folder(place))
    with cache:
        found = sources.hub_cache()
        if not found:
            st.caption("The cache of the hub holds no model.")
        _listed(found)


def _browse_to(folder: Path) -> None:
    st.session_state["browsed"] = str(folder)


def _listed(entries: Sequence[sources.Entry]) -> None:
    for entry in entries:
        with st.container(horizontal=True, vertical_alignment="center"):
            if entry.kind == "folder":
                st.button(
                    entry.name,
                    key=f"enter_{entry.source}",
                    icon=":material/folder:",
                    type="tertiary",
                    on_click=_browse_to,
                    args=(Path(entry.source),),
                )
                continue
            st.markdown(f":material/deployed_code: {entry.name} ({entry.kind}, {entry.size})")
            st.button("Base", key=f"base_{entry.source}", on_click=_take_base, args=(entry.source,))
            st.button(
                "Expert", key=f"expert_{entry.source}", on_click=_add_expert, args=(entry.source,)
            )


def _take_base(source: str) -> None:
    st.session_state["base"] = source


def _add_expert(source: str) -> None:
    lines = st.session_state.get("expert_lines", "").splitlines()
    if source not in lines:
        st.session_state["expert_lines"] = "\n".join([*lines, source])


def _pickle_choice() -> bool:
    """Whether `.bin` files may be opened; the choice holds on every page of this session."""
    allowed = st.toggle(
        "Allow pytorch_model.bin",
        value=state.pickle_allowed(),
        key="allow_pickle",
        help=PICKLE_HELP,
    )
    state.allow_pickle(allowed)
    return allowed


def _preflight(report: awd.Preflight, fit: BaseFit | None) -> None:
    problems = [*report.problems, *(awd.base_problems([fit]) if fit else ())]
    refused = any(problem.severity == "error" for problem in problems)
    if not problems:
        st.success("Nothing stands in the way of a merge.", icon=":material/check_circle:")
    elif not refused:
        st.warning(
            f"Nothing stops a merge; {counted(len(problems), 'thing')} to look at.",
            icon=":material/warning:",
        )
    else:
        st.error(
            "These cannot be merged as they are.",
            icon=":material/error:",
        )
    if problems:
        groups = _alike(problems)
        for first, *more in groups:
            st.markdown(_said(first, len(more)))
        if len(groups) < len(problems):
            with st.expander(f"All {len(problems):,} of them", icon=":material/table:"):
                table = pd.DataFrame([vars(problem) for problem in problems], columns=PROBLEM)
                st.dataframe(table, hide_index=True, key="problems", alt="What stands in the way.")
    if fit and fit.relative_norms:
        norms = ", ".join(f"{name} {value:.1%}" for name, value in fit.relative_norms.items())
        st.caption(
            f"Distance from {fit.base}, ‖τ‖ / ‖θ₀‖ on a sample of rows: {norms}. A fine-tuned"
            " expert is a few percent from its base; one from another base is far."
        )


def _alike(problems: Sequence[Problem]) -> list[list[Problem]]:
    """Problems of one kind with one remedy together, so that every remedy is seen."""
    groups: dict[tuple[str, ...], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.severity, problem.kind, problem.remedy), []).append(problem)
    return list(groups.values())


def _said(problem: Problem, n_more: int) -> str:
    is_error = problem.severity == "error"
    mark = ":red[:material/error:]" if is_error else ":orange[:material/warning:]"
    more = f", and {n_more:,} more" if n_more else ""
    return (
        f"{mark} **{problem.kind.capitalize()}**: {problem.where}{more}:"
        f" {as_code(problem.received)}; expected {as_code(problem.expected)}."
        f" **What to do:** {problem.remedy}"
    )


def _estimate(estimate: Estimate) -> None:
    """What the pass and a merge need against what is free."""
    memory, disk, time, parameters = st.columns(4)
    for place, name, one in ((memory, "Memory", estimate.memory), (disk, "Disk", estimate.disk)):
        free = "" if one.free is None else f": {one.free / 1e9:,.1f} GB free"
        place.metric(
            name,
            f"{one.needed / 1e9:,.1f} GB",
            f"{one.verdict}{free}",
            delta_color=VERDICT_COLOURS[one.verdict],
            delta_arrow="off",
        )
    seconds = estimate.seconds
    time.metric(
        "Time, roughly",
        in_words(seconds),
        f"{estimate.bytes_to_read / 1e6:,.0f} MB to read once",
        delta_color="off",
        delta_arrow="off",
    )
    parameters.metric(
        "Parameters",
        size(estimate.parameters),
        f"{estimate.bytes_to_write / 1e6:,.0f} MB to write",
        delta_color="off",
        delta_arrow="off",
    )
    if estimate.verdict == "will not fit":
        st.warning("There is not enough room here for the merge.", icon=":material/warning:")


def _jobs(asked: tuple[str, ...], name: str, report: awd.Preflight) -> None:
    running, allowed = jobs.is_running(state.job_id()), state.pickle_options()
    with st.container(horizontal=True):
        if st.button("Collect", type="primary", disabled=not report.ok or running):
            out = _free_name(files.home() / "studies" / name)
            command = ("collect", *asked, "--output", str(out), *allowed)
            state.watch_job(jobs.start("Reading task vectors", command, out).id)
        if st.button(
            "Look for locks",
            key="locks",
            icon=":material/lock:",
            disabled=not report.ok or running,
            help=LOCKS_HELP,
        ):
            command = ("locks", *asked, *allowed)
            state.watch_job(jobs.start("The search for locks", command, Path(asked[0])).id)


def _is_about(asked: tuple[str, ...], job: jobs.Job) -> bool:
    """Whether a job read these checkpoints and no others."""
    kind, *rest = job.command
    options = next((at for at, one in enumerate(rest) if one.startswith("--")), len(rest))
    return kind in OF_PAGE and tuple(rest[:options]) == asked


def _open_collected(asked: tuple[str, ...]) -> None:
    job = jobs.load(state.job_id() or "")
    if job is None or job.command[0] != "collect" or not _is_about(asked, job):
        return
    if jobs.status(job).state == "done" and st.button(
        "Look at it", type="primary", icon=":material/visibility:"
    ):
        _look_at(Path(job.output))


def _free_name(out: Path) -> Path:
    names = (out if n == 1 else out.with_name(f"{out.name}-{n}") for n in range(1, 10_000))
    return next(name for name in names if not name.exists())


show()
