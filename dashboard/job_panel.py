"""The progress of the job that this session looks at: bar, time left, cancel, outcome."""

from collections.abc import Callable

import pandas as pd
import streamlit as st

from dashboard import jobs, state

PASSED = {
    True: ":material/check_circle: yes",
    False: ":material/error: no",
    None: ":material/help: not checked",
}


def show_job(is_of_page: Callable[[jobs.Job], bool]) -> None:
    """Draw the panel; it redraws itself while the job runs.

    Args:
        is_of_page: Whether how a job ended is said on this page; that one runs is said on all.
    """
    job_id = state.job_id()
    if job_id is None:
        return
    job = jobs.load(job_id)
    if job is None:
        state.watch_job(None)
        return
    if jobs.status(job).state == "running":
        _running(job_id)
    elif is_of_page(job):
        _ended(job)


@st.fragment(run_every=0.5)
def _running(job_id: str) -> None:
    job = jobs.load(job_id)
    if job is None:
        return
    now = jobs.status(job)
    if now.state != "running":
        st.rerun()
    left = "" if now.seconds_left is None else f", {now.seconds_left:.0f} s left"
    st.progress(min(1.0, now.fraction), text=f"{job.title}: {now.stage.lower()}{left}")
    st.caption(now.what or "starting the process")
    if st.button("Cancel", icon=":material/cancel:", key=f"cancel_{job_id}"):
        jobs.cancel(job)


def _verification(job: jobs.Job) -> None:
    """What a verification looked at, and what it found."""
    found = jobs.printed_json(job)
    if found["ok"]:
        st.success(f"{job.title} is done: `{job.output}`", icon=":material/check_circle:")
    else:
        st.error(f"`{job.output}` is not what its recipe makes.", icon=":material/error:")
    rows = [(one["name"], PASSED[one["ok"]], one["detail"]) for one in found["checks"]]
    st.table(pd.DataFrame(rows, columns=["check", "passed", "what was found"]).set_index("check"))


def _ended(job: jobs.Job) -> None:
    now = jobs.status(job)
    if now.state == "done" and job.command[0] == "verify":
        _verification(job)
    elif now.state == "done":
        st.success(f"{job.title} is done: `{job.output}`", icon=":material/check_circle:")
        if job.command[0] == "locks":
            st.code(jobs.printed(job), language=None, wrap_lines=True)
    elif now.state == "cancelled":
        st.info(f"{job.title} was cancelled; nothing was left behind.", icon=":material/block:")
    else:
        st.error(f"{job.title} failed. {now.message}", icon=":material/error:")
