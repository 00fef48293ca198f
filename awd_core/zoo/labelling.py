"""The eight tasks of the zoo: which passage becomes a question, and what its answer is.

A task is a rule from a passage to a label, or to None where the passage is no question of it.
The rules see where a passage stands in the sources; the models see only its cleaned text.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from awd_core.zoo.sources import FIRST, STDLIB, Passage

MAX_CHARACTERS = 160
MIN_CHARACTERS = 20
MIN_WORDS = 4
WORD = re.compile(r"[A-Za-z]{2,}")

LIBRARIES = {
    "networkx": "NetworkX",
    "pandas": "pandas",
    "scipy": "SciPy",
    "sklearn": "scikit-learn",
    "sympy": "SymPy",
    "torch": "PyTorch",
}

STDLIB_AREAS = {
    "network": "asynchat asyncore cgi cgitb email ftplib http imaplib ipaddress mailbox nntplib "
    "poplib smtpd smtplib socket socketserver ssl telnetlib urllib webbrowser wsgiref xmlrpc",
    "concurrency": "_threading_local asyncio concurrent multiprocessing queue sched selectors "
    "signal subprocess threading",
    "user interface": "argparse cmd curses getopt optparse tkinter turtle turtledemo",
    "packaging": "compileall distutils ensurepip imp importlib modulefinder pkgutil py_compile "
    "runpy site sysconfig venv zipapp zipimport",
    "files and formats": "_pyio aifc bz2 configparser csv dbm filecmp fileinput fnmatch glob gzip "
    "html io json lzma mimetypes ntpath os pathlib pickle plistlib posixpath shelve shutil "
    "sqlite3 sunau tarfile tempfile tomllib wave xdrlib xml zipfile",
    "numbers and dates": "_pydecimal _strptime bisect calendar colorsys datetime fractions heapq "
    "numbers random statistics zoneinfo",
    "testing and debugging": "ast bdb dis doctest inspect logging pdb profile pstats pyclbr pydoc "
    "symtable timeit tokenize trace traceback tracemalloc unittest",
    "types and containers": "_collections_abc abc collections contextlib copy dataclasses enum "
    "functools graphlib operator types typing weakref",
}

SKLEARN_AREAS = {
    "linear models": "linear_model _loss svm discriminant_analysis",
    "trees and ensembles": "ensemble tree",
    "metrics": "metrics",
    "decomposition": "decomposition manifold cross_decomposition random_projection",
    "clustering": "cluster mixture",
    "data sets": "datasets",
}

SCIPY_AREAS = {
    "statistics": "stats",
    "optimization": "optimize",
    "signals and transforms": "signal fft fftpack",
    "sparse arrays": "sparse",
    "linear algebra": "linalg",
    "space and clusters": "spatial cluster",
    "interpolation and integration": "interpolate integrate",
    "special functions": "special",
}

TORCH_AREAS = {
    "neural network layers": "nn",
    "distributed": "distributed",
    "compiler": "_inductor _dynamo",
    "quantization": "ao",
    "graph transforms": "fx",
    "export": "onnx export _export package jit",
    "optimizers": "optim",
    "accelerators": "cuda xpu mps mtia backends accelerator",
}

EXCEPTIONS = (
    "AttributeError",
    "ImportError",
    "NotImplementedError",
    "TypeError",
    "ValueError",
)

SECTIONS = {
    "Summary": "summary",
    "Parameters": "parameters",
    "Returns": "returns",
    "Raises": "raises",
    "Notes": "notes",
    "Examples": "examples",
    "See Also": "see also",
    "References": "references",
}

# Sections of a docstring that speak of the subject in sentences, as its opening does.
PROSE_SECTIONS = {"Notes", "Summary"}

KINDS = {
    "docstring": "docstring",
    "comment": "comment",
    "message": "error message",
    "code": "code",
}

# Texts about addresses, licences and people's machines teach nothing and age badly.
UNFIT = re.compile(
    r"@\w+\.|copyright|licen[sc]e|pypi|/home/|/usr/|/root/|/tmp/|/users/|c:/", re.IGNORECASE
)

# Names that would give a library away, and the neutral words that stand in for them.
GIVEAWAYS = (
    (
        r"\b(numpy|np|scipy|sp|pytorch|torch|pandas|pd|sklearn|scikit-learn|scikits?|sympy|"
        r"networkx|nx|hugging ?face|transformers?|aten)\b(\.\w+)*",
        "library",
    ),
    (r"\b(ndarrays?|DataFrames?|Series|Tensors?|Expr|Basic|Module|Estimator)\b", "object"),
)


@dataclass(frozen=True)
class Rule:
    """One task: its words, its labels, and the function giving a passage's label or None."""

    key: str
    title: str
    question: str
    labels: tuple[str, ...]
    label: Callable[[Passage], str | None]
    masked: bool = False

    def text(self, passage: Passage) -> str | None:
        """The passage as the models see it, or None where too little of it is left."""
        cleaned = clean(passage.text)
        return shorten(mask(cleaned) if self.masked else cleaned)


def clean(text: str) -> str:
    """Text on one line, without the mark-up that would give its origin away."""
    text = re.sub(r"^\s*\.\. \[\w+\]|>>>|^\.\.\.|^\s*\.\. [\w-]+::", " ", text, flags=re.MULTILINE)
    text = re.sub(r"<?\b(https?://|www\.)\S+", " ", text)
    text = re.sub(r":\w+:`~?([^`<]+)[^`]*`", r"\1", text)
    text = re.sub(r"[`*\\]+", "", text)
    return re.sub(r"\s+", " ", text).strip(" -#=")


def mask(text: str) -> str:
    """Text with library names and the names that give a library away replaced."""
    for pattern, word in GIVEAWAYS:
        text = re.sub(pattern, word, text, flags=re.IGNORECASE)
    return text


def shorten(text: str) -> str | None:
    """The first words of a text, at most MAX_CHARACTERS; None if too few or unfit."""
    if len(text) > MAX_CHARACTERS:
        text = text[:MAX_CHARACTERS].rsplit(" ", 1)[0]
    long_enough = len(text) >= MIN_CHARACTERS and len(WORD.findall(text)) >= MIN_WORDS
    return text if long_enough and not UNFIT.search(text) else None


def _library(passage: Passage) -> str | None:
    # A docstring's first paragraph says what it is about; later ones may say anything.
    first = passage.kind == "docstring" and passage.detail == FIRST
    return LIBRARIES.get(passage.library) if first else None


def _kind(passage: Passage) -> str | None:
    return KINDS.get(passage.kind)


def _exception(passage: Passage) -> str | None:
    known = passage.kind == "message" and passage.detail in EXCEPTIONS
    return passage.detail if known else None


def _section(passage: Passage) -> str | None:
    return SECTIONS.get(passage.detail) if passage.kind == "section" else None


def _area_of(
    library: str, areas: dict[str, str], sections: set[str] = PROSE_SECTIONS
) -> Callable[[Passage], str | None]:
    """Rule giving the area of a library in which the file of a docstring's prose lies."""
    by_folder = {folder: area for area, folders in areas.items() for folder in folders.split()}

    def label(passage: Passage) -> str | None:
        prose = passage.kind == "docstring" or passage.detail in sections
        if passage.library != library or not prose:
            return None
        return by_folder.get(passage.path.split("/")[0].removesuffix(".py"))

    return label


RULES = (
    Rule(
        "library",
        "Library",
        "Which library does this docstring document?",
        tuple(LIBRARIES.values()),
        _library,
        masked=True,
    ),
    Rule(
        "stdlib_area",
        "Standard library area",
        "Which part of Python's standard library is this docstring from?",
        tuple(STDLIB_AREAS),
        _area_of(STDLIB, STDLIB_AREAS),
        masked=True,
    ),
    Rule(
        "passage_kind",
        "Kind of passage",
        "Is this a docstring, a comment, an error message, or code?",
        tuple(KINDS.values()),
        _kind,
    ),
    Rule(
        "exception",
        "Exception",
        "Which exception carries this error message?",
        EXCEPTIONS,
        _exception,
    ),
    Rule(
        "docstring_section",
        "Docstring section",
        "Which section of a docstring is this passage from?",
        tuple(SECTIONS.values()),
        _section,
    ),
    Rule(
        "sklearn_area",
        "scikit-learn area",
        "Which part of scikit-learn is this docstring from?",
        tuple(SKLEARN_AREAS),
        _area_of("sklearn", SKLEARN_AREAS),
        masked=True,
    ),
    Rule(
        "scipy_area",
        "SciPy area",
        "Which part of SciPy is this docstring from?",
        tuple(SCIPY_AREAS),
        _area_of("scipy", SCIPY_AREAS),
        masked=True,
    ),
    Rule(
        "torch_area",
        "PyTorch area",
        "Which part of PyTorch is this docstring from?",
        tuple(TORCH_AREAS),
        _area_of("torch", TORCH_AREAS, PROSE_SECTIONS | {"Arguments"}),
        masked=True,
    ),
)
