"""Merge: what will be written, the export as a job, its verification, and the same as text."""

import shutil
from pathlib import Path

import pandas as pd
import streamlit as st

from awd_core import Recipe, Study, files, open_checkpoint
from awd_core.writer import sidecars
from dashboard import jobs, state
from dashboard.job_panel import show_job
from dashboard.state import Setting


def show() -> None:
    """Draw the page."""
    study, setting = state.current()
    recipe = setting.recipe(study)
    st.title("Write the merge")
    st.caption("An ordinary Hugging Face folder, written in the background, whole or not at all.")
    left, right = st.columns([3, 2], gap="large")
    with left:
        _export(study, setting, recipe)
    with right:
        _contents(study, recipe)
    st.subheader("The same merge as text")
    _as_text(recipe)


def _export(study: Study, setting: Setting, recipe: Recipe) -> None:
    st.markdown(_in_words(study, setting))
    name = f"merge-{recipe.digest[:8]}"
    target = st.text_input(
        "Output folder",
        value=str(files.home() / "merged" / name),
        key=f"output_{recipe.digest[:8]}",
        help="Must not exist yet. It appears in one step when everything is written.",
    )
    out = Path(target).expanduser()
    running = (job := state.job_id()) is not None and _is_running(job)
    if st.button(
        "Export", type="primary", icon=":material/save:", disabled=running or not target.strip()
    ):
        files.require_new(out)
        recipe_file = files.home() / "recipes" / f"{recipe.digest[:16]}.yaml"
        recipe_file.parent.mkdir(parents=True, exist_ok=True)
        recipe_file.write_text(recipe.to_yaml(), encoding="utf-8")
        command = ("merge", str(recipe_file), str(out))
        state.watch_job(jobs.start("Export", command, out).id)
    show_job()
    if (job := state.job_id()) and not _is_running(job):
        _offer_verification(job)


def _is_running(job_id: str) -> bool:
    job = jobs.load(job_id)
    return job is not None and jobs.status(job).state == "running"


def _offer_verification(job_id: str) -> None:
    job = jobs.load(job_id)
    if job is None or job.command[0] != "merge" or jobs.status(job).state != "done":
        return
    st.markdown(f"Load it with `AutoModel.from_pretrained({job.output!r})`.")
    if st.button(
        "Verify",
        icon=":material/fact_check:",
        help="Hash every file, derive every tensor again from the recipe, load with transformers.",
    ):
        command = ("verify", job.output)
        state.watch_job(jobs.start("Verification", command, Path(job.output)).id)
        st.rerun()


def _in_words(study: Study, setting: Setting) -> str:
    awd = "without AWD"
    if setting.disentangle is not None:
        solved = state.solved(study, setting.disentangle)
        awd = (
            f"after AWD at granularity **{setting.disentangle.granularity}** (redundant vector:"
            f" {solved.relative_redundant_norm:.1%} of the mean task vector)"
        )
    low, high = min(setting.coefficients), max(setting.coefficients)
    lambdas = f"λ = **{low:g}**" if low == high else f"λ from **{low:g}** to **{high:g}**"
    return f"**{setting.method.replace('_', ' ')}** of {study.n_experts} experts, {lambdas}, {awd}."


def _contents(study: Study, recipe: Recipe) -> None:
    st.markdown("**What will be written**")
    base = open_checkpoint(study.base.source)
    rows = [
        {"file": file.name, "MB": round(file.stat().st_size / 1e6, 2), "from": "merged"}
        for file in base.files
    ]
    rows += [
        {
            "file": str(relative),
            "MB": round((base.path / relative).stat().st_size / 1e6, 2),
            "from": "base",
        }
        for relative in sidecars(base.path)
    ]
    rows += [
        {"file": name, "MB": 0.01, "from": "new"}
        for name in ("README.md", "recipe.yaml", "provenance.json")
    ]
    st.dataframe(pd.DataFrame(rows), hide_index=True, height=280)
    existing = next(p for p in (files.home(), *files.home().parents) if p.exists())
    total = sum(row["MB"] for row in rows)
    free = shutil.disk_usage(existing).free
    st.caption(f"{total:,.0f} MB in all; {free / 1e9:,.0f} GB are free. Types: {recipe.dtype}.")


def _as_text(recipe: Recipe) -> None:
    yaml_tab, shell_tab, python_tab = st.tabs(["Recipe (YAML)", "Command line", "Python"])
    yaml_tab.code(recipe.to_yaml(), language="yaml")
    shell_tab.code(
        f"cat > recipe.yaml <<'EOF'\n{recipe.to_yaml()}EOF\n"
        "awd merge recipe.yaml merged/\nawd verify merged/",
        language="bash",
    )
    python_tab.code(_python(recipe), language="python")
    yaml_tab.download_button("Download recipe.yaml", recipe.to_yaml(), "recipe.yaml", "text/yaml")


def _python(recipe: Recipe) -> str:
    fields = recipe.model_dump(exclude_none=True, exclude_defaults=True)
    fields = {"base": fields.pop("base"), "experts": list(fields.pop("experts")), **fields}
    arguments = "".join(f"    {name}={value!r},\n" for name, value in fields.items())
    return (
        "import awd_core as awd\n\n"
        f"recipe = awd.Recipe(\n{arguments})\n"
        'awd.merge(recipe, out="merged/")\n'
        'print(awd.verify("merged/"))\n'
    )


show()
