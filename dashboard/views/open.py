"""Open: the zoo, studies of this machine or from a file, or checkpoints of one's own."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import streamlit as st

import awd_core as awd
from awd_core import AwdError, Checkpoint, archive, files
from awd_core.archive import SUFFIX
from dashboard import jobs, roots, sources, state, studies
from dashboard.job_panel import show_job

MOST_STUDIES = 8


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
            st.caption(f":material/error: {folder.name}: {error.problem}")
            continue
        label = f"{study.base.label}: {', '.join(study.experts)}"
        if st.button(label[:80], key=f"study_{folder}", icon=":material/analytics:"):
            _look_at(folder)
    _dropped()
    path = st.text_input("Or a study folder", placeholder="path of a folder `awd collect` wrote")
    if path and st.button("Open study"):
        _look_at(studies.open_folder(path))


def _dropped() -> None:
    file = st.file_uploader(
        f"Or drop a {SUFFIX} file",
        SUFFIX.removeprefix("."),
        key="dropped",
        help="What `awd export-study` wrote: numbers and names, no weights.",
    )
    if file is None:
        return
    study = archive.import_study(file, file.name)
    st.success(
        f"{study.base.label} and {study.n_experts} experts, {len(study.tensors)} tensors.",
        icon=":material/check_circle:",
    )
    if st.button("Look at this study", type="primary", icon=":material/visibility:"):
        _look_at(study.path)


def _look_at(folder: Path | None) -> None:
    state.choose_study(folder)
    st.switch_page("views/interference.py")


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
    if not base or not experts:
        st.info("Give a base and at least two experts fine-tuned from it.", icon=":material/info:")
        show_job()
        return
    try:
        opened = [awd.open_checkpoint(roots.allowed_source(one)) for one in (base, *experts)]
    except AwdError as error:
        state.show_error(error)
        return
    report = awd.preflight(opened[0], opened[1:])
    _preflight(report)
    _collect(opened[0], opened[1:], report)
    show_job()
    _open_collected()


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


def _preflight(report: awd.Preflight) -> None:
    if report.problems:
        table = pd.DataFrame([vars(problem) for problem in report.problems])
        st.dataframe(table, hide_index=True, key="problems", alt="What stands in the way.")
    if report.ok:
        st.success("Nothing stands in the way of a merge.", icon=":material/check_circle:")
    estimate = report.estimate
    st.caption(
        f"{estimate.parameters:,} parameters; {estimate.bytes_to_read / 1e6:,.0f} MB to read once."
    )


def _collect(base: Checkpoint, experts: Sequence[Checkpoint], report: awd.Preflight) -> None:
    running = (job_id := state.job_id()) is not None and _running(job_id)
    if st.button("Collect", type="primary", disabled=not report.ok or running):
        out = _free_name(files.home() / "studies" / f"{base.label}-{len(experts)}-experts")
        command = ("collect", base.source, *(e.source for e in experts), "--output", str(out))
        state.watch_job(jobs.start("Reading task vectors", command, out).id)


def _running(job_id: str) -> bool:
    job = jobs.load(job_id)
    return job is not None and jobs.status(job).state == "running"


def _open_collected() -> None:
    job = jobs.load(state.job_id() or "")
    if job is None or job.command[0] != "collect" or jobs.status(job).state != "done":
        return
    if st.button("Look at it", type="primary", icon=":material/visibility:"):
        _look_at(Path(job.output))


def _free_name(out: Path) -> Path:
    names = (out if n == 1 else out.with_name(f"{out.name}-{n}") for n in range(1, 10_000))
    return next(name for name in names if not name.exists())


show()
