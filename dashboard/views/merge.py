"""Merge: the method, what will be written, the job, its verification, the same as text."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

import awd_core as awd
from analysis.words import counted
from awd_core import AwdError, Checkpoint, Recipe, Study, files, open_checkpoint
from awd_core.mergekit import to_mergekit
from awd_core.method import MergeMethod
from awd_core.plan import out_dtype
from awd_core.writer import sidecars
from dashboard import jobs, roots, state
from dashboard.comparison import peak_bytes
from dashboard.job_panel import show_job
from dashboard.state import Setting

DTYPES = ("base", "float32", "bfloat16", "float16")
# Commands whose end is told here.
OF_PAGE = ("merge", "verify")
EXECUTORS = {
    "gram": "a weighted sum; everything about it follows from the study",
    "stream": "piece by piece, after statistics of the whole model if it needs any",
    "tensor": "one tensor at a time",
    "matrix": "one whole matrix at a time",
}


def show() -> None:
    """Draw the page."""
    study, setting = state.current()
    st.title("Write the merge")
    st.caption("An ordinary Hugging Face folder, written in the background, whole or not at all.")
    st.markdown(_in_words(study, setting))
    left, right = st.columns([3, 2], gap="large")
    with left:
        recipe = _recipe(study, setting)
        try:
            base = open_checkpoint(study.base.source, allow_pickle=state.pickle_allowed())
        except AwdError as error:
            st.info(
                "The weights of this study are not on this machine, or may not be opened, so"
                " nothing can be written here. The same merge as text, below, runs where they are.",
                icon=":material/cloud_off:",
            )
            st.caption(str(error))
            base = None
        target = _export(recipe, base)
    with right:
        method = awd.find_method(setting.method)
        _method(method, study)
        if base is not None:
            _contents(recipe, base, target)
            st.caption(f"Memory: at most {files.sized(peak_bytes(method, study))}.")
    st.subheader("The same merge as text")
    _as_text(recipe, study)


def _in_words(study: Study, setting: Setting) -> str:
    method = awd.find_method(setting.method)
    words = "without AWD"
    if setting.disentangle is not None:
        solved = state.solved(study, setting.disentangle)
        words = (
            f"after AWD at granularity **{setting.disentangle.granularity}** (redundant vector:"
            f" {solved.relative_redundant_norm:.1%} of the mean task vector)"
        )
    lambdas = ""
    if method.takes_coefficients:
        low, high = min(setting.coefficients), max(setting.coefficients)
        lambdas = f" λ = **{low:g}**," if low == high else f" λ from **{low:g}** to **{high:g}**,"
    return f"**{method.title}** of {counted(study.n_experts, 'expert')},{lambdas} {words}."


def _recipe(study: Study, setting: Setting) -> Recipe:
    """The setting's recipe, with what only a written merge needs."""
    first, second = st.columns(2)
    dtype = first.selectbox(
        "Type of the weights",
        DTYPES,
        format_func=lambda name: "as in the base" if name == "base" else name,
        key="dtype",
        bind="query-params",
    )
    seed = second.number_input(
        "Seed",
        0,
        value=0,
        key="seed",
        help="For methods that draw at random; the same seed gives the same bytes.",
        bind="query-params",
    )
    recipe = setting.recipe(study)
    return recipe.model_copy(update={"dtype": dtype, "seed": int(seed)})


def _export(recipe: Recipe, base: Checkpoint | None) -> str:
    """The output folder and the job that writes it; what was typed for the folder."""
    name = f"merge-{recipe.digest[:8]}"
    target = st.text_input(
        "Output folder",
        value=str(files.home() / "merged" / name),
        key=f"output_{recipe.digest[:8]}",
        help="Must not exist yet. It appears in one step when everything is written.",
    )
    _find_again(target.strip())
    running = jobs.is_running(state.job_id())
    if st.button(
        "Export",
        type="primary",
        icon=":material/save:",
        disabled=running or base is None or not target.strip(),
    ):
        try:
            _start(recipe, target.strip())
        except AwdError as error:
            state.show_error(error)
            return target
    show_job(lambda job: job.command[0] in OF_PAGE)
    if (job := state.job_id()) and not jobs.is_running(job):
        _offer_verification(job)
    return target


def _find_again(target: str) -> None:
    """Look at the job that writes this folder, where a reload of the page has forgotten it."""
    if state.job_id() is not None or not target:
        return
    with suppress(AwdError):
        job = jobs.newest_for(roots.allowed(target), OF_PAGE)
        state.watch_job(None if job is None else job.id)


def _start(recipe: Recipe, target: str) -> None:
    out = roots.allowed(target)
    files.require_new(out)
    command = ("merge", str(jobs.recipe_file(recipe)), str(out), *state.pickle_options())
    state.watch_job(jobs.start("Export", command, out).id)


def _offer_verification(job_id: str) -> None:
    job = jobs.load(job_id)
    if job is None or job.command[0] not in OF_PAGE:
        return
    folder = Path(job.output)
    if jobs.status(job).state != "done" or not folder.is_dir():
        return
    if job.command[0] == "merge" and st.button(
        "Verify",
        icon=":material/fact_check:",
        help="Hash every file, derive every tensor again from the recipe, load with transformers.",
    ):
        command = ("verify", job.output, "--json", *state.pickle_options())
        state.watch_job(jobs.start("Verification", command, folder).id)
        st.rerun()
    with st.expander("What is in the folder", icon=":material/folder_open:"):
        st.code(str(folder), language=None)
        written = [
            {"file": str(file.relative_to(folder)), "size": file.stat().st_size}
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        ]
        _files(written)
        st.markdown(f"Load it with `AutoModel.from_pretrained({job.output!r})`.")


def _method(method: type[MergeMethod], study: Study) -> None:
    with st.expander(f"What {method.title} does", icon=":material/functions:"):
        st.latex(method.formula)
        st.markdown((method.__doc__ or "").split("\n\n")[0])
        st.markdown(
            f"- {method.source} ({method.year})\n"
            f"- Executor: {EXECUTORS[method.executor]}.\n"
            f"- Readings of the weights: {method.passes}.\n"
            f"- Memory: at most {files.sized(peak_bytes(method, study))}"
            f" ({method.memory.formula}).\n"
            f"- Vectors, embeddings and the like: {method.policy}."
        )
        for knob in method.knobs():
            st.caption(f"**{knob.name}** (default {knob.default}): {knob.metadata['help']}")


def _contents(recipe: Recipe, base: Checkpoint, target: str) -> None:
    st.markdown("**What will be written**")
    rows = [
        {"file": file.name, "size": _weight_bytes(base, file, recipe), "from": "merged"}
        for file in base.files
    ]
    rows += [
        {"file": str(one), "size": (base.path / one).stat().st_size, "from": "base"}
        for one in sidecars(base.path)
    ]
    total = sum(row["size"] for row in rows)
    new = ("README.md", "recipe.yaml", "provenance.json")
    _files([*rows, *({"file": name, "size": None, "from": "new"} for name in new)], height=250)
    free = _free_space(target)
    verdict = "fits" if free > 2 * total else "tight" if free > total else "will not fit"
    st.caption(
        f"About {files.sized(total)} to write, {files.sized(free)} are free: **{verdict}**. Types:"
        f" {'as in the base' if recipe.dtype == 'base' else recipe.dtype}."
    )


def _free_space(target: str) -> int:
    """Bytes free where the folder will be; beside our own files where it cannot be."""
    with suppress(AwdError, OSError):
        return files.free_space(roots.allowed(target))
    return files.free_space(files.home())


def _files(rows: list[dict[str, Any]], **options: Any) -> None:
    size = st.column_config.NumberColumn("size", format="bytes", help="Empty: a few kilobytes.")
    st.dataframe(pd.DataFrame(rows), hide_index=True, column_config={"size": size}, **options)


def _weight_bytes(base: Checkpoint, file: Path, recipe: Recipe) -> int:
    """Bytes of the tensors of a file in the type that the recipe asks for."""
    return sum(
        tensor.n_elements * out_dtype(recipe, tensor).itemsize
        for tensor in base.stored.values()
        if tensor.file == file
    )


def _as_text(recipe: Recipe, study: Study) -> None:
    yaml_tab, shell_tab, python_tab, mergekit_tab = st.tabs(
        ["Recipe (YAML)", "Command line", "Python", "mergekit"]
    )
    yaml_tab.code(recipe.to_yaml(), language="yaml")
    shell_tab.code(
        f"cat > recipe.yaml <<'EOF'\n{recipe.to_yaml()}EOF\n"
        "awd merge recipe.yaml merged/\nawd verify merged/",
        language="bash",
    )
    python_tab.code(_python(recipe), language="python")
    yaml_tab.download_button("Download recipe.yaml", recipe.to_yaml(), "recipe.yaml", "text/yaml")
    with mergekit_tab:
        try:
            text = to_mergekit(recipe, state.open_study())
        except AwdError as error:
            st.info(
                f"{error.problem}: {error.where} is {error.received}."
                f" Expected {error.expected}. {error.remedy or ''}"
            )
        else:
            st.code(text, language="yaml")
            st.download_button("Download mergekit.yaml", text, "mergekit.yaml", "text/yaml")


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
