"""The operator's view for a terminal, in plain characters and within its width."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

from rich.cells import cell_len

from flwr_afuic.report.look import printable, shorten
from flwr_afuic.report.state_attention import headline, notices, waited
from flwr_afuic.report.state_requests import RequestView
from flwr_afuic.report.state_sites import FATES
from flwr_afuic.report.state_view import StateReport
from flwr_afuic.report.times import minute, moment_of, size

_MOST = 20
_NEWEST = 5


def state_text(report: StateReport, width: int | None = None) -> str:
    """Return the state of a federation as text, without markup or colour.

    Parameters
    ----------
    report : StateReport
        The federation.
    width : int, optional
        Columns; those of the terminal by default, 100 without one.
    """
    width = width or shutil.get_terminal_size((100, 24)).columns
    width = max(60, min(width, 140))
    head = headline(report)
    server = report.view.server
    blocks = [
        _wrapped(f"[{head.mark}] {head.text}", width),
        _wrapped(_facts(report), width),
        f"{moment_of(report.at)}, "
        + (f"server running (process {server})" if server else "no server running"),
    ]
    parts = [
        ("To look at", _notices(report, width)),
        ("Erasure requests", _requests(report, width)),
        ("Sites", _sites(report, width)),
        ("Quarantined, the newest", _quarantined(report, width)),
        ("Proof", _proof(report, width)),
        ("Disk", _disk(report, width)),
    ]
    for title, text in parts:
        if text:
            blocks += ["", title, text]
    return "\n".join(blocks) + "\n"


def _facts(report: StateReport) -> str:
    if report.version is None:
        return f"{report.view.directory}: no version yet"
    merged = sum(row.cause == "erasure" for row in report.view.versions)
    return (
        f"{report.view.directory}: version {report.version}, round {report.round}, "
        f"sites {len(report.sites)}, requests {len(report.requests)} "
        f"({len(report.open_requests)} open), erasures merged {merged}"
    )


def _notices(report: StateReport, width: int) -> str:
    lines = []
    for notice in notices(report):
        mark = "!!" if notice.tone == "bad" else " !"
        lines.append(_wrapped(f"{notice.title}. {notice.text}", width, f"{mark} ", "   "))
        # Not wrapped: a command is copied whole.
        lines += [f"     {printable(command)}" for command in notice.commands]
    return "\n".join(lines)


def _requests(report: StateReport, width: int) -> str:
    if not report.requests:
        return ""
    shown = report.ordered[: max(_MOST, len(report.open_requests))]
    roomy = width >= 118
    names = ["request", "state", "site", "what", "since (UTC)", "certificate" if roomy else "cert."]
    rows = [_request(report, request, roomy=roomy) for request in shown]
    table = _table(names, rows, [_where(request) for request in shown], width)
    return table + _rest(len(report.requests) - len(shown), "older ones")


def _request(report: StateReport, request: RequestView, *, roomy: bool) -> list[str]:
    standing, issued = request.standing, request.certificates
    since = minute(standing.since)
    if request.open and standing.since and roomy:
        since += f", {waited(request, report)}"
    verdict = "WRONG" if issued and issued[-1].problems else "verifies"
    return [
        standing.id if roomy else report.short[standing.id],
        request.name,
        shorten(standing.site, 28 if roomy else 14),
        request.what,
        since,
        verdict if issued else "-",
    ]


def _where(request: RequestView) -> str:
    """Return the one thing that tells most about a request in its state."""
    if request.damage:
        return "its stored record is damaged"
    if request.scores and request.state in ("verifying", "completed", "completed-unverified"):
        return request.last
    if request.state in ("held", "failed", "refused", "cancelled"):
        return request.standing.text
    return request.meaning


def _sites(report: StateReport, width: int) -> str:
    if not report.sites:
        return ""
    names = ["site", "last heard (UTC)", *FATES, "share", "staleness"]
    if width < 100:
        brief = {"accepted": "acc.", "quarantined": "quar.", "refused": "ref.", "staleness": "lag"}
        names = [brief.get(name, name) for name in names]
    rows = []
    for site in report.sites[:_MOST]:
        share = "-" if site.share is None else f"{100 * site.share:.0f} %"
        stale = "-" if site.mean_staleness is None else f"{site.mean_staleness:.1f}"
        counts = [str(site.fates[fate]) for fate in FATES]
        name = shorten(site.name, 28 if width >= 100 else 18)
        rows.append([name, minute(site.heard), *counts, share, stale])
    notes = ["" if site.standing == "trains" else site.standing for site in report.sites[:_MOST]]
    table = _table(names, rows, notes, width, right=range(2, 8))
    return table + _rest(len(report.sites) - len(rows), "more")


def _quarantined(report: StateReport, width: int) -> str:
    newest = report.quarantined[::-1][:_NEWEST]
    if not newest:
        return ""
    lines = [
        _wrapped(
            f"{minute(entry.wall)}  {shorten(entry.site, 28)}, version {entry.version}: "
            f"{entry.reason}",
            width,
            "  ",
            " " * 20,
        )
        for entry in newest
    ]
    return "\n".join(lines) + _rest(len(report.quarantined) - len(newest), "before")


def _rest(count: int, words: str) -> str:
    return f"\n  and {count} {words}" if count > 0 else ""


def _proof(report: StateReport, width: int) -> str:
    head, ledger = report.view.head, report.survey.ledger
    if ledger:
        words = f"the ledger does NOT verify: {'; '.join(ledger)}"
    elif head is None:
        words = "the ledger is empty"
    else:
        words = (
            f"the ledger verifies: {len(report.view.ledger)} rows, head {head.hash[:16]}... of "
            f"{moment_of(head.time)}, key {report.key}"
        )
    broken = sum(bool(issued.problems) for issued in report.certificates)
    issued = f"certificates: {len(report.certificates)} issued"
    issued += f", {broken} of them do NOT verify" if broken else ""
    issued += f"; files deleted for erasures: {sum(row.done for row in report.erased)}"
    return "\n".join(_wrapped(line, width, "  ", "    ") for line in (words, issued))


def _disk(report: StateReport, width: int) -> str:
    uses = [f"{use.what} {size(use.bytes)}" for use in report.disk]
    free = "" if report.free is None else f"; {size(report.free)} free"
    return _wrapped(f"{', '.join(uses)}{free}", width, "  ", "    ")


def _wrapped(text: str, width: int, first: str = "", later: str = "") -> str:
    return textwrap.fill(
        printable(text),
        width,
        initial_indent=first,
        subsequent_indent=later,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _table(
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
    width: int,
    right: Sequence[int] = (),
) -> str:
    """Return rows in columns, each with a note below it where there is one."""
    cells = [list(names), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(cell_len(row[index]) for row in cells) for index in range(len(names))]
    lines = []
    for row in cells:
        padded = [
            " " * (wide - cell_len(cell)) + cell
            if index in right
            else cell + " " * (wide - cell_len(cell))
            for index, (cell, wide) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"  {'  '.join(padded)}".rstrip())
    out = [lines[0], f"  {'-' * (sum(widths) + 2 * len(widths) - 2)}"]
    for line, note in zip(lines[1:], notes, strict=True):
        out += [line, f"    {shorten(note, width - 4)}"] if note else [line]
    return "\n".join(out)
