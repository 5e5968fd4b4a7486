"""The shared memory and the messages: what the other side could do wrong is refused."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge.errors import RunError, TensorError
from edge.tensor_layout import Layout
from edge.tensor_memory import MAX_MESSAGE_BYTES, Slot, TensorMemory, make_descriptor, receive, send
from model_store.manifest import Manifest
from tests import onnx_models


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.settimeout(10)
        yield ours, theirs


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _manifest(tmp_path: Path, **changes: object) -> Manifest:
    return onnx_models.manifest(onnx_models.write_package(tmp_path / "p", onnx_models.found(), **changes))  # type: ignore[arg-type]  # manifest fields


def test_a_tensor_written_on_one_side_is_read_on_the_other() -> None:
    descriptor = make_descriptor(4096)
    mine, theirs = TensorMemory(descriptor, 4096), TensorMemory(descriptor, 4096)
    os.close(descriptor)
    slot = Slot("x", "int32", (2, 3), 64)
    mine.view(slot)[:] = [[1, 2, 3], [4, 5, 6]]
    assert theirs.view(slot).tolist() == [[1, 2, 3], [4, 5, 6]]
    mine.close()
    theirs.close()


def test_neither_side_can_change_the_size_of_the_memory() -> None:
    descriptor = make_descriptor(4096)
    for size in (0, 8192):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, size)
    os.close(descriptor)


def test_memory_that_could_be_pulled_away_is_refused() -> None:
    descriptor = os.memfd_create("unsealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 4096)
    with pytest.raises(OSError, match="not sealed"):
        TensorMemory(descriptor, 4096)
    os.close(descriptor)


def test_a_tensor_outside_of_the_memory_is_refused() -> None:
    descriptor = make_descriptor(4096)
    memory = TensorMemory(descriptor, 4096)
    os.close(descriptor)
    with pytest.raises(ValueError, match="ends behind"):
        memory.view(Slot("x", "float32", (1024,), 64))
    memory.close()


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        ["x", "object", [1], 0],
        ["x", "float32", [-1], 0],
        ["x", "float32", [1.5], 0],
        ["x", "float32", [1], -64],
        ["x", "float32", [1 << 50], 0],
        ["x", "float32", [1] * 9, 0],
        [1, "float32", [1], 0],
    ],
)
def test_a_place_that_is_none_is_refused(data: object) -> None:
    with pytest.raises(ValueError, match="not a tensor's place"):
        Slot.from_json(data)


@pytest.mark.parametrize("raw", [b"\xff", b"{", b"[]", b"1", b"[" * 60_000, b"x" * (MAX_MESSAGE_BYTES + 1)])
def test_what_is_not_a_message_is_refused(pair: tuple[socket.socket, socket.socket], raw: bytes) -> None:
    ours, theirs = pair
    theirs.send(raw)
    with pytest.raises(ValueError, match=r".+"):
        receive(ours)


def test_a_descriptor_that_comes_with_nonsense_is_closed(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    before = _descriptors()
    for raw in (b"{", b"[]"):
        socket.send_fds(theirs, [raw], [theirs.fileno()])
        with pytest.raises(ValueError, match=r".+"):
            receive(ours)
    socket.send_fds(theirs, [b"{}"], [theirs.fileno()] * 5)
    with pytest.raises(ValueError, match="too many descriptors"):
        receive(ours)
    assert _descriptors() == before


def test_a_message_that_is_too_long_is_not_sent(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(ValueError, match="allowed"):
        send(pair[0], {"x": "y" * MAX_MESSAGE_BYTES})


def test_the_end_of_the_other_side_is_an_end(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].close()
    with pytest.raises(EOFError):
        receive(pair[0])


def test_outputs_whose_shapes_follow_from_the_inputs_have_their_place(tmp_path: Path) -> None:
    manifest = onnx_models.manifest(onnx_models.write_package(tmp_path / "p"))
    layout = Layout(manifest, {"x": np.zeros((3, 4), np.float32)}, 1 << 20, "model")
    assert layout.inputs == [Slot("x", "float32", (3, 4), 0)]
    assert layout.outputs == [Slot("y", "float32", (3, 4), 64)]
    assert layout.size_bytes == 128


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"y": ["int64", [3]]},
        {"y": ["float32", [3, 3]]},
        {"y": ["float32", [-3]]},
        {"y": ["float32", ["3"]]},
        {"y": ["float32", [True]]},
        {"y": ["float32", [1 << 39]]},
        {"y": "float32"},
    ],
)
def test_an_output_that_a_worker_makes_up_is_refused(tmp_path: Path, made: dict[str, object]) -> None:
    layout = Layout(_manifest(tmp_path), {"x": np.zeros(3, np.float32)}, 1 << 20, "model")
    with pytest.raises(RunError):
        layout.place(made)
    assert layout.place({"y": ["float32", [7]], "other": 1}) == [Slot("y", "float32", (7,), 0)]


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.zeros(3, np.float64), "is float64"),
        (np.zeros(3, ">f4"), "is >f4"),
        (np.zeros((3, 1), np.float32), "of shape \\(3, 1\\)"),
        (np.zeros(1 << 20, np.float32), "take .* the manifest's memory is 1048576"),
        (np.zeros(9, np.float32), r"its profile allows \(1,\) to \(8,\)"),
        (np.zeros(0, np.float32), r"its profile allows \(1,\) to \(8,\)"),
    ],
)
def test_inputs_that_are_not_what_the_manifest_declares_are_refused(
    tmp_path: Path, array: np.ndarray[tuple[int, ...], np.dtype[np.float32]], problem: str
) -> None:
    profile = [{"tensor": "x", "min": [1], "opt": [4], "max": [8]}] if "profile" in problem else []
    with pytest.raises(TensorError, match=problem):
        Layout(_manifest(tmp_path, profiles=profile), {"x": array}, 1 << 20, "model")


def test_inputs_of_other_names_are_refused(tmp_path: Path) -> None:
    for inputs in ({}, {"z": np.zeros(3, np.float32)}, dict.fromkeys("xz", np.zeros(3, np.float32))):
        with pytest.raises(TensorError, match="inputs are"):
            Layout(_manifest(tmp_path), inputs, 1 << 20, "model")
