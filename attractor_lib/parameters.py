"""The parameters of a chapter, as the cell tagged `parameters` gives them: default, meaning, unit and allowed range.

Each line of that cell reads

    name = literal  # meaning [unit]; range

where the unit may be missing, and the range is one of

    > 0                          also: < 1, at least 1, at most 1; a bound is a number or the name of another parameter
    2 to 10,000                  both ends included
    multiple of 8
    one of auto, cpu, cuda:*     the star stands for anything
    some of hidden, noisy        text that holds some of these words, separated by commas, semicolons or blanks as here
    any text
    0 or 250 to 60,000           this value, or the range
    > 0, at most 1               both
    each > 0                     every value of a list that is not empty
    4 or more, each > 0, rising, 0.1 among them       more about a list

There is no equality sign in the comment: papermill could not read the line.
"""

import ast
import math
import operator
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

LINE = re.compile(r"(?P<name>\w+) = (?P<default>[^#]+?) +# (?P<meaning>[^;=\[]+?)(?: \[(?P<unit>[^\]=]+)\])?; (?P<allowed>[^=]+)")
COMPARISONS = {">": operator.gt, "at least": operator.ge, "<": operator.lt, "at most": operator.le}


@dataclass(frozen=True)
class Parameter:
    name: str
    default: object
    meaning: str
    unit: str
    allowed: str


def read_parameters(source: str) -> dict[str, Parameter]:
    """The parameters of a cell by name; ValueError for a line that is not `name = literal  # meaning [unit]; range`."""
    known = {}
    for line in source.strip().splitlines():
        if not (match := LINE.fullmatch(line)):
            raise ValueError(f"expected a line 'name = literal  # meaning [unit]; range', got {line!r}")
        name, default, *said = match.groups(default="")
        known[name] = Parameter(name, ast.literal_eval(default), *said)
    return known


def check_values(known: dict[str, Parameter], given: dict) -> dict:
    """The values given, put right where text stands for a number (YAML reads 1e-2 as text).

    Raises ValueError for a name that is not known, a value of another type than the default, or one out of range.
    """
    if unknown := set(given) - set(known):
        raise ValueError(f"no parameter is named {', '.join(map(repr, sorted(unknown)))}; there are {', '.join(known)}")
    given = {name: _typed(value, known[name].default, name) for name, value in given.items()}
    values = {**{name: parameter.default for name, parameter in known.items()}, **given}
    for name, parameter in known.items():  # all, as a bound may be another parameter
        if not _holds(values[name], parameter.allowed, values):
            allowed = re.sub(r"\b[a-z_]+\b", lambda word: f"{word[0]} = {values[word[0]]!r}" if word[0] in values else word[0], parameter.allowed)
            by_default = "" if name in given else ", its default"
            raise ValueError(f"{name} ({parameter.meaning}) must be {allowed}, got {values[name]!r}{by_default}")
    return given


def check_parameters() -> None:
    """Refuse values out of range, and names that are none, in the notebook that calls it; outside IPython nothing is done.

    The cells that have run tell the values: the parameters cell, and the one below it into which papermill puts what it
    was given. (By itself papermill only warns of an unknown name.) Lines that have lost their comment are not checked.
    """
    try:
        cells = [cell.strip().splitlines() for cell in get_ipython().user_ns["In"]]
    except NameError:
        return
    last = max((n for n, cell in enumerate(cells) if cell and LINE.fullmatch(cell[0])), default=len(cells))
    given = {}
    for cell in cells[last + 1:]:
        if cell and cell[0] == "# Parameters":
            exec("\n".join(cell), {}, given)
    for cell in cells[last:last + 1]:
        known = read_parameters("\n".join(filter(LINE.fullmatch, cell)))
        check_values(known, {**{name: parameter.default for name, parameter in known.items()}, **given})


def _typed(value, default, name: str):
    """The value as the default's type, numbers being finite; a whole number will do for any."""
    kind = type(default)
    what = "a finite number" if kind is float else kind.__name__
    wrong = ValueError(f"{name} must be {what} like its default {default!r}, got {value!r}")
    if isinstance(default, list) and isinstance(value, list):
        return [_typed(v, default[0], f"each of {name}") for v in value]
    if kind is float and type(value) in (int, str):
        try:
            value = float(value) if isinstance(value, str) else value
        except ValueError:
            raise wrong from None
    if type(value) is not kind and not (kind is float and type(value) is int) or kind is float and not math.isfinite(value):
        raise wrong
    return value


def _holds(value, allowed: str, values: dict) -> bool:
    """Whether a value is in a range; ValueError if the range is not written as above."""
    if match := re.fullmatch(r"(\d+) or more, (.+)", allowed):
        return len(value) >= int(match[1]) and _holds(value, match[2], values)
    if match := re.fullmatch(r"(\S+) or (.+)", allowed):
        return value == ast.literal_eval(match[1]) or _holds(value, match[2], values)
    if match := re.fullmatch(r"one of (.+)", allowed):
        return any(fnmatchcase(str(value), option) for option in match[1].split(", "))
    if match := re.fullmatch(r"some of (.+)", allowed):
        separator = next(s for s in ("; ", ", ", " ") if s in match[1])
        return set(value.split(separator)) <= set(match[1].split(separator))
    if isinstance(value, list):
        parts = allowed.removeprefix("each ").split(", ")
        return bool(value) and all(_holds_of_list(value, part, values) for part in parts)
    return allowed == "any text" or all(_holds_of_number(value, part, values) for part in allowed.split(", "))


def _holds_of_list(value: list, part: str, values: dict) -> bool:
    if part == "rising":
        return all(a < b for a, b in zip(value, value[1:]))
    if match := re.fullmatch(r"(\S+) among them", part):
        return ast.literal_eval(match[1]) in value
    return all(_holds(v, part, values) for v in value)


def _holds_of_number(value, part: str, values: dict) -> bool:
    def bound(text):
        return values[text] if text in values else ast.literal_eval(text.replace(",", ""))

    if match := re.fullmatch(r"(>|<|at least|at most) (\S+)", part):
        return COMPARISONS[match[1]](value, bound(match[2]))
    if match := re.fullmatch(r"(\S+) to (\S+)", part):
        return bound(match[1]) <= value <= bound(match[2])
    if match := re.fullmatch(r"multiple of (\d+)", part):
        return value % int(match[1]) == 0
    raise ValueError(f"expected a range, such as '> 0' or '2 to 10,000', got {part!r}")
