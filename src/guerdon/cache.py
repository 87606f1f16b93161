"""The folder of what can be made again, and trained artefacts in it: built once, never half-written.

The folder is ``$GUERDON_CACHE`` or ``~/.cache/guerdon``; deleting it is always safe. Converted models are in ``models`` and
answers of remote models in ``replies`` (`guerdon.lm`), trained artefacts beside them.

An artefact is a directory; its key is a hash of the kind, the configuration and the code of the modules that build it, so
changed code builds anew and old results are not mistaken for it. Building happens in a temporary sibling that is renamed when
complete; processes that want the same artefact at the same time wait for the first one. Old keys are not removed.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from guerdon.threads import one_thread


def cache_root() -> Path:
    """Where Guerdon keeps what can be made again: ``$GUERDON_CACHE``, else ``~/.cache/guerdon``. Not created."""
    return Path(os.environ.get("GUERDON_CACHE") or Path.home() / ".cache" / "guerdon").expanduser()


def artifact_key(config: Mapping[str, Any], sources: Sequence[ModuleType]) -> str:
    """12 hex digits of the configuration (JSON, so plain values only) and the code of the modules that use it, comments
    and docstrings left out."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for module in sources:
        digest.update(_code(inspect.getsource(module)).encode())
    return digest.hexdigest()[:12]


def _code(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
    return ast.unparse(tree)


def cached_artifact(
    kind: str, config: Mapping[str, Any], sources: Sequence[ModuleType], build: Callable[[Path], None]
) -> Path:
    """The directory of an artefact, built by `build(directory)` on one thread if there is none yet.

    An exception in `build` (Ctrl-C too) leaves nothing behind and is passed on.
    """
    target = cache_root() / f"{kind}-{artifact_key(config, sources)}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target.with_suffix(".lock")):
        if target.is_dir():  # another process built it while we waited
            return target
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            with one_thread():
                build(scratch)
            scratch.chmod(0o755)  # mkdtemp makes it private; other users of a shared cache may read it
            scratch.replace(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """An exclusive lock between processes; the operating system releases it if its holder is killed."""
    import fcntl

    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
