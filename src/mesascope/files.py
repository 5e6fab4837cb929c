"""Writing files so that what was there before survives whatever happens, and reading tensors back with proof."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from mesascope.errors import CheckpointError, StorageError

_UNFINISHED = ".unfinished"
"""How the name of a file ends while it is written."""
_HEADER = "mesascope"
"""The entry of a safetensors header that holds the metadata and the checksum."""


def write_atomically(
    path: Path, content: bytes | str, advice: str = "run the same command again with --resume"
) -> None:
    """Write `content` under a temporary name beside `path`, flush it to the disk and rename it.

    `advice` says in the error message what to do after making room.

    Raises:
        StorageError: the disk is full or the folder cannot be written; a file that was at `path` is intact.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_UNFINISHED)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror}); what was there before is intact. "
            f"Free space or choose another folder, then {advice}"
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what writes into `folder` have left there whose process was killed; nothing may be writing into it."""
    for path in folder.glob(f".*{_UNFINISHED}"):
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, advice: str = "delete its folder to start again") -> Any:
    """Read a JSON file; `advice` ends the error message.

    Raises:
        CheckpointError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); {advice}") from error


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    advice: str = "run the same command again with --resume",
) -> None:
    """Write tensors and JSON metadata into one safetensors file, with a checksum of both, atomically."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    stored = json.dumps(metadata)
    # one entry only: safetensors orders several at random, and equal runs would have unequal files
    header = json.dumps({"metadata": stored, "sha256": _checksum(tensors, stored)})
    write_atomically(path, serialise(tensors, metadata={_HEADER: header}), advice)


def read_tensors(
    path: Path, advice: str = "delete it to train from the start"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote; `advice` ends the error message.

    Raises:
        CheckpointError: the file is missing, cut short, or does not match its checksum.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        stored = header.get("metadata", "")
        if header.get("sha256") != _checksum(tensors, stored):
            raise CheckpointError(f"{path}: corrupted checkpoint (checksum differs); {advice}")
        return tensors, json.loads(stored)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: corrupted checkpoint ({error}); {advice}") from error


def _checksum(tensors: Mapping[str, Tensor], metadata: str) -> str:
    digest = hashlib.sha256(metadata.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
