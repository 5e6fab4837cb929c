"""Files survive full disks and flipped bits, or say that they did not."""

import errno
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mesascope.errors import CheckpointError, StorageError
from mesascope.files import read_json, read_tensors, remove_unfinished, write_atomically, write_json, write_tensors

TENSORS = {
    "weights": torch.linspace(-1, 3e-9, 12).reshape(3, 4),
    "step": torch.tensor(7.0),
    "random": torch.arange(5, dtype=torch.uint8),
    "count": torch.tensor([2**40]),
}


@contextmanager
def no_space_at(call: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The `call`-th flush to the disk, counted from 1, and every later one finds it full."""
    calls = 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_write_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    write_atomically(path, "first")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert names(path.parent) == {"file.txt"}
    assert path.stat().st_mode & 0o777 == 0o644


def test_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    write_atomically(path, "old")
    with no_space_at(1, monkeypatch), pytest.raises(StorageError, match=r"file.txt: cannot be written \(No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == {"file.txt"}


def test_a_write_cut_short_keeps_the_old_file(tmp_path: Path) -> None:
    """The operating system itself stops the write in the middle of the file."""
    path = tmp_path / "file.bin"
    write_atomically(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StorageError, match=r"what was there before is intact. Free space or choose another folder"):
            write_atomically(path, bytes(1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == {"file.bin"}


def test_an_interrupted_write_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "file.txt"
    write_atomically(path, "old")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == {"file.txt"}


def test_what_a_killed_process_leaves_is_removed(tmp_path: Path) -> None:
    killed = """
import os, signal, sys
from pathlib import Path
from mesascope.files import write_atomically
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
write_atomically(Path(sys.argv[1]), bytes(1000))
"""
    path = tmp_path / "file.bin"
    write_atomically(path, b"old")
    (tmp_path / ".hidden").write_text("of somebody else")
    assert subprocess.run([sys.executable, "-c", killed, path]).returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 3
    remove_unfinished(tmp_path)
    assert names(tmp_path) == {"file.bin", ".hidden"}
    assert path.read_bytes() == b"old"
    remove_unfinished(tmp_path / "none")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StorageError, match=r"cannot be written"):
        write_atomically(tmp_path / "taken" / "file.txt", "content")
    assert isinstance(StorageError("x"), OSError)


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"a": [1, 2.5, None, "ü"]})
    assert read_json(path) == {"a": [1, 2.5, None, "ü"]}
    assert path.read_text().endswith("}\n")
    with pytest.raises(ValueError, match=r"not JSON compliant"):
        write_json(path, float("nan"))
    path.write_text('{"a": ')
    with pytest.raises(CheckpointError, match=r"value.json: cannot be read .* delete its folder to start again"):
        read_json(path)
    with pytest.raises(CheckpointError, match=r"missing.json: cannot be read"):
        read_json(tmp_path / "missing.json")


def test_tensors_come_back_with_their_bits(tmp_path: Path) -> None:
    path = tmp_path / "tensors.safetensors"
    parameter = torch.nn.Parameter(torch.randn(3, 4).T)
    metadata = {"step": 3, "losses": [0.1, 1 / 3]}
    write_tensors(path, {**TENSORS, "parameter": parameter}, metadata)
    tensors, read = read_tensors(path)
    assert read == metadata
    for name, tensor in {**TENSORS, "parameter": parameter.detach()}.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_every_byte_of_the_tensors_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "tensors.safetensors"
    write_tensors(path, TENSORS, {"step": 3})
    good = path.read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    assert len(good) - header == sum(tensor.nbytes for tensor in TENSORS.values())
    for position in range(header, len(good)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1 :])
        with pytest.raises(CheckpointError, match=r"corrupted checkpoint \(checksum differs\); delete it to train"):
            read_tensors(path)


def test_a_flipped_bit_in_the_header_is_never_another_error_or_another_tensor(tmp_path: Path) -> None:
    path = tmp_path / "tensors.safetensors"
    write_tensors(path, TENSORS, {"step": 3})
    good = path.read_bytes()
    refused, header = 0, range(8 + int.from_bytes(good[:8], "little"))
    for position, mask in itertools.product(header, (0x01, 0x20, 0x80)):
        path.write_bytes(good[:position] + bytes([good[position] ^ mask]) + good[position + 1 :])
        try:
            tensors, _ = read_tensors(path)
        except CheckpointError:
            refused += 1
        else:
            assert tensors.keys() == TENSORS.keys()
            assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert refused > len(header)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "tensors.safetensors"
    write_tensors(path, TENSORS, {})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"tensors.safetensors: corrupted checkpoint \("):
        read_tensors(path)


def test_a_file_without_a_checksum_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "foreign.safetensors"
    save_file(TENSORS, path)
    with pytest.raises(CheckpointError, match=r"checksum differs"):
        read_tensors(path)
    save_file(TENSORS, path, metadata={"metadata": json.dumps({})})
    with pytest.raises(CheckpointError, match=r"checksum differs"):
        read_tensors(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none.safetensors: corrupted checkpoint \(No such file"):
        read_tensors(tmp_path / "none.safetensors")


def test_changed_metadata_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    write_tensors(path, TENSORS, {"step": 300})
    content = path.read_bytes()
    assert content.count(b"300") == 1
    path.write_bytes(content.replace(b"300", b"200"))
    with pytest.raises(CheckpointError, match="checksum differs"):
        read_tensors(path)


def test_equal_contents_are_equal_files(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        write_tensors(path, TENSORS, {"step": 1})
    assert first.read_bytes() == second.read_bytes()
