"""The safetensors library reads our files, and our reader never returns a changed byte."""

import os
from pathlib import Path

import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pico_ds.checkpoint.file_hashes import CHUNK_BYTES, FileRecord, synced_file_record
from pico_ds.checkpoint.safetensors_reader import VerifiedFile, read_header
from pico_ds.checkpoint.safetensors_writer import SafetensorsWriter
from pico_ds.errors import CheckpointError

BIG = CHUNK_BYTES // 4 + 1000  # fp32 values: a little more than one chunk


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FileRecord, dict[str, torch.Tensor]]:
    path = tmp_path_factory.mktemp("stream") / "a.safetensors"
    tensors = {"big": torch.randn(BIG), "half": torch.randn(3, 5).bfloat16(), "tiny": torch.randn(1)}
    entries = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with SafetensorsWriter(path, entries, {"step": "3"}) as writer:
        writer.append(tensors["big"][:7])
        writer.append(tensors["big"][7:])
        writer.append(tensors["half"])
        writer.append(tensors["tiny"])
        record = writer.finish()
    return path, record, tensors


def test_safetensors_reads_our_files(written: tuple[Path, FileRecord, dict[str, torch.Tensor]]) -> None:
    path, _, tensors = written
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"step": "3"}


def test_reader_accepts_files_of_the_safetensors_library(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    tensors = {"x": torch.randn(4, 3), "y": torch.randn(2)}
    save_file(tensors, path, {"k": "v"})
    file = VerifiedFile(path, synced_file_record(path))
    places, metadata = read_header(file)
    assert metadata == {"k": "v"}
    for name, tensor in tensors.items():
        out = torch.empty(tensor.numel())
        file.read_into(places[name].start, out.numpy().data.cast("B"))
        assert torch.equal(out.view(tensor.shape), tensor)


def test_recorded_hashes_match_the_file(written: tuple[Path, FileRecord, dict[str, torch.Tensor]]) -> None:
    path, record, _ = written
    content = path.read_bytes()
    assert record.size_bytes == len(content)
    chunks = [content[start : start + CHUNK_BYTES] for start in range(0, len(content), CHUNK_BYTES)]
    assert len(chunks) == 2
    assert list(record.chunk_hashes) == [xxhash.xxh3_128_hexdigest(chunk) for chunk in chunks]
    assert synced_file_record(path) == record


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_byte_range_is_read(written: tuple[Path, FileRecord, dict[str, torch.Tensor]], data: st.DataObject) -> None:
    path, record, _ = written
    content = path.read_bytes()
    around_the_seam = st.integers(CHUNK_BYTES - 50, CHUNK_BYTES + 50)
    anywhere = st.integers(0, len(content))
    start, end = sorted([data.draw(anywhere | around_the_seam), data.draw(anywhere | around_the_seam)])
    file = VerifiedFile(path, record)
    out = bytearray(end - start)
    file.read_into(start, memoryview(out))
    file.read_into(start, memoryview(out))  # from the cached chunk
    assert out == content[start:end]
    file.close()


def altered(path: Path, at: int, to: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    to.write_bytes(content)
    return to


@pytest.mark.parametrize("at", [0, 9, 1000, CHUNK_BYTES, -1])
def test_error_names_the_chunk_with_a_flipped_bit(
    written: tuple[Path, FileRecord, dict[str, torch.Tensor]], tmp_path: Path, at: int
) -> None:
    path, record, _ = written
    file = VerifiedFile(altered(path, at, tmp_path / "c.safetensors"), record)
    with pytest.raises(CheckpointError, match=r"c\.safetensors: bytes \d+ to \d+ have changed since they were written"):
        file.verify()
    position = at % record.size_bytes
    with pytest.raises(CheckpointError, match="their hash differs"):
        file.read_into(position, memoryview(bytearray(1)))


def test_only_chunks_that_are_read_are_verified(
    written: tuple[Path, FileRecord, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    path, record, _ = written
    file = VerifiedFile(altered(path, -1, tmp_path / "c.safetensors"), record)
    file.read_into(0, memoryview(bytearray(100)))


def test_error_names_a_truncated_or_missing_file(
    written: tuple[Path, FileRecord, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    path, record, _ = written
    short = tmp_path / "short.safetensors"
    short.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=rf"short\.safetensors: has {record.size_bytes - 1} bytes instead of"):
        VerifiedFile(short, record)
    with pytest.raises(CheckpointError, match=r"gone\.safetensors: cannot be read \(No such file"):
        VerifiedFile(tmp_path / "gone.safetensors", record)


@pytest.mark.parametrize(
    "content", [b"", b"1234", b"\xff" * 16, (5).to_bytes(8, "little") + b"nope!", b"\x02" + b"\0" * 7 + b"[]"]
)
def test_file_that_is_not_safetensors_is_rejected(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "d.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"d\.safetensors"):
        read_header(VerifiedFile(path, synced_file_record(path)))


@pytest.mark.parametrize(
    "header",
    [
        '{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}',
        '{"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}}',
        "[" * 100_000,
        '{"a":' * 100_000,
    ],
)
def test_reader_rejects_a_hostile_header(tmp_path: Path, header: str) -> None:
    path = tmp_path / "h.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(CheckpointError, match=r"h\.safetensors: is not a safetensors file"):
        read_header(VerifiedFile(path, synced_file_record(path)))


def test_pipe_is_rejected_without_waiting(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match=r"p\.safetensors: cannot be read"):
        VerifiedFile(path, FileRecord(0, ()))


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    path.write_text("mine")
    with pytest.raises(CheckpointError, match=r"e\.safetensors: cannot be written \(File exists\)"):
        SafetensorsWriter(path, {}, {})
    assert path.read_text() == "mine"
