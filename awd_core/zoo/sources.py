"""Passages of documentation and code from the installed sources of Python and eight libraries.

Sources are parsed with `ast` and `tokenize`; none of the libraries is imported for its text, so
reading is deterministic, has no side effect, and needs nothing but the files themselves.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import io
import platform
import re
import sysconfig
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from awd_core.errors import AwdError

STDLIB = "python"

# Import name -> distribution name, in the order in which the sources are read.
DISTRIBUTIONS = {
    "networkx": "networkx",
    "numpy": "numpy",
    "pandas": "pandas",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "sympy": "sympy",
    "torch": "torch",
    "transformers": "transformers",
}

# Tests repeat one another, vendored code is not the library's own text.
SKIPPED_FOLDERS = {
    "tests",
    "test",
    "testing",
    "_vendor",
    "_vendored",
    "externals",
    "site-packages",
    "lib2to3",
    "idlelib",
    "pydoc_data",
    "encodings",
    "array_api_compat",
    "array_api_extra",
    "__pycache__",
    "models",  # of transformers: thousands of files from a few templates
}

# Detail of a docstring's first paragraph.
FIRST = "first"

# Code and comments are plentiful: one file in eight gives more than enough of them.
CODE_FILE_SHARE = 1 / 8

SECTION_HEADER = re.compile(r"^([A-Z][A-Za-z ]+)\n[-=~]{3,}[ ]*$", re.MULTILINE)
GOOGLE_SECTION = re.compile(
    r"^(Args|Arguments|Returns|Raises|Example|Examples|Note|Notes|Shape|Yields|Keyword args|"
    r"Attributes|Inputs?|Outputs?|References|Warning|Parameters):+:?\s*$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Passage:
    """One stretch of text as it stands in a source file.

    Attributes:
        text: The text, not yet cleaned.
        kind: `docstring`, `section`, `comment`, `message` or `code`.
        library: Import name of the library, or `python`.
        path: File path relative to the library's root, with `/`.
        owner: The docstring, comment or statement it comes from; one owner is never split
            between two splits.
        detail: The section's name, the exception's name, `first`, or empty.
    """

    text: str
    kind: str
    library: str
    path: str
    owner: str
    detail: str = ""


def library_root(library: str) -> Path:
    """Folder holding a library's sources, found without importing it.

    Args:
        library: Import name, or `python` for the standard library.
    """
    if library == STDLIB:
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        raise AwdError(
            f"The sources of {library} are not installed, so the zoo's texts cannot be built.",
            received="no such package in this environment",
            expected=f"the package {DISTRIBUTIONS[library]}",
            remedy=f"pip install {DISTRIBUTIONS[library]}",
        )
    return Path(next(iter(spec.submodule_search_locations)))


def versions() -> dict[str, str]:
    """Version of every source in this environment, by import name."""
    found = {STDLIB: platform.python_version()}
    for library, distribution in DISTRIBUTIONS.items():
        found[library] = importlib.metadata.version(distribution).split("+")[0]
    return found


def read_all(progress: Callable[[str], None] | None = None) -> tuple[Passage, ...]:
    """Every passage of every source, in a fixed order: library, then path, then line.

    Args:
        progress: Called with each library's name before it is read.
    """
    passages: list[Passage] = []
    for library in (STDLIB, *DISTRIBUTIONS):
        if progress is not None:
            progress(library)
        for path in source_files(library_root(library)):
            passages.extend(read_file(path, library, library_root(library)))
    return tuple(passages)


def source_files(root: Path) -> list[Path]:
    """Python files under a root in sorted order, without tests and vendored code."""
    return sorted(
        path
        for path in root.rglob("*.py")
        if not SKIPPED_FOLDERS.intersection(path.relative_to(root).parts[:-1])
        and path.stem not in {"conftest", "_version", "setup"}
    )


def read_file(path: Path, library: str, root: Path) -> Iterator[Passage]:
    """All passages of one file; a file that is not valid Python gives none."""
    relative = path.relative_to(root).as_posix()
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return
    yield from _docstrings(tree, library, relative)
    yield from _messages(tree, library, relative)
    if fraction(f"{library}/{relative}") < CODE_FILE_SHARE:
        yield from _comments_and_code(source, library, relative)


def fraction(text: str) -> float:
    """A fixed pseudo-random number in [0, 1) that depends on the text alone."""
    digest = hashlib.blake2b(text.encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big") / 256**7


def _docstrings(tree: ast.Module, library: str, path: str) -> Iterator[Passage]:
    """Opening paragraphs (`docstring`) and numpydoc sections (`section`) of every docstring."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        docstring = ast.get_docstring(node)
        if not docstring:
            continue
        owner = f"{path}:{getattr(node, 'lineno', 0)}"
        headers = list(SECTION_HEADER.finditer(docstring))
        opening = docstring[: headers[0].start()] if headers else docstring
        google = GOOGLE_SECTION.search(opening)
        if google:
            for paragraph in re.split(r"\n\s*\n", opening[google.end() :]):
                yield Passage(paragraph, "section", library, path, owner, "Arguments")
            opening = opening[: google.start()]
        for place, paragraph in enumerate(re.split(r"\n\s*\n", opening)):
            detail = FIRST if place == 0 else ""
            yield Passage(paragraph, "docstring", library, path, owner, detail)
        if headers:
            ends = [header.start() for header in headers[1:]] + [len(docstring)]
            for header, end in zip(headers, ends, strict=True):
                body = docstring[header.end() : end]
                for paragraph in re.split(r"\n\s*\n", body):
                    yield Passage(paragraph, "section", library, path, owner, header[1].strip())
            yield Passage(opening, "section", library, path, owner, "Summary")


def _messages(tree: ast.Module, library: str, path: str) -> Iterator[Passage]:
    """The message of every `raise SomeError("...")`, with `SomeError` as its detail."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args):
            continue
        exception = node.exc.func
        text = _literal(node.exc.args[0])
        if isinstance(exception, ast.Name) and text:
            owner = f"{path}:{node.lineno}"
            yield Passage(text, "message", library, path, owner, exception.id)


def _literal(node: ast.expr) -> str:
    """Text of a string expression; what is filled in at run time becomes its own source text."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(_literal(value) for value in values)
        case ast.FormattedValue(value=value):
            return ast.unparse(value) if isinstance(value, ast.Name | ast.Attribute) else "value"
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _literal(left) + _literal(right)
        case ast.BinOp(left=left, op=ast.Mod()):
            return re.sub(r"%[-#0 +]*\d*(\.\d+)?[sdrfgix]|%\(\w+\)[sdr]", "value", _literal(left))
        case ast.Call(func=ast.Attribute(value=value, attr="format")):
            return re.sub(r"\{[^{}]*\}", "value", _literal(value))
        case _:
            return ""


def _comments_and_code(source: str, library: str, path: str) -> Iterator[Passage]:
    """Blocks of whole-line comments, and single statements of code without their comments."""
    comment: list[str] = []
    statement: list[str] = []
    start = 0
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                if not token.line[: token.start[1]].strip():
                    comment.append(token.string.lstrip("#! "))
                continue
            if token.type == tokenize.NL:
                continue
            if comment:
                text = " ".join(comment)
                yield Passage(text, "comment", library, path, f"{path}:{token.start[0]}")
                comment = []
            if token.type == tokenize.NEWLINE:
                yield Passage(" ".join(statement), "code", library, path, f"{path}:{start}")
                statement = []
            elif token.type not in {tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}:
                start = start if statement else token.start[0]
                statement.append(token.string)
    except (tokenize.TokenError, IndentationError):
        return
