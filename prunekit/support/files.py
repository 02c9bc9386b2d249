"""Files that are whole or not there: atomic writes, checksummed JSON, readable errors."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from prunekit.support.errors import FileError

T = TypeVar("T")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well.

    On any error, and on an interrupt, the temporary file is removed and ``path`` is as it was.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, UTF-8."""
    write_bytes(path, text.encode())


def sha256_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    try:
        with Path(path).open("rb") as file:
            return (
                hashlib.file_digest(file, "sha256").hexdigest()
                if hasattr(hashlib, "file_digest")
                else hashlib.sha256(file.read()).hexdigest()
            )
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error


def _digest(content: Any) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def dump_json(value: Any, kind: str, version: int) -> str:
    """``value`` as JSON text with its kind, schema version and checksum in front.

    Lists of numbers stay on one line, so that a table of thousands of samples reads well in a diff.
    """
    content = TypeAdapter(type(value)).dump_python(value, mode="json")
    head = {"prunekit": kind, "version": version, "sha256": _digest(content)}
    try:
        return _pretty({**head, **content}) + "\n"
    except ValueError as error:
        raise FileError(f"cannot write a {kind} that holds NaN or infinity ({error})") from error


def save_json(path: str | Path, value: Any, kind: str, version: int) -> None:
    """Write ``value`` (a dataclass or pydantic model) as checksummed JSON, atomically."""
    write_text(path, dump_json(value, kind, version))


def load_json(path: str | Path, type_: type[T], kind: str, version: int) -> T:
    """Read what :func:`save_json` wrote; the error names a damaged, edited or foreign file."""
    raw = read_object(path, kind)
    head = {key: raw.pop(key, None) for key in ("prunekit", "version", "sha256")}
    if head["prunekit"] != kind:
        instead = f" but a {head['prunekit']}" if isinstance(head["prunekit"], str) else ""
        raise FileError(f"{path} is not a prunekit {kind} file{instead}")
    if head["version"] != version:
        raise FileError(
            f"{path} has {kind} version {head['version']}, this prunekit reads version {version}; "
            "make it anew"
        )
    if head["sha256"] != _digest(raw):
        raise FileError(f"{path} was edited or damaged: its checksum does not match; make it anew")
    try:
        return TypeAdapter(type_).validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FileError(f"{path} is not a valid {kind}: {where}: {first['msg']}") from error


def read_object(path: str | Path, kind: str) -> dict[str, Any]:
    """Any JSON object; a missing or truncated file is named in the error."""
    try:
        raw = json.loads(Path(path).read_bytes(), parse_constant=_not_a_number)
    except OSError as error:
        raise FileError(f"cannot read {kind} {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is truncated or not JSON ({error}); make it anew") from error
    if not isinstance(raw, dict):
        raise FileError(f"{path} is not a prunekit {kind} file")
    return raw


def _not_a_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _pretty(value: Any, indent: str = "") -> str:
    """JSON in which lists of scalars take one line and everything else is spread out."""
    inner = indent + " "
    if isinstance(value, dict) and value:
        rows = [f"{inner}{json.dumps(str(k))}: {_pretty(v, inner)}" for k, v in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        rows = [inner + _pretty(item, inner) for item in value]
        return "[\n" + ",\n".join(rows) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
