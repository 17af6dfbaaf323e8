"""Who was busy when: one row a site and one for the server, around the erasure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from flwr_afuic.report.look import FAINT, INK, MUTED, blank_figure, printable, say_empty, shorten
from flwr_afuic.report.record import END, MERGE, REQUEST, RunRecord, Span

KINDS = {
    "train": ("training", "#9db4c8"),
    "evaluate": ("evaluating", "#d3dde6"),
    "unlearn": ("unlearning", "#d55e00"),
    "verify": ("verifying", "#e69f00"),
    "reference": ("making the reference", "#0072b2"),
    "fidelity": ("keeping fidelity", "#009e73"),
    "invariance": ("invariance calibration", "#56b4e9"),
}
_OTHER = ("other work", "#b9a6c9")
_LOUD = frozenset({"unlearn", "verify", "reference"})
_MOST_ROWS = 20
_ROW = 0.3  # inches


@dataclass(frozen=True, slots=True)
class Window:
    """Seconds shown, and the request, merges and end within the erasure (None: did not happen)."""

    start: float
    end: float
    request: float | None
    merges: tuple[float, ...]
    finish: float | None
    finish_word: str

    def clip(self, spans: Iterable[Span]) -> list[Span]:
        """Return the spans cut to the window, by start."""
        cut = (
            Span(s.site, s.kind, max(s.start, self.start), min(s.end, self.end))
            for s in spans
            if s.end > self.start and s.start < self.end
        )
        return sorted(cut, key=lambda span: span.start)


def erasure_window(record: RunRecord) -> Window | None:
    """Return the seconds around the erasure, or None where no work was timed.

    From a little before the request until its end. Where verifying took far longer than
    erasing, the window stops earlier, so that the erasure itself can still be seen.
    """
    spans = [*record.spans, *record.server_spans]
    if not spans:
        return None
    first, last = min(s.start for s in spans), max(s.end for s in spans)
    requests = [e.time for e in record.happened(REQUEST) if e.time is not None]
    merges = tuple(e.time for e in record.happened(MERGE) if e.time is not None)
    ends = [(e.time, e.kind) for e in record.happened(END) if e.time is not None]
    finish, word = ends[-1] if ends else (None, "")
    if not requests:
        return Window(first, max(last, first + 1e-9), None, merges, finish, word)
    begin = requests[0]
    until = finish if finish is not None else last
    if merges:
        until = min(until, begin + 5 * max(merges[-1] - begin, 1e-9))
    length = max(until - begin, 1e-9)
    # No cut at the first or last span: work that stops early has to show as a gap.
    return Window(begin - 0.3 * length, until + 0.12 * length, begin, merges, finish, word)


def busy_share(spans: Iterable[Span], start: float, end: float) -> float | None:
    """Return the share of the seconds from ``start`` to ``end`` covered by at least one span."""
    if end - start <= 0:
        return None
    covered, reached = 0.0, start
    for span in sorted(spans, key=lambda s: s.start):
        low, high = max(span.start, reached), min(span.end, end)
        if high > low:
            covered += high - low
            reached = high
    return covered / (end - start)


def figure_timeline(record: RunRecord) -> Figure:
    """Draw who was busy when, with the erased site's unlearning and the server's work in colour.

    Two columns at the right give each site's busy share before the request and while it was
    open: equal numbers mean that nobody waited because of the erasure.
    """
    window = erasure_window(record)
    title = f"Who was busy when: the erasure of {shorten(record.target, 24)} beside training"
    if window is None:
        figure = blank_figure(3.0, title, _origin(record))
        say_empty(figure, "The times of the tasks were not recorded in this run.")
        return figure
    rows, hidden = _rows(record, window)
    tall = 1.0 + 0.75 + _ROW * (len(rows) + 1)
    figure = blank_figure(tall, title, _origin(record, hidden))
    axes = figure.add_axes((0.15, 0.75 / tall, 0.665, _ROW * (len(rows) + 1) / tall))
    axes.set_xlim(window.start, window.end)
    axes.set_ylim(len(rows) + 0.5, -0.5)
    _draw_row(axes, 0, shorten(record.target, 14), window.clip(_of(record, record.target)), True)
    for row, site in enumerate(rows[1:], start=1):
        _draw_row(axes, row, shorten(site, 14), window.clip(_of(record, site)), False)
    _draw_row(axes, len(rows), "server", window.clip(record.server_spans), False)
    _mark(axes, window)
    _columns(axes, record, rows, window)
    _dress(axes)
    _legend(figure, record, window)
    return figure


def _origin(record: RunRecord, hidden: int = 0) -> str:
    words = f"seconds since the start; busy = share of them with a task  ·  {record.engine} engine"
    if hidden:
        words += f"  ·  {hidden} more sites are not drawn"
    return printable(words)


def _of(record: RunRecord, site: str) -> list[Span]:
    return [span for span in record.spans if span.site == site]


def _rows(record: RunRecord, window: Window) -> tuple[list[str], int]:
    """Return the target and the other sites; of very many, those with most tasks in view."""
    others = [site for site in record.sites if site != record.target]
    keep = others
    if len(others) > _MOST_ROWS:
        tasks = {site: len(window.clip(_of(record, site))) for site in others}
        busiest = set(sorted(others, key=lambda site: -tasks[site])[:_MOST_ROWS])
        keep = [site for site in others if site in busiest]
    return [record.target, *keep], len(others) - len(keep)


def _draw_row(axes: Axes, row: int, name: str, spans: list[Span], target: bool) -> None:
    left, right = axes.get_xlim()
    shade = "#fdf1e8" if target else "#f5f7f9"
    axes.broken_barh([(left, right - left)], (row - 0.4, 0.8), facecolor=shade, zorder=0)
    edge = (right - left) * 0.0012  # a sliver of white between two tasks
    for span in spans:
        _, colour = KINDS.get(span.kind, _OTHER)
        width = max(span.end - span.start - edge, edge)
        loud = span.kind in _LOUD
        axes.broken_barh(
            [(span.start, width)], (row - 0.36, 0.72), facecolor=colour, zorder=3 if loud else 2
        )
    axes.text(
        -0.012, row, name, transform=axes.get_yaxis_transform(), ha="right", va="center",
        fontsize=10.5, color=INK, fontweight="bold" if target else "normal", parse_math=False,
    )  # fmt: skip


def _mark(axes: Axes, window: Window) -> None:
    """Mark request, merges and end; words that would collide go one line higher."""
    marks = [(window.request, "request", "right")]
    marks += [(at, "merge" if i == 0 else f"merge {i + 1}", "left")
              for i, at in enumerate(window.merges)]  # fmt: skip
    marks.append((window.finish, window.finish_word.replace("-", " "), "right"))
    width = window.end - window.start
    taken: list[tuple[float, float, int]] = []
    for at, word, side in marks:
        if at is None:
            continue
        inside = window.start <= at <= window.end
        if not inside:
            word, at, side = f"{word} at {at:.0f} s →", window.end, "right"
        else:
            axes.axvline(at, color=INK, linewidth=1.0, linestyle=(0, (2, 2)), zorder=4)
        reach = 0.015 * len(word) * width
        low, high = (at - reach, at) if side == "right" else (at, at + reach)
        level = 0
        while any(lv == level and low < b and a < high for a, b, lv in taken):
            level += 1
        taken.append((low, high, level))
        axes.annotate(
            word, (at, 1.0), xycoords=axes.get_xaxis_transform(),
            xytext=(-4 if side == "right" else 4, 3 + 13 * level), textcoords="offset points",
            ha=side, va="bottom", fontsize=10, color=INK,
        )  # fmt: skip


def _columns(axes: Axes, record: RunRecord, rows: list[str], window: Window) -> None:
    """Write each training site's busy share before the request and while it was open."""
    if window.request is None:
        return
    # From when every site is at work: starting their processes is not their idling.
    firsts = [min(s.start for s in mine) for name in rows if (mine := _of(record, name))]
    began = min(max(firsts, default=window.request), window.request)
    last = max(span.end for span in [*record.spans, *record.server_spans])
    stop = min(window.end, last if window.finish is None else window.finish)
    across = axes.get_yaxis_transform()
    for x, word in ((1.065, "before"), (1.175, "during")):
        axes.text(x, -0.62, word, transform=across, ha="center", va="bottom", fontsize=9.5,
                  color=MUTED)  # fmt: skip
    axes.text(1.12, -0.62 - 13 / 72 / _ROW, "busy", transform=across, ha="center", va="bottom",
              fontsize=9.5, color=MUTED)  # fmt: skip
    for row, site in enumerate(rows):
        if site == record.target:
            continue
        mine = _of(record, site)
        for x, low, high in ((1.065, began, window.request), (1.175, window.request, stop)):
            share = busy_share(mine, low, high)
            words = "–" if share is None else f"{100 * share:.0f} %"
            axes.text(x, row, words, transform=across, ha="center", va="center", fontsize=10,
                      color=INK)  # fmt: skip


def _dress(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.set_yticks([])
    axes.tick_params(axis="x", labelsize=10, colors=MUTED, length=3)
    axes.xaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter("{x:g} s")


def _legend(figure: Figure, record: RunRecord, window: Window) -> None:
    """Name the colours that occur, in one line below the axis."""
    present = {s.kind for s in window.clip([*record.spans, *record.server_spans])}
    entries = [look for kind, look in KINDS.items() if kind in present]
    if present - set(KINDS):
        entries.append(_OTHER)
    figure.legend(
        handles=[Patch(facecolor=colour, label=word) for word, colour in entries],
        loc="lower left", bbox_to_anchor=(0.012, 0.0), ncols=max(len(entries), 1), frameon=False,
        fontsize=10, labelcolor=INK, handlelength=0.9, handleheight=0.9, handletextpad=0.5,
        columnspacing=1.5,
    )  # fmt: skip
