"""Answers kept on disk, so that none is paid for twice: by any number of threads and processes that share the folder.

An SQLite file of texts: replies as JSON by the digest of their request, and claims. Who is about to ask claims the request first;
another process that wants the same waits for that answer instead of buying it again. A claim ends with its answer, with the
process that made it (each holds a lock on a file of its own, which the operating system lets go when it dies), or when its lease
runs out. Nothing is ever unpickled: the folder may be shared.

A cache that cannot be read or written costs money, never an answer: it is reported in the log, and the model is asked. A file
that is no database any more is put aside, and a new one is begun.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from guerdon.errors import ConfigError
from guerdon.lm.answers import as_cached
from guerdon.lm.chat import Reply

logger = logging.getLogger(__name__)
FILE = "replies.sqlite"
_TROUBLE = (sqlite3.Error, OSError, ValueError, TypeError, KeyError)
_TABLES = (
    "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL, until REAL NOT NULL) WITHOUT ROWID",
)
_LOCK = threading.Lock()
_owners: dict[
    tuple[int, str], tuple[str, IO[str]]
] = {}  # (process, folder) -> its name among the owners, its locked file


class KeptAnswers:
    """Replies by the digest of their request, in a folder.

    Args:
        folder: made if it is missing.

    Raises:
        ConfigError: the folder cannot be used.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser().absolute()
        self._local = threading.local()
        try:
            (self.folder / "owners").mkdir(parents=True, exist_ok=True)
            with self._exclusive():
                for path in (self.folder / "owners").iterdir():
                    if not path.name.startswith("."):
                        self._lives(path.name)  # takes away what dead processes left
                try:
                    self._connection()
                except sqlite3.DatabaseError as error:
                    if isinstance(error, sqlite3.OperationalError):
                        raise
                    self._put_aside(error)
                    self._connection()
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"the cache folder {self.folder} cannot be used ({error}); pass cache= another folder, or cache=False"
            ) from error

    def get(self, key: str) -> Reply | None:
        """The kept reply, marked as cached; None if there is none that can be read."""
        try:
            row = self._connection().execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
            return as_cached(Reply.from_json(row[0])) if row is not None else None
        except _TROUBLE as error:  # bought again, and written anew
            logger.warning("the answer %s in %s cannot be read (%s); asking again", key[:12], self.folder, error)
            return None

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply, and end the claim on it. A full disk is a warning: the answer is in hand."""
        try:
            with self._writing() as connection:
                connection.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, reply.to_json()))
                connection.execute("DELETE FROM claims WHERE key = ?", (key,))
        except _TROUBLE as error:
            logger.warning("an answer could not be kept in %s (%s); it would be bought again", self.folder, error)

    def claim(self, key: str, lease_s: float) -> bool:
        """Whether this process may ask for the answer now; False = another one is asking, or has kept it in the meantime.

        Args:
            key: digest of the request.
            lease_s: seconds after which others need not wait any longer. Claiming again renews it.
        """
        try:
            owner = self._owner()
            with self._writing() as connection:
                row = connection.execute("SELECT owner, until FROM claims WHERE key = ?", (key,)).fetchone()
                if row is None and connection.execute("SELECT 1 FROM replies WHERE key = ?", (key,)).fetchone():
                    # Kept since it was looked for; what is kept but cannot be read is bought again.
                    return self.get(key) is None
                if row is not None and row[0] != owner and row[1] > time.time() and self._lives(row[0]):
                    return False
                connection.execute(
                    "INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", (key, owner, time.time() + lease_s)
                )
        except _TROUBLE as error:
            logger.warning("a request could not be claimed in %s (%s); it may be sent twice", self.folder, error)
        return True

    def release(self, key: str) -> None:
        """End this process's claim on a request that has no answer; others may ask."""
        with suppress(*_TROUBLE), self._writing() as connection:
            connection.execute("DELETE FROM claims WHERE key = ? AND owner = ?", (key, self._owner()))

    # -- the file -------------------------------------------------------------------------------------------------------------

    def _connection(self) -> sqlite3.Connection:
        """This thread's connection; a forked process opens its own."""
        pid, connection = getattr(self._local, "open", (None, None))
        if connection is None or pid != os.getpid():
            connection = sqlite3.connect(self.folder / FILE, timeout=30, isolation_level=None)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            for table in _TABLES:
                connection.execute(table)
            self._local.open = os.getpid(), connection
        return connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One process at a time looks whether the file is whole and who lives."""
        with (self.folder / "owners" / ".opening").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _put_aside(self, error: sqlite3.DatabaseError) -> None:
        damaged = self.folder / f"{FILE}.damaged-{int(time.time())}"
        logger.warning(
            "%s is damaged (%s): put aside as %s, answers are bought again", self.folder / FILE, error, damaged.name
        )
        os.replace(self.folder / FILE, damaged)
        for suffix in ("-wal", "-shm"):
            (self.folder / f"{FILE}{suffix}").unlink(missing_ok=True)

    # -- who lives ------------------------------------------------------------------------------------------------------------

    def _owner(self) -> str:
        """This process's name among the owners of claims, its file locked for as long as it lives."""
        with _LOCK:
            place = (os.getpid(), str(self.folder))
            if place not in _owners:
                name = uuid.uuid4().hex
                with self._exclusive():  # nobody may find it between its making and its lock
                    handle = (self.folder / "owners" / name).open("w")
                    fcntl.flock(handle, fcntl.LOCK_EX)
                _owners[place] = name, handle
            return _owners[place][0]

    def _lives(self, owner: str) -> bool:
        """Whether the process behind a claim is still there: its file is locked."""
        path = self.folder / "owners" / owner
        try:
            with path.open("r+") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False
