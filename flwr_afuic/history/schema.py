"""The index of a history on disk: its tables, and the longer statements over them.

The index is a good part of a small model's history, so that it is kept lean: small pages, no
table with an index of its own, sites by number, and nothing that follows from something else: in
which file a record lies follows from its site and window.
"""

from __future__ import annotations

from typing import get_args

from flwr_afuic.history.store import Status

APPLICATION = 0x41465548
"""Marks ``history.sqlite`` as such ("AFUH")."""

PAGE_SIZE = 512
"""Bytes; SQLite's smallest. Every table takes a page at least."""

STATUSES: tuple[Status, ...] = get_args(Status)
"""The index stores a status as its place in this list, as the statements below do (4 is purged,
5 retired): only ever add to its end."""

_FIRST = """
CREATE TABLE setting (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE window (
    number INTEGER PRIMARY KEY, version INTEGER NOT NULL, round INTEGER NOT NULL, step REAL NOT NULL
);
CREATE TABLE participant (
    window INTEGER NOT NULL REFERENCES window(number) ON DELETE CASCADE,
    site TEXT NOT NULL, weight REAL NOT NULL, norm REAL NOT NULL, status TEXT NOT NULL,
    PRIMARY KEY (window, site)
);
CREATE INDEX participant_site ON participant (site);
CREATE TABLE record (
    window INTEGER NOT NULL REFERENCES window(number) ON DELETE CASCADE,
    site TEXT NOT NULL, file TEXT NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL,
    PRIMARY KEY (window, site)
);
CREATE INDEX record_file ON record (file, offset);
CREATE TABLE arrays (name TEXT PRIMARY KEY, digest TEXT NOT NULL);
"""

_LEAN = """
ALTER TABLE setting RENAME TO old_setting;
ALTER TABLE window RENAME TO old_window;
ALTER TABLE participant RENAME TO old_participant;
ALTER TABLE arrays RENAME TO old_arrays;
CREATE TABLE setting (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE site (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE window (
    number INTEGER PRIMARY KEY, version INTEGER NOT NULL, round INTEGER NOT NULL,
    step REAL NOT NULL, offset INTEGER, length INTEGER
);
CREATE TABLE participant (
    window INTEGER NOT NULL REFERENCES window(number) ON DELETE CASCADE, site INTEGER NOT NULL,
    weight REAL NOT NULL, norm REAL NOT NULL, status INTEGER NOT NULL,
    offset INTEGER, length INTEGER, PRIMARY KEY (window, site)
) WITHOUT ROWID;
CREATE TABLE arrays (name TEXT PRIMARY KEY, digest TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO setting SELECT key, value FROM old_setting;
INSERT INTO arrays SELECT name, digest FROM old_arrays;
INSERT INTO site (name) SELECT DISTINCT site FROM old_participant ORDER BY site;
INSERT INTO window SELECT w.number, w.version, w.round, w.step, r.offset, r.length
    FROM old_window w LEFT JOIN record r ON r.window = w.number AND r.site = '';
INSERT INTO participant SELECT p.window, s.id, p.weight, p.norm,
    CASE p.status WHEN 'stored' THEN 0 WHEN 'not-drawn' THEN 1 WHEN 'zero' THEN 2
    WHEN 'lost' THEN 3 WHEN 'purged' THEN 4 WHEN 'retired' THEN 5 END,
    r.offset, r.length
    FROM old_participant p JOIN site s ON s.name = p.site
    LEFT JOIN record r ON r.window = p.window AND r.site = p.site;
DROP TABLE record;
DROP TABLE old_participant;
DROP TABLE old_window;
DROP TABLE old_setting;
DROP TABLE old_arrays;
"""

MIGRATIONS = [_FIRST, _LEAN]

PARTICIPANTS = """
SELECT s.name, p.weight, p.norm, p.status FROM participant p JOIN site s ON s.id = p.site
WHERE p.window = ? ORDER BY s.name
"""
PLACE = """
SELECT p.offset, p.length FROM participant p JOIN site s ON s.id = p.site
WHERE p.window = ? AND s.name = ? AND p.length IS NOT NULL
"""
PLACE_OF_AGGREGATE = """
SELECT offset, length FROM window WHERE number = ? AND length IS NOT NULL
"""
STANDING = """
SELECT COUNT(*), COALESCE(SUM(p.length), 0), MAX(p.window)
FROM participant p JOIN site s ON s.id = p.site
WHERE s.name = ? AND p.length IS NOT NULL
"""
STANDING_OF_AGGREGATES = """
SELECT COUNT(*), COALESCE(SUM(length), 0), MAX(number) FROM window WHERE length IS NOT NULL
"""
ENDS = """
SELECT s.name, MAX(p.offset + p.length) FROM participant p JOIN site s ON s.id = p.site
WHERE p.window BETWEEN :first AND :last AND p.length IS NOT NULL GROUP BY s.name
UNION ALL SELECT '', MAX(offset + length) FROM window
WHERE number BETWEEN :first AND :last HAVING MAX(offset + length) IS NOT NULL
"""
STORED = """
SELECT DISTINCT s.name, p.window / :windows FROM participant p JOIN site s ON s.id = p.site
WHERE p.length IS NOT NULL
UNION SELECT '', number / :windows FROM window WHERE length IS NOT NULL
"""

OF_CLIENT = """
SELECT p.window, w.round, s.name, p.length FROM participant p
JOIN site s ON s.id = p.site JOIN window w ON w.number = p.window
WHERE s.name = :site AND p.length IS NOT NULL
UNION ALL
SELECT number, round, '', length FROM window WHERE length IS NOT NULL AND number IN (
    SELECT p.window FROM participant p JOIN site s ON s.id = p.site GROUP BY p.window
    HAVING MAX(s.name = :site)
    AND MIN(s.name = :site OR p.status = 4))
ORDER BY 1, 3
"""
OLD = """
SELECT p.window, w.round, s.name, p.length FROM participant p
JOIN site s ON s.id = p.site JOIN window w ON w.number = p.window
WHERE p.length IS NOT NULL
AND p.window NOT IN (SELECT number FROM window ORDER BY number DESC LIMIT :windows)
UNION ALL
SELECT number, round, '', length FROM window WHERE length IS NOT NULL
AND number NOT IN (SELECT number FROM window ORDER BY number DESC LIMIT :windows)
ORDER BY 1, 3
"""
DROP_RECORD = """
UPDATE participant SET offset = NULL, length = NULL
WHERE window = ? AND site = (SELECT id FROM site WHERE name = ?)
"""
DROP_AGGREGATE = "UPDATE window SET offset = NULL, length = NULL WHERE number = ?"
MARK_PURGED = """
UPDATE participant SET status = 4
WHERE site = (SELECT id FROM site WHERE name = :site)
"""
MARK_RETIRED = """
UPDATE participant SET status = 5
WHERE status != 4
AND window NOT IN (SELECT number FROM window ORDER BY number DESC LIMIT :windows)
"""
