"""Answers kept on disk, so that none is paid for twice. Readable by any number of processes and threads.

Only successes are kept. A cache that cannot be read or written costs money, never an answer: it is reported in the log, and
the model is asked.
"""

from __future__ import annotations

import logging
import math
import sqlite3
import zlib
from pathlib import Path
from typing import Any

from guerdon.errors import ConfigError
from guerdon.extras import require
from guerdon.lm.answers import as_cached
from guerdon.lm.chat import Reply

logger = logging.getLogger(__name__)


class KeptAnswers:
    """Replies by the digest of their request, in a folder.

    Args:
        folder: made if it is missing.

    Raises:
        ConfigError: the folder cannot be used.
    """

    def __init__(self, folder: str | Path) -> None:
        diskcache = require("diskcache", extra="judge")
        self.folder = Path(folder).expanduser().absolute()
        self._errors = (sqlite3.Error, OSError, zlib.error, ValueError, TypeError, KeyError, diskcache.Timeout)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # JSON and not pickle: the folder may be shared, and unpickling runs code. Nothing is ever evicted.
            self.store: Any = diskcache.Cache(
                str(self.folder), disk=diskcache.JSONDisk, eviction_policy="none", size_limit=math.inf, timeout=30
            )
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"the cache folder {self.folder} cannot be used ({error}); pass cache= another folder, or cache=False"
            ) from error

    def get(self, key: str) -> Reply | None:
        """The kept reply, marked as cached; None if there is none that can be read."""
        try:
            kept = self.store.get(key)
            return as_cached(Reply.from_json(kept)) if kept is not None else None
        except self._errors as error:  # bought again, and written anew
            logger.warning("the answer %s in %s cannot be read (%s); asking again", key[:12], self.folder, error)
            return None

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply. A full disk is a warning: the answer is in hand."""
        try:
            self.store.set(key, reply.to_json())
        except self._errors as error:
            logger.warning("an answer could not be kept in %s (%s); it would be bought again", self.folder, error)
