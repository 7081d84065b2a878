"""What is shown, as Rich renderables: pure functions from data, which ask no kernel and no clock.

The tables are lines of our own and no rich.table: a line that is written whole can be grepped, a
view made of lines can be cut to the terminal's height, and 65,536 of them cost no minute. What
colour says is said by a word, too.
"""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.style import Style

Line = Sequence[Segment]

PLAIN = Style()
TITLE = Style(bold=True)
SORTED = Style(bold=True, underline=True)
DIM = Style(dim=True)
ALARM = Style(color="red", bold=True)
NOTICE = Style(color="yellow")


@dataclass(frozen=True)
class Lines:
    """Lines as they are: neither wrapped nor cut here, nor padded."""

    lines: Sequence[Line]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self.lines:
            yield from line
            yield Segment.line()


@dataclass(frozen=True)
class Explained:
    """Lines with a text after each, which a terminal wraps under itself; a pipe gets it whole."""

    lines: Sequence[tuple[Line, Segment]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line, (text, style, _) in self.lines:
            indent = length(line)
            room = max(options.max_width - indent, 20)
            parts = textwrap.wrap(text, room) if console.is_terminal else [text]
            yield from line
            yield Segment(f"\n{' ' * indent}".join(parts), style)
            yield Segment.line()


def show(renderable: RenderableType, console: Console | None = None) -> None:
    """Print on stdout, with nothing cut: a terminal wraps lines that are too long for it."""
    (console or Console()).print(renderable, crop=False)


def _plain(row: Any) -> Style:
    return PLAIN


class Column(NamedTuple):
    """A column of a table: of peers, or of anything else. Numbers stand at the `right`.

    `human` is the text for a terminal, where it is not that for a pipe. `key` is what `watch` sorts
    by, the `largest` first where that is what one looks for; without it, it does not. `rated`: the
    key needs the row's rate, which costs a look-up for each.
    """

    title: str
    text: Callable[[Any], str]
    right: bool = False
    style: Callable[[Any], Style] = _plain
    least: int = 0  # width, so that a live view does not jump
    key: Callable[[Any], Any] | None = None
    largest: bool = False
    rated: bool = False
    human: Callable[[Any], str] | None = None


def table(
    columns: Sequence[Column],
    rows: Sequence[Any],
    width: int | None = None,
    *,
    human: bool = False,
    sorted_by: Column | None = None,
) -> list[Line]:
    """Titles and rows; the last columns are left out where all together exceed the width."""
    titles = [column.title for column in columns]
    texts_of = [(human and column.human) or column.text for column in columns]
    texts = [[text(row) for text in texts_of] for row in rows]
    widths = [
        max(column.least, *map(len, cells))
        for column, cells in zip(columns, zip(titles, *texts, strict=True), strict=True)
    ]
    columns = columns[: _fitting(widths, width) if width else None]
    titled = [SORTED if column is sorted_by else TITLE for column in columns]
    lines = [_aligned(columns, widths, titles, titled)]
    for row, cells in zip(rows, texts, strict=True):
        lines.append(_aligned(columns, widths, cells, [column.style(row) for column in columns]))
    return lines


def _fitting(widths: Sequence[int], width: int) -> int:
    """How many columns fit, two spaces apart; at least one."""
    count = len(widths)
    while count > 1 and sum(widths[:count]) + 2 * (count - 1) > width:
        count -= 1
    return count


def _aligned(
    columns: Sequence[Column], widths: Sequence[int], texts: Sequence[str], styles: Sequence[Style]
) -> Line:
    """The cells as one line, neighbours of one style together."""
    line: list[Segment] = []
    text = ""
    for index, column in enumerate(columns):
        cell = texts[index]
        text += cell.rjust(widths[index]) if column.right else cell.ljust(widths[index])
        if index + 1 == len(columns):
            # Blanks at the end would only spoil a pipe.
            line.append(Segment(text.rstrip(), styles[index]))
        elif styles[index] is styles[index + 1]:
            text += "  "
        else:
            line.append(Segment(text + "  ", styles[index]))
            text = ""
    return line


def length(line: Line) -> int:
    return sum(segment.cell_length for segment in line)


def cut(line: Line, width: int) -> Line:
    """The line, with an ellipsis where it is too long."""
    if length(line) <= width:
        return line
    return [*Segment.adjust_line_length(list(line), max(width - 1, 0)), Segment("…")]
