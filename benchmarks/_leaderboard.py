"""Rows of `methods_on_zoo`, and what is made of them: tables, and the file that the app shows."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import awd_core as awd

SHOWN = Path(__file__).parents[1] / "dashboard" / "leaderboard.csv"
REFERENCES = {"base": "base", "experts": "experts, each on its own task"}
TITLES = {"lora": "LoRA experts", "full": "fully fine-tuned experts"}


@dataclass(frozen=True)
class Row:
    """One method on one zoo with one coefficient.

    Attributes:
        zoo: Name of its folder.
        kind: `lora` or `full`.
        method: Its key, or one of REFERENCES.
        awd: Whether AWD came first.
        chosen: `default`, or `validation` where the search chose the coefficient.
        coefficient: lambda; None where there is none.
        test: Accuracy of every task on the whole test split.
        error: Standard error of the mean accuracy, from binomial shares.
        validation: Mean accuracy on the sample.
        normalised: Mean of accuracies relative to each task's expert.
        cosine: Mean over experts of cos(merged change, tau_k).
        least_cosine: The smallest of them: the expert that the merge serves least.
        length: Norm of the merged change relative to the mean norm of the task vectors.
        cpu: Processor seconds of the merge.
        peak: Bytes.
        read: Bytes.
    """

    zoo: str
    kind: str
    method: str
    awd: bool
    chosen: str
    coefficient: float | None
    test: dict[str, float]
    error: float
    validation: float | None = None
    normalised: float | None = None
    cosine: float | None = None
    least_cosine: float | None = None
    length: float | None = None
    cpu: float | None = None
    peak: float | None = None
    read: float | None = None

    @property
    def mean(self) -> float:
        """Unweighted over tasks."""
        return float(np.mean(list(self.test.values())))

    @property
    def name(self) -> str:
        """For people."""
        if self.method in REFERENCES:
            return REFERENCES[self.method]
        method = awd.find_method(self.method)
        name = f"AWD (row) + {method.title}" if self.awd else method.title
        return f"{name}, task known" if method.needs_task else name


def kept_rows(folder: Path, zoo: str) -> list[Row]:
    """What was measured before on one zoo."""
    file = folder / f"{zoo}.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [Row(**json.loads(line)) for line in lines]


def keep(folder: Path, rows: Iterable[Row]) -> None:
    """Add what was measured."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        with (folder / f"{row.zoo}.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(row)) + "\n")


@dataclass(frozen=True)
class Entry:
    """One method on all zoos of a kind: the rows of its default and those of its best lambda."""

    default: Sequence[Row]
    best: Sequence[Row]

    @property
    def first(self) -> Row:
        """Any of them, for what they share."""
        return self.best[0]

    def mean(self, field: str) -> float | None:
        """Over zoos, at the best lambda."""
        values = [getattr(row, field) for row in self.best]
        return None if None in values else float(np.mean(values))

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the accuracy over zoos; None for one zoo."""
        means = [row.mean for row in self.best]
        return float(np.std(means, ddof=1)) if len(means) > 1 else None


def entries(rows: Sequence[Row], kind: str) -> list[Entry]:
    """Every method on the zoos of one kind, the best first."""
    groups: dict[tuple[str, bool], list[Row]] = {}
    for row in rows:
        if row.kind == kind:
            groups.setdefault((row.method, row.awd), []).append(row)
    found = []
    for group in groups.values():
        default = {row.zoo: row for row in group if row.chosen == "default"}
        best = default | {row.zoo: row for row in group if row.chosen == "validation"}
        found.append(Entry(list(default.values()), list(best.values())))
    return sorted(found, key=lambda entry: -(entry.mean("mean") or 0))


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """Markdown for every kind of zoo: one line a method, then its accuracy on every task."""
    for kind, title in TITLES.items():
        found = entries(rows, kind)
        if not found:
            continue
        zoos = dict.fromkeys(row.zoo for row in rows if row.kind == kind)
        yield (
            f"**{title}** ({', '.join(zoos)})\n\n| method | zoos | default λ | test | best λ | test"
            " | sd over zoos | normalised | mean cos | least cos | length | CPU s | peak MB |"
            f" MB read |\n{'|---' * 14}|"
        )
        yield from map(_line, found)
        tasks = list(found[0].first.test)
        yield f"\n| at the best λ | {' | '.join(tasks)} |\n{'|---' * (len(tasks) + 1)}|"
        for entry in found:
            means = [np.mean([row.test[task] for row in entry.best]) for task in tasks]
            yield f"| {entry.first.name} | {' | '.join(f'{mean:.3f}' for mean in means)} |"
        yield ""


def _line(entry: Entry) -> str:
    row = entry.first
    default = f"{np.mean([one.mean for one in entry.default]):.4f}" if entry.default else ""
    cells = [
        row.name,
        str(len(entry.best)),
        _lambdas(entry.default[:1]),
        default,
        _lambdas(entry.best),
        f"{entry.mean('mean'):.4f} ± {entry.mean('error'):.4f}",
        _number(entry.deviation, 4),
        *(_number(entry.mean(field), 3) for field in ("normalised", "cosine", "least_cosine")),
        _number(entry.mean("length"), 2),
        _number(entry.mean("cpu"), 1),
        *(_number(entry.mean(field), 0, 1e-6) for field in ("peak", "read")),
    ]
    return f"| {' | '.join(cells)} |"


def _lambdas(rows: Sequence[Row]) -> str:
    return ", ".join(f"{row.coefficient:g}" for row in rows if row.coefficient is not None)


def _number(value: float | None, digits: int, unit: float = 1.0) -> str:
    return "" if value is None else f"{value * unit:,.{digits}f}"


def write_shown(rows: Sequence[Row], command: str) -> None:
    """The file that the app shows."""
    with SHOWN.open("w", encoding="utf-8", newline="") as stream:
        stream.write(f"# {command}\n")
        writer = csv.writer(stream, lineterminator="\n")
        names = (
            "experts method awd task_known zoos default accuracy_at_default lambda accuracy"
            " standard_error deviation normalised mean_cosine least_cosine length cpu_s peak_mb"
            " read_mb"
        )
        writer.writerow(names.split())
        for kind, title in TITLES.items():
            for entry in entries(rows, kind):
                row = entry.first
                method = None if row.method in REFERENCES else awd.find_method(row.method)
                default = float(np.mean([one.mean for one in entry.default]))
                measured = [
                    *(entry.mean(name) for name in ("normalised", "cosine", "least_cosine")),
                    *(entry.mean(name) for name in ("length", "cpu")),
                    *(None if v is None else v / 1e6 for v in map(entry.mean, ("peak", "read"))),
                ]
                writer.writerow(
                    [
                        title,
                        method.title if method else row.name,
                        int(row.awd),
                        int(method is not None and method.needs_task),
                        len(entry.best),
                        _lambdas(entry.default[:1]),
                        f"{default:.4f}",
                        _lambdas(entry.best),
                        f"{entry.mean('mean'):.4f}",
                        f"{entry.mean('error'):.4f}",
                        _number(entry.deviation, 4),
                        *("" if value is None else f"{value:.4g}" for value in measured),
                    ]
                )
