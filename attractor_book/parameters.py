"""The parameters of a chapter, as its cell tagged `parameters` gives them.

Each line of that cell reads::

    name = literal  # meaning [unit]; range

The unit may be missing. The range is one of::

    at least 1, < 10          bounds: > 0, < 1, at least 1, at most 1, 2 to 10,000 (with both ends)
    at least 0, rising        a list may have to rise
    one of auto, cpu, cuda:*  a choice; the star stands for anything
    some of a; b; c           text of these words between semicolons, or empty
    any text

The first line may be ``# fmt: off``, so that a formatter leaves each parameter on its line. A bound
is a number or the name of another parameter. Each value of a list must be in range, and a list
holds at least one. There is no equality sign in the comment: papermill could not read the line.
"""

import ast
import math
import operator
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

LINE = re.compile(
    r"(?P<name>\w+) = (?P<default>[^#]+?) +# (?P<meaning>[^;=\[]+?)"
    r"(?: \[(?P<unit>[^\]=]+)\])?; (?P<allowed>[^=]+)"
)
FMT_OFF = "# fmt: off\n"
COMPARISONS = {">": operator.gt, "at least": operator.ge, "<": operator.lt, "at most": operator.le}


@dataclass(frozen=True)
class Parameter:
    """A line of the parameters cell."""

    name: str
    default: object
    meaning: str
    unit: str
    allowed: str


def read_parameters(source: str) -> dict[str, Parameter]:
    """The parameters of a cell by name.

    Raises:
        ValueError: for a line that is not ``name = literal  # meaning [unit]; range``.
    """
    known = {}
    for line in source.strip().removeprefix(FMT_OFF).strip().splitlines():
        if not (match := LINE.fullmatch(line)):
            raise ValueError(
                f"expected a line 'name = literal  # meaning [unit]; range', got {line!r}"
            )
        name, default, *said = match.groups(default="")
        known[name] = Parameter(name, ast.literal_eval(default), *said)
    return known


def check_values(known: dict[str, Parameter], given: dict) -> dict:
    """The values given, put right where text stands for a number (YAML reads 1e-2 as text).

    Raises:
        ValueError: for an unknown name, a value of another type than the default, or one out of
            range.
    """
    if unknown := set(given) - set(known):
        raise ValueError(
            f"no parameter is named {', '.join(map(repr, sorted(unknown)))}; "
            f"there are {', '.join(known)}"
        )
    given = {name: _typed(value, known[name].default, name) for name, value in given.items()}
    values = {**{name: parameter.default for name, parameter in known.items()}, **given}
    for name, parameter in known.items():  # all, as a bound may be another parameter
        if not _holds(values[name], parameter.allowed, values):
            raise ValueError(
                f"{name} ({parameter.meaning}) must be {_with_values(parameter.allowed, values)}, "
                f"got {values[name]!r}{'' if name in given else ', its default'}"
            )
    return given


def check_parameters() -> None:
    """Refuse values out of range, and unknown names, in the notebook that calls it.

    By itself papermill only warns of an unknown name. Outside a notebook nothing is done.

    Raises:
        ValueError: as `check_values`.
    """
    known, given = _of_this_notebook()
    check_values(known, {**{name: parameter.default for name, parameter in known.items()}, **given})


def chapter_parameters() -> dict:
    """The parameters with which the notebook that calls it runs: its defaults, and what it was
    given.
    """
    known, given = _of_this_notebook()
    return {**{name: parameter.default for name, parameter in known.items()}, **given}


def _of_this_notebook() -> tuple[dict[str, Parameter], dict]:
    """The parameters of the notebook that is running, and what papermill put below them; none
    outside.

    The cells that have run tell both. Lines that have lost their comment are left out.
    """
    try:
        sources = [cell.strip() for cell in get_ipython().user_ns["In"]]
    except NameError:
        return {}, {}
    cells = [source.removeprefix(FMT_OFF).strip().splitlines() for source in sources]
    of_parameters = [n for n, cell in enumerate(cells) if cell and LINE.fullmatch(cell[0])]
    if not of_parameters:
        return {}, {}
    last, given = of_parameters[-1], {}
    for cell in cells[last + 1 :]:
        if cell and cell[0] == "# Parameters":
            exec("\n".join(cell), {}, given)
    return read_parameters("\n".join(filter(LINE.fullmatch, cells[last]))), given


def _with_values(allowed: str, values: dict) -> str:
    """A range in which the names of other parameters are followed by their values."""

    def told(word: re.Match) -> str:
        return f"{word[0]} = {values[word[0]]!r}" if word[0] in values else word[0]

    return re.sub(r"\b[a-z_]+\b", told, allowed)


def _typed(value, default, name: str):
    """The value as the default's type, numbers being finite; a whole number will do for any."""
    kind = type(default)
    what = "a finite number" if kind is float else kind.__name__
    wrong = ValueError(f"{name} must be {what} like its default {default!r}, got {value!r}")
    if isinstance(default, list) and isinstance(value, list):
        return [_typed(v, default[0], f"each of {name}") for v in value]
    if kind is float and isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise wrong from None
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise wrong
    if kind is float and not math.isfinite(value):
        raise wrong
    return value


def _holds(value, allowed: str, values: dict) -> bool:
    """Whether a value is in a range; ValueError if the range is not written as above."""
    kind, _, options = allowed.partition(" of ")
    if kind == "some":
        return set(filter(None, value.split("; "))) <= set(options.split("; "))
    each = value if isinstance(value, list) else [value]
    if not each:
        return False
    if kind == "one":
        return all(any(fnmatchcase(str(v), o) for o in options.split(", ")) for v in each)
    return allowed == "any text" or all(_within(each, part, values) for part in allowed.split(", "))


def _within(each: list, part: str, values: dict) -> bool:
    """Whether all values keep to one bound, or rise."""

    def bound(text: str):
        return values[text] if text in values else ast.literal_eval(text.replace(",", ""))

    if part == "rising":
        return all(a < b for a, b in zip(each, each[1:]))
    if match := re.fullmatch(r"(>|<|at least|at most) (\S+)", part):
        return all(COMPARISONS[match[1]](v, bound(match[2])) for v in each)
    if match := re.fullmatch(r"(\S+) to (\S+)", part):
        return all(bound(match[1]) <= v <= bound(match[2]) for v in each)
    raise ValueError(f"expected a range, such as '> 0' or '2 to 10,000', got {part!r}")
