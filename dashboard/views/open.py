"""Open: the zoo, recent studies, or checkpoints of one's own, checked before anything is read."""

from pathlib import Path

import pandas as pd
import streamlit as st

import awd_core as awd
from awd_core import AwdError, files
from dashboard import jobs, roots, state, studies
from dashboard.job_panel import show_job


def show() -> None:
    """Draw the page."""
    st.title("Open other models")
    recent, new = st.columns([2, 3], gap="large")
    with recent:
        _recent()
    with new:
        _checkpoints()


def _recent() -> None:
    st.subheader("Studies")
    st.caption("A study holds the statistics of one pass. It opens without the weights.")
    if st.button("The zoo: 8 LoRA experts of a text encoder", icon=":material/pets:"):
        state.choose_study(None)
        st.rerun()
    for folder in studies.recent()[:8]:
        study = awd.open_study(folder)
        label = f"{study.base.label}: {', '.join(study.experts)}"
        if st.button(label[:80], key=f"study_{folder}", icon=":material/analytics:"):
            state.choose_study(folder)
            st.rerun()
    path = st.text_input("Or a study folder", placeholder="path of a folder `awd collect` wrote")
    if path and st.button("Open study"):
        state.choose_study(studies.open_folder(path))
        st.rerun()


def _checkpoints() -> None:
    st.subheader("Checkpoints")
    st.caption(
        "Folders of models or LoRA adapters on this machine, or hub ids such as `owner/name`."
        " Only headers are read to check them."
    )
    base_source = st.text_input("Base", placeholder="folder or hub id of the base")
    expert_sources = st.text_area(
        "Experts, one a line", placeholder="folder or hub id of an expert", height=140
    )
    sources = [line.strip() for line in expert_sources.splitlines() if line.strip()]
    if not base_source.strip() or not sources:
        st.info("Give a base and at least two experts fine-tuned from it.", icon=":material/info:")
        show_job()
        return
    try:
        base = awd.open_checkpoint(roots.allowed_source(base_source.strip()))
        experts = [awd.open_checkpoint(roots.allowed_source(source)) for source in sources]
    except AwdError as error:
        state.show_error(error)
        return
    report = awd.preflight(base, experts)
    _preflight(report)
    running = (job_id := state.job_id()) is not None and _running(job_id)
    if st.button("Collect", type="primary", disabled=not report.ok or running):
        out = files.home() / "studies" / f"{base.label}-{len(experts)}-experts"
        out = _free_name(out)
        command = ("collect", base.source, *(e.source for e in experts), "--output", str(out))
        state.watch_job(jobs.start("Reading task vectors", command, out).id)
    show_job()
    _open_collected()


def _running(job_id: str) -> bool:
    job = jobs.load(job_id)
    return job is not None and jobs.status(job).state == "running"


def _open_collected() -> None:
    job = jobs.load(state.job_id() or "")
    if job is None or job.command[0] != "collect" or jobs.status(job).state != "done":
        return
    if st.button("Look at it", type="primary", icon=":material/visibility:"):
        state.choose_study(Path(job.output))
        st.rerun()


def _preflight(report: awd.Preflight) -> None:
    if report.problems:
        st.dataframe(pd.DataFrame([vars(problem) for problem in report.problems]), hide_index=True)
    else:
        st.success("Nothing stands in the way of a merge.", icon=":material/check_circle:")
    estimate = report.estimate
    st.caption(
        f"{estimate.parameters:,} parameters; {estimate.bytes_to_read / 1e6:,.0f} MB to read once."
    )


def _free_name(out: Path) -> Path:
    names = (out if n == 1 else out.with_name(f"{out.name}-{n}") for n in range(1, 10_000))
    return next(name for name in names if not name.exists())


show()
