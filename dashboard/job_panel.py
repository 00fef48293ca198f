"""The progress of the job that this session looks at: bar, time left, cancel, outcome."""

import streamlit as st

from dashboard import jobs, state

# Commands whose result is what they print.
TOLD_BY_TEXT = ("verify", "locks")


def show_job() -> None:
    """Draw the panel; it redraws itself while the job runs."""
    job_id = state.job_id()
    if job_id is None:
        return
    job = jobs.load(job_id)
    if job is None:
        state.watch_job(None)
        return
    if jobs.status(job).state == "running":
        _running(job_id)
    else:
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


def _ended(job: jobs.Job) -> None:
    now = jobs.status(job)
    if now.state == "done":
        st.success(f"{job.title} is done: `{job.output}`", icon=":material/check_circle:")
        if job.command[0] in TOLD_BY_TEXT:
            log = (job.folder / "log.txt").read_text(encoding="utf-8").strip()
            st.code(log, language=None)
    elif now.state == "cancelled":
        st.info(f"{job.title} was cancelled; nothing was left behind.", icon=":material/block:")
    else:
        st.error(f"{job.title} failed. {now.message}", icon=":material/error:")
