"""What every command shares: its parser, its streams, its progress bars and its exit status."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

from trainers import relay
from trainers.manifest import CheckFailed, UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

T = TypeVar("T")

OK, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130
ANY = 10_000  # letters: wider than every table
_is_interrupted = False
COMPLETING = "_ARGCOMPLETE"  # set by a shell that wants to know what could come next


class Parser(argparse.ArgumentParser):
    """argparse with help that keeps its line breaks, and one-line errors that end with what to do next."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **keywords)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does; where a shell asks for completions it gets them instead (runtime completion)."""
        if COMPLETING in os.environ:
            import argcomplete

            argcomplete.autocomplete(self, always_complete_options="long")
        for text in sys.argv[1:] if args is None else args:
            try:
                text.encode()
            except UnicodeEncodeError:  # records and reports name files in UTF-8
                self.error(f"{text!r} is not UTF-8; give the file another name, or set LC_ALL=C.UTF-8")
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(MISUSED, f"{self.prog}: {message}; see {self.prog} --help\n")


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every command takes."""
    parser.add_argument(
        "--artifacts",
        type=Path,
        default=Path("artifacts"),
        metavar="DIR",
        help="where records and files lie (default: artifacts)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the result as one JSON document on stdout; all else goes to stderr"
    )


def names_models(action: argparse.Action, *known: str) -> None:
    """Let shells complete this argument by the models known, the folders under the artifacts, and files."""

    def completions(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
        from argcomplete.completers import FilesCompleter

        folder = getattr(parsed_args, "artifacts", None) or Path("artifacts")
        found = [path.parent.name for path in folder.glob("*/*.json")]
        return sorted({*known, *found, *FilesCompleter()(prefix)})

    action.completer = completions  # type: ignore[attr-defined]  # argcomplete's place for it


def run(command: Callable[[], int]) -> NoReturn:
    """Run a command's body and leave with its exit status; a UserError is one line on stderr and status 2."""
    relay.descriptor()  # before any worker is started
    # A process manager's TERM is as orderly as Ctrl-C: temporary files go, records stay.
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background job ignores it
        signal.signal(signal.SIGINT, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # in a locale that has not all letters, those become their codes
            stream.reconfigure(errors="backslashreplace")
    try:
        status = command()
        if sys.stdout is not None:  # closed by whoever started us
            sys.stdout.flush()
    except UserError as error:
        _complain(f"error: {error}")
        status = MISUSED
    except CheckFailed as error:
        _complain(f"FAILED: {error}")
        status = FAILED
    except KeyboardInterrupt:
        _complain("interrupted: finished files are complete, unfinished ones were removed")
        status = INTERRUPTED
    except BrokenPipeError:  # `… | head`: the reader has left, which is no failure of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = OK
    except OSError as error:  # a full disk, a folder that is a file, a path without permission
        place = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or error
        print(f"error: {place}{reason}; check the path, its permissions and free space", file=sys.stderr)
        status = MISUSED
    sys.exit(status)


def leads(variable: str = "RANK") -> bool:
    """Whether this process speaks: it is alone, or the first of all that torchrun started (LOCAL_RANK: here)."""
    return os.environ.get(variable, "0") == "0"


def _complain(line: str) -> None:
    if leads("LOCAL_RANK"):
        print(line, file=sys.stderr)


def _interrupt(*_: object) -> NoReturn:
    global _is_interrupted
    _is_interrupted = True
    raise KeyboardInterrupt


def stop_if_interrupted() -> None:
    """Raise KeyboardInterrupt again where a library may have taken an interrupt for an error of its own."""
    if _is_interrupted:
        raise KeyboardInterrupt


def choose(name: str, known: Iterable[str], noun: str) -> str:
    """Return `name` if it is known; else raise UserError with the nearest known names."""
    names = sorted(known)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(names)}"
    raise UserError(f"unknown {noun} {name!r}; {hint}")


def settings(pairs: Sequence[str]) -> dict[str, str]:
    """Parse repeated `--set key=value`. Raises UserError on a pair without `=` or a key given twice."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UserError(f"--set {pair!r} is not key=value; write for example --set lr=0.01")
        if key in found:
            raise UserError(f"--set {key} is given twice; give it once")
        found[key] = value
    return found


def positive(text: str) -> int:
    """argparse type: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


positive.__name__ = "positive number"  # argparse names the type in its message


def console(stderr: bool = False) -> Console:
    """A rich console; tables keep their full width when the output is not a terminal."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False, soft_wrap=True)
    if not made.is_terminal:
        made.width = 400
    return made


def emit(document: dict[str, Any]) -> None:
    """Print the one JSON document of a `--json` run."""
    print(json.dumps(document, indent=2))


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a progress bar on stderr; silent where stderr is no terminal."""
    with progress() as bars:
        yield from bars.track(items, total=total, description=description)


@contextlib.contextmanager
def progress() -> Iterator[Any]:
    """A rich Progress on stderr: description, bar, count, elapsed and remaining time; or a parent's display."""
    from rich import progress as bars

    to = relay.descriptor()
    if to is not None:
        with relay.bars(to) as relayed:
            yield relayed
        return
    shown = console(stderr=True)
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=shown, transient=True, disable=not (shown.is_terminal and leads())) as made:
        yield made


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, stderr: bool = False,
    spare: Sequence[str] = (),
) -> None:  # fmt: skip
    """Print an aligned table; a column marked with `>` is right-aligned.

    On a terminal that is too narrow the columns in `spare` are left out, the first of them first, and that is said;
    where that is not enough, texts go on in a second line.
    """
    shown, lines, missing = console(stderr), [tuple(row) for row in rows], []
    left = list(range(len(columns)))
    made = _table(title, columns, lines, left)
    for name in spare:
        if _fits(made, shown):
            break
        left = [place for place in left if columns[place] != name]
        missing.append(name.replace(">", ""))
        made = _table(title, columns, lines, left)
    if _fits(made, shown):
        shown.print(made)
    else:
        shown.print(_table(title, columns, lines, left, wrap=True), soft_wrap=False)
    if missing:
        shown.print(f"left out, for the terminal is narrow: {', '.join(missing)}", markup=False)


def _fits(made: Table, shown: Console) -> bool:
    """Whether every cell has its line, which all have where nobody's window bounds them."""
    return not shown.is_terminal or shown.measure(made, options=shown.options.update(width=ANY)).maximum <= shown.width


def _table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], places: Sequence[int], *, wrap: bool = False
) -> Table:
    """The columns at these places; those of text may `wrap`."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for place in places:
        justify: Literal["left", "right"] = "right" if ">" in columns[place] else "left"
        no_wrap = not wrap or justify == "right"
        made.add_column(columns[place].replace(">", ""), justify=justify, no_wrap=no_wrap, overflow="fold")
    for row in rows:
        made.add_row(*(Text(row[place]) for place in places))
    return made


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The same as a Markdown table."""
    lines = [
        [column.replace(">", "").strip() for column in columns],
        ["---:" if ">" in column else "---" for column in columns],
        *rows,
    ]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def megabytes(count: int) -> str:
    """Bytes as decimal megabytes; kilobytes below one, gigabytes from ten thousand on."""
    if count < 1e6:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e6:.1f} MB" if count < 1e10 else f"{count / 1e9:.1f} GB"
