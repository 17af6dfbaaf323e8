"""What the operator's view says of a federation: requests, sites, and what to do."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import pytest

from flwr_afuic.errors import StateError
from flwr_afuic.report.state_attention import headline, notices
from flwr_afuic.report.state_sites import staleness_counts
from flwr_afuic.report.state_view import make_report, read_report
from flwr_afuic.state import sweeping
from flwr_afuic.state.rows import RequestRow
from flwr_afuic.state.store import StateStore
from flwr_afuic.state.survey import survey
from tests.erasure_helpers import Site, federate
from tests.report.states import START, Crash, file, hospitals, uid

LATER = START + 9000.0


def by_site(report):
    return {site.name: site for site in report.sites}


def request_of(report, number):
    return next(r for r in report.requests if r.standing.id == uid(number))


def test_every_request_and_where_it_stands(busy):
    report = read_report(busy, now=LATER)
    found = [(r.standing.site, r.what, r.state, r.tone) for r in report.requests]
    assert found == [
        ("st-anna", "2 samples", "completed", "good"),
        ("northfield", "all data", "held", "warn"),
        ("lakeside", "1 sample", "completed", "good"),
        ("general", "all data", "failed", "bad"),
        ("hill", "all data", "cancelled", "calm"),
        ("hill", "1 sample", "refused", "warn"),
        ("hill", "all data", "waiting", "open"),
    ]
    assert [r.state for r in report.ordered][:3] == ["held", "waiting", "refused"]
    assert [r.state for r in report.open_requests] == ["held", "waiting"]
    assert request_of(report, 1).standing.reason == "consent-withdrawn"
    assert request_of(report, 4).standing.attempts == 3


def test_the_resurfacing_curve_beside_its_level(busy):
    report = read_report(busy, now=LATER)
    lakeside = request_of(report, 3)
    assert lakeside.level.of == "hold-out"
    assert (lakeside.level.loss, lakeside.level.accuracy) == pytest.approx((0.8, 0.55))
    # Not met at first, met twice and so completed, resurfaced, unlearned again.
    assert [entry.met for entry in lakeside.scores] == [False, True, True, False, True, True]
    versions = [entry.version for entry in lakeside.scores]
    assert versions == sorted(versions)
    assert lakeside.last.startswith("level met at version")
    assert lakeside.last.endswith("4 of 6 scores met it")
    failed = request_of(report, 4)
    assert failed.last.startswith("level not met")
    assert request_of(report, 2).last == "not scored by the site yet"


def test_certificates_are_verified_from_their_files(busy):
    report = read_report(busy, now=LATER)
    issued = [(c.row.request_id, c.row.issue, c.problems) for c in report.certificates]
    assert issued == [(uid(1), 1, []), (uid(3), 1, []), (uid(3), 2, [])]
    assert report.survey.whole


def test_sites_and_what_became_of_their_updates(busy):
    report = read_report(busy, now=LATER)
    sites = by_site(report)
    assert sites["harbour"].standing == "trains"
    assert sites["northfield"].standing == "out: its erasure is held"
    assert sites["general"].standing == "out: its erasure failed"
    assert sites["hill"].standing == "trains"  # cancelled and refused keep nobody away
    assert sites["hill"].fates["stale"] == 2
    assert sites["harbour"].fates["quarantined"] == 1
    assert sum(site.share for site in report.sites) == pytest.approx(1.0)
    updates = report.view.updates
    mine = [u["staleness"] for u in updates if u["site"] == "st-anna" and u["fate"] == "accepted"]
    assert sites["st-anna"].mean_staleness == pytest.approx(sum(mine) / len(mine))
    assert sites["st-anna"].heard > START + 7200
    assert sites["northfield"].heard < START + 3600


def test_staleness_counts_what_was_accepted_and_what_was_dropped():
    def update(fate, staleness):
        return {"fate": fate, "staleness": staleness}

    updates = [update("accepted", 0), update("accepted", 2), update("accepted", 2),
               update("stale", 9), update("quarantined", 1), update("refused", 1)]  # fmt: skip
    accepted, dropped = staleness_counts(updates)
    assert (dict(accepted), dict(dropped)) == ({0: 1, 2: 2}, {9: 1})


def test_what_was_quarantined_with_its_reason(busy):
    reasons = [(e.site, e.reason) for e in read_report(busy, now=LATER).quarantined]
    assert reasons[0] == ("harbour", "update of harbour: 'w' holds NaN or infinity")


def test_what_to_look_at_and_what_to_do(busy):
    report = read_report(busy, now=LATER)
    held, failed, server = notices(report)
    assert held.title == "The erasure of all data at northfield is held and waits for you"
    assert "the merge costs 1.000, more than 0.15" in held.text
    assert held.commands == (
        f"flwr-afuic release {uid(2)} --state {busy}",
        f"flwr-afuic reject {uid(2)} --state {busy}",
    )
    assert failed.title == "The erasure of all data at general failed"
    assert "Not met after 3 attempts" in failed.text
    assert server.title == "No server runs, and 2 requests and 1 command wait for one"
    assert headline(report).tone == "warn"


def test_the_decision_asked_for_is_not_asked_for_again(busy, tmp_path):
    copy = tmp_path / "a state; it's ours"
    shutil.copytree(busy, copy)
    assert "'\"'\"'" in notices(read_report(copy))[0].commands[0]  # as a shell takes it
    with StateStore(copy) as store:
        store.command("release", uid(2))
    held = notices(read_report(copy))[0]
    assert "You have asked for: release" in held.text
    assert held.commands == ()


def test_deleted_files_are_told_apart(busy):
    report = read_report(busy, now=LATER)
    assert {row.request_id for row in report.erased} == {uid(1), uid(3)}
    assert report.outdated
    assert {row.reason for row in report.outdated} == {"no longer needed"}


def test_starts_and_resumes(busy):
    report = read_report(busy, now=LATER)
    assert [o.what for o in report.occasions] == ["a new federation began", "a server went on"]
    assert report.occasions[1].details.startswith("from version")


def test_a_server_that_was_killed_in_the_middle(under_way):
    report = read_report(under_way, now=LATER)
    (request,) = report.requests
    assert request.state == "verifying"
    assert [entry.met for entry in request.scores] == [True, True]
    assert headline(report).text == "No server runs, and 1 request waits for one."


def test_beside_a_running_server(tmp_path):
    """Looked at from within the loop, which holds the lock, again and again."""
    sites, seen = hospitals(3), []

    def look(strategy):
        report = read_report(tmp_path)
        seen.append((report.version, report.view.server, report.survey.whole, headline(report)))

    at = dict.fromkeys(range(4, 15), look)
    at[3] = lambda strategy: file(sites[0], 1, ["patient-st-anna-1"])
    federate(sites, at=at, state_dir=tmp_path, rounds=8)
    assert len(seen) > 7
    # A version is announced before it is committed.
    assert [version for version, *_ in seen] == list(range(3, 3 + len(seen)))
    assert {server for _, server, *_ in seen} == {os.getpid()}
    assert all(whole for _, _, whole, _ in seen)
    assert {line.tone for *_, line in seen} == {"good"}
    assert "1 erasure is under way" in seen[2][3].text
    assert read_report(tmp_path).view.server is None


def test_nothing_in_the_directory_is_touched(busy):
    def contents():
        return {
            path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
            for path in sorted(busy.rglob("*"))
        }

    before = contents()
    read_report(busy)
    assert contents() == before


def test_an_empty_directory(tmp_path):
    StateStore(tmp_path).close()
    report = read_report(tmp_path)
    assert (report.version, report.requests, report.sites) == (None, [], [])
    assert notices(report) == []
    assert headline(report).mark == "Not begun"


def test_a_young_directory(tmp_path):
    with pytest.raises(Crash):
        federate(
            [Site(0), Site(1)],
            at={1: lambda s: (_ for _ in ()).throw(Crash())},
            state_dir=tmp_path,
        )
    report = read_report(tmp_path)
    assert report.version == 0
    assert report.survey.whole
    assert headline(report).mark == "In order"


def test_no_directory_is_an_error(tmp_path):
    with pytest.raises(StateError, match="is no state directory"):
        read_report(tmp_path / "typo")
    assert list(tmp_path.iterdir()) == []


def test_a_request_that_does_not_move_is_named(under_way):
    found = survey(under_way)
    served = replace(found, view=replace(found.view, server=1))
    assert notices(make_report(served, START + 3600)) == []
    (stuck,) = notices(make_report(served, START + 3 * 86400))
    assert stuck.title == "1 request without a step for more than a day"
    assert uid(1) in stuck.text


def test_a_site_whose_updates_are_all_quarantined_is_named(tmp_path):
    with StateStore(tmp_path) as store, store.transaction() as tx:
        fates = ["accepted", "quarantined", "quarantined", "quarantined"]
        tx.log_updates(
            {"time": 1.0, "round": 0, "version": 0, "site": "a", "base_version": 0,
             "staleness": 0, "examples": 1, "fate": fate, "reason": "it holds NaN"}
            for fate in fates
        )  # fmt: skip
    (found,) = notices(read_report(tmp_path))
    assert found.title == "The newest 3 updates of a were quarantined"
    assert found.text.startswith("It holds NaN.")


def test_completed_without_a_certificate(tmp_path, busy):
    with StateStore(busy) as store:
        row = store.request(uid(1))
    with StateStore(tmp_path) as store:
        digest = store.vault.put({})
        with store.transaction() as tx:
            tx.put_version(0, 0, 0.0, 1.0, "initial", (), digest)
            tx.hold("version", "0", digest)
            tx.put_request(row)
    titles = [notice.title for notice in notices(read_report(tmp_path))]
    assert titles == ["1 request completed without a certificate on file"]


def test_a_full_disk_is_foreseen(busy, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 100))
    titles = [notice.title for notice in notices(read_report(busy, now=LATER))]
    assert titles[-1] == "Only 100 bytes are free on the disk"


def test_files_that_wait_for_deletion_are_told(tmp_path):
    with StateStore(tmp_path) as store:
        digest = store.vault.put({})
        store.vault.settle([digest])
        with store._writing() as connection:
            sweeping.record(connection, store.vault, "erasure", uid(1))
    (found,) = notices(read_report(tmp_path))
    assert found.title == "1 file(s) are recorded for deletion and not deleted yet"


def test_ids_are_cut_only_as_far_as_they_tell_apart(tmp_path):
    ids = ["0b6e7a3c-0000-4000-8000-000000000001", "0b6e7a3c-0001-4000-8000-000000000001"]
    with StateStore(tmp_path) as store, store.transaction() as tx:
        for name in ids:
            tx.put_request(RequestRow(name, "a", "client", "received", 1, "other", 1.0, {}))
    assert read_report(tmp_path).short == {name: name[:13] for name in ids}


@pytest.mark.parametrize("state", ["received", "dispatched"])
def test_a_site_pauses_until_it_has_unlearned(tmp_path, state):
    with StateStore(tmp_path) as store, store.transaction() as tx:
        for site, reached in (("a", state), ("b", "unlearned"), ("c", "verifying")):
            tx.put_request(RequestRow(site, site, "samples", reached, 1, "other", 1.0, {}))
    standing = {site.name: site.standing for site in read_report(tmp_path).sites}
    assert standing["a"] == "pauses until it has unlearned"
    assert standing["b"] == standing["c"] == "has sent no update"


def test_a_good_update_ends_a_row_of_bad_ones(tmp_path):
    with StateStore(tmp_path) as store, store.transaction() as tx:
        fates = ["quarantined", "quarantined", "accepted", "quarantined", "quarantined"]
        tx.log_updates(
            {"time": 1.0, "round": 0, "version": 0, "site": "a", "base_version": 0,
             "staleness": 0, "examples": 1, "fate": fate} for fate in fates
        )  # fmt: skip
    report = read_report(tmp_path)
    assert report.sites[0].row_of_bad == 2
    assert notices(report) == []


def changed(busy, folder, number, **body):
    """A directory with one request of the busy one, its stored record changed."""
    with StateStore(busy) as store:
        row = store.request(uid(number))
    with StateStore(folder) as store, store.transaction() as tx:
        tx.put_request(replace(row, body={**row.body, **body}))
    return read_report(folder)


def test_a_level_that_came_without_an_unlearning_at_the_site(busy, tmp_path):
    level = {"loss": 1.0, "accuracy": 0.3, "count": 8}
    (request,) = changed(busy, tmp_path, 3, evidence=[], level=level).requests
    assert (request.level.of, request.level.accuracy) == ("hold-out", pytest.approx(0.35))
    assert not any(entry.met for entry in request.scores)


def test_what_the_operator_released_asks_for_nobody(busy, tmp_path):
    report = changed(busy, tmp_path, 2, released=True)
    assert "waits for you" not in " ".join(notice.title for notice in notices(report))
    assert report.requests[0].meaning.startswith("released by you")


def test_a_small_request_that_waits_for_company_says_so(busy, tmp_path):
    report = changed(busy, tmp_path, 2, waiting=True, state="received")
    assert "waits for other small requests" in report.requests[0].meaning


def test_what_kept_a_certificate_from_being_made_is_said(busy, tmp_path):
    changed(busy, tmp_path, 1)
    with StateStore(tmp_path) as store:
        digest = store.vault.put({})
        with store.transaction() as tx:
            tx.put_version(0, 0, 0.0, 1.0, "initial", (), digest)
            tx.hold("version", "0", digest)
            event = {"time": 1.0, "round": 1, "version": 1, "kind": "certificate-failed"}
            tx.log_events([{**event, "text": "no room on the disk"}])
    (found,) = notices(read_report(tmp_path))
    assert found.text.endswith("Said last: no room on the disk")


def test_an_alarm_that_a_restored_backup_explains_is_told_for_a_while(tmp_path):
    with StateStore(tmp_path) as store:
        for kind, body in (
            ("ledger-alarm", {"site": "a", "problem": "row 3 is not the one the site has seen"}),
            ("restored", {"row": 1, "hash": "x"}),
            ("ledger-alarm", {"site": "b", "problem": "its tail was cut"}),
            ("ledger-alarm", {"site": "c", "problem": "its tail was cut"}),
        ):
            with store.transaction() as tx:
                tx.append(kind, body)
        at = store.ledger()[-1].time
    wrong, known = notices(read_report(tmp_path, now=at))
    assert (wrong.tone, wrong.title) == ("bad", "Site a has seen another ledger")
    assert (known.tone, known.text[:19]) == ("warn", "It concerns b, c. W")
    (wrong,) = notices(read_report(tmp_path, now=at + 31 * 86400))
    assert wrong.title == "Site a has seen another ledger"
