"""How numbers are said: of things, of parameters, of changes."""


def counted(n: int, noun: str) -> str:
    """`1 expert`, `2 experts`."""
    return f"{n:,} {noun}{'s' * (n != 1)}"


def size(n_parameters: int) -> str:
    """`22.7 M`; below a million every one."""
    return f"{n_parameters / 1e6:,.1f} M" if n_parameters >= 1e6 else f"{n_parameters:,}"


def group_noun(granularity: str) -> str:
    """What shares one redundant vector's coefficients: `row`, `spectral direction`."""
    return "spectral direction" if granularity == "spectral" else granularity


def signed(change: float, form: str) -> str:
    """`+0.3`, `-0.3`, and `unchanged` where that is what would be read."""
    said = f"{change:+{form}}"
    return said if any(digit in said for digit in "123456789") else "unchanged"
