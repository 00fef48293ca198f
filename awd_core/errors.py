"""The one class tree of errors. The core raises these; it never logs and goes on."""


class AwdError(Exception):
    """A problem said so that a user can act on it: where, what was received, expected, what to do.

    Args:
        problem: One sentence saying what is wrong.
        where: File, folder, tensor or field that it is about.
        received: What was found there.
        expected: What should have been there.
        remedy: What the user can do about it.
    """

    def __init__(
        self,
        problem: str,
        *,
        where: object = None,
        received: object = None,
        expected: object = None,
        remedy: str | None = None,
    ) -> None:
        self.problem = problem
        self.where = None if where is None else str(where)
        self.received = None if received is None else str(received)
        self.expected = None if expected is None else str(expected)
        self.remedy = remedy
        # Names from outside may hold what no terminal can print.
        super().__init__(self._sentence().encode("utf-8", "backslashreplace").decode("utf-8"))

    def _sentence(self) -> str:
        parts = [self.problem.rstrip(".") + "."]
        if self.where is not None:
            parts.append(f"Where: {self.where}.")
        if self.received is not None:
            parts.append(f"Received: {self.received}.")
        if self.expected is not None:
            parts.append(f"Expected: {self.expected}.")
        if self.remedy is not None:
            parts.append(self.remedy)
        return " ".join(parts)

    def as_dict(self) -> dict[str, str | None]:
        """The same, field by field, for `--json` and for tables."""
        return {
            "error": type(self).__name__,
            "problem": self.problem,
            "where": self.where,
            "received": self.received,
            "expected": self.expected,
            "remedy": self.remedy,
        }


class CheckpointError(AwdError):
    """A checkpoint on disk cannot be used as it is."""


class MismatchError(AwdError):
    """Checkpoints that cannot be merged with one another."""


class StudyError(AwdError):
    """A study on disk is missing, incomplete or of another kind."""


class RecipeError(AwdError):
    """A recipe, or an option of a command, that has no meaning."""


class OutputError(AwdError):
    """The result cannot be written, or what was written is not what should be there."""


class ClusterError(AwdError):
    """A cluster that cannot be used, or that gave a task up."""


class Cancelled(AwdError):
    """The user cancelled; nothing half-written remains."""

    def __init__(self, problem: str = "Cancelled on request") -> None:
        super().__init__(problem)


def not_finite(tensor: str, owner: str) -> AwdError:
    """A weight is NaN or infinite; `owner` is `the base` or names the expert."""
    return AwdError(
        "A weight is NaN or infinite",
        where=f"tensor {tensor!r} of {owner}",
        expected="finite weights",
        remedy="Use a checkpoint from before training diverged, or list the tensor"
        " under `exclude`.",
    )


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """Sentence naming the nearest known word and all of them, for errors about unknown names."""
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(known)}."
