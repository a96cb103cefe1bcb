"""Tables for terminals of any width: what is copied out of them, such as a run's id, is never broken over two lines."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from agenthelm.cli._console import clean, out

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

__all__ = ["When", "print_table"]

_EDGES, _GAP, _NARROW_GAP = 2, 3, 2
_LEAST = 8
"""Characters of a column below which its text can't be read any more."""


class When(str):
    """A moment as ``YYYY-MM-DD hh:mm:ss``; where there is little room, without its year."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class _Column:
    """A column by its name and the signs before it; see `print_table`."""

    name: str
    signs: str

    @staticmethod
    def of(text: str) -> _Column:
        name = text.lstrip("#!?")
        return _Column(name, text[: len(text) - len(name)])

    @property
    def whole(self) -> bool:
        return bool(self.signs)


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    heading: str | None = None,
    console: Console | None = None,
) -> None:
    """Print rows under the names of their columns.

    Text is folded where there is little room, and where there is too little for that, each value gets a line of its own.
    Nothing is ever folded in a pipe.

    Args:
        columns: Their names. Before a name, ``!`` keeps its values whole, ``#`` does so and aligns them to the right,
            and ``?`` leaves the column out where there is little room.
        rows: A cell for each column: a `Text`, a `When`, or anything that `clean` takes.
        heading: A column that becomes a line above its rows where there is little room.
        console: Instead of the one for results.
    """
    console = console or out()
    known, cells = [_Column.of(column) for column in columns], [list(row) for row in rows]
    widths = _natural(known, full := _texts(cells))
    needed = sum(widths) + _GAP * (len(widths) - 1) + _EDGES
    if not (console.is_terminal or os.environ.get("COLUMNS")):
        console.width = max(console.width, needed)
    if needed <= console.width:
        console.print(_drawn(known, full, widths, framed=True))
        return
    kept = [at for at, column in enumerate(known) if "?" not in column.signs and column.name != heading]
    narrow, short = [known[at] for at in kept], [[row[at] for at in kept] for row in _texts(cells, short=True)]
    fitted = _fitted(narrow, _natural(narrow, short), console.width)
    if fitted is None:
        _print_lines(console, known, full)
        return
    console.print(_drawn(narrow, [], fitted, framed=False))
    at = None if heading is None else columns.index(f"!{heading}")
    for name, group in groupby(range(len(short)), key=lambda row: None if at is None else full[row][at].plain):
        if heading is not None:
            console.print(f"{heading} {name}", style="bold", soft_wrap=True)
        console.print(_drawn(narrow, [short[row] for row in group], fitted, framed=False, header=False))


def _texts(cells: Sequence[Sequence[object]], *, short: bool = False) -> list[list[Text]]:
    from rich.text import Text

    def text(cell: object) -> Text:
        if isinstance(cell, Text):
            return cell
        return Text(cell[len("YYYY-") :] if short and isinstance(cell, When) else clean(cell))

    return [[text(cell) for cell in row] for row in cells]


def _natural(columns: Sequence[_Column], rows: Sequence[Sequence[Text]]) -> list[int]:
    """How wide each column is when nothing is folded."""
    from rich.cells import cell_len

    return [max([cell_len(column.name), *(row[at].cell_len for row in rows)]) for at, column in enumerate(columns)]


def _fitted(columns: Sequence[_Column], natural: list[int], room: int) -> list[int] | None:
    """How wide each column is when texts share what the others leave of the room; None if that is too little to read."""
    texts = [at for at, column in enumerate(columns) if not column.whole]
    left = room - _NARROW_GAP * (len(columns) - 1) - sum(width for at, width in enumerate(natural) if at not in texts)
    widths = list(natural)
    texts.sort(key=lambda at: natural[at])
    for number, at in enumerate(texts):  # short ones first: what they do not need is for the others
        widths[at] = min(natural[at], left // (len(texts) - number))
        left -= widths[at]
        if widths[at] < min(natural[at], _LEAST):
            return None
    return widths if left >= 0 else None


def _drawn(
    columns: Sequence[_Column],
    rows: Iterable[Sequence[Text]],
    widths: Sequence[int],
    *,
    framed: bool,
    header: bool = True,
) -> Table:
    from rich import box
    from rich.table import Table

    drawn = Table(
        box=box.SIMPLE_HEAD if framed else None,
        padding=(0, 1) if framed else (0, _NARROW_GAP, 0, 0),
        pad_edge=False,
        show_header=header,
    )
    for column, width in zip(columns, widths, strict=True):
        drawn.add_column(column.name, justify="right" if "#" in column.signs else "left", overflow="fold", width=width)
    for row in rows:
        drawn.add_row(*row)
    return drawn


def _print_lines(console: Console, columns: Sequence[_Column], rows: Sequence[Sequence[Text]]) -> None:
    """Each value on a line of its own, however long: a terminal that wraps one does not break it."""
    from rich.text import Text

    label = max(len(column.name) for column in columns)
    for number, row in enumerate(rows):
        if number:
            console.print()
        for column, cell in zip(columns, row, strict=True):
            if cell.plain:
                console.print(Text.assemble((f"{column.name:{label}}  ", "bold"), cell), soft_wrap=True)
