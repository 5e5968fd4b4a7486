"""Where the tensors of one run lie in the shared memory, by the manifest.

Rules only: no memory is touched here. Names, types and shapes are checked both ways: what the
caller hands in, and what a worker says it has made.
"""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from edge.errors import RunError, TensorError
from edge.tensor_memory import DTYPES, Slot
from model_store.manifest import Manifest, Tensor


class Layout:
    """The places of one run's tensors.

    Attributes:
        inputs: where each input lies.
        outputs: where each output lies whose shape follows from the inputs' shapes.
        size_bytes: what they take together.
        message: the question to the worker, but for its deadline.
    """

    def __init__(
        self, manifest: Manifest, inputs: Mapping[str, NDArray[Any]], limit_bytes: int, label: str
    ) -> None:
        """Lay the tensors out one behind the other.

        Raises:
            TensorError: the inputs are not what the manifest declares, or all does not fit the limit.
        """
        self._label = label
        self._limit_bytes = limit_bytes
        self._sizes: dict[str, int] = {}
        self._unplaced: dict[str, Tensor] = {}
        self.inputs: list[Slot] = []
        self.outputs: list[Slot] = []
        self.size_bytes = 0
        wanted = sorted(tensor.name for tensor in manifest.tensors_in)
        if sorted(inputs) != wanted:
            raise TensorError(f"{label}: inputs are {sorted(inputs)}, the manifest says {wanted}")
        profiles = {profile.tensor: profile for profile in manifest.profiles}
        for tensor in manifest.tensors_in:
            array = inputs[tensor.name]
            profile = profiles.get(tensor.name)
            self._check(tensor, array)
            if profile is not None and not (
                len(profile.min) == len(profile.max) == array.ndim
                and all(
                    low <= size <= high
                    for low, size, high in zip(profile.min, array.shape, profile.max, strict=True)
                )
            ):
                raise TensorError(
                    f"{label}: input {tensor.name} has shape {array.shape},"
                    f" its profile allows {profile.min} to {profile.max}"
                )
            self.inputs.append(self._slot(tensor, array.shape))
        for tensor in manifest.tensors_out:
            shape = [self._sizes.get(size) if isinstance(size, str) else size for size in tensor.shape]
            if None in shape:
                self._unplaced[tensor.name] = tensor
            else:
                self.outputs.append(self._slot(tensor, tuple(size for size in shape if size is not None)))
        if self.size_bytes > limit_bytes:
            raise TensorError(
                f"{label}: inputs and outputs take {self.size_bytes} bytes,"
                f" the manifest's memory is {limit_bytes}"
            )
        self.message: dict[str, Any] = {
            "do": "run",
            "inputs": [slot.to_json() for slot in self.inputs],
            "outputs": [slot.to_json() for slot in self.outputs],
        }

    def place(self, made: dict[str, Any]) -> list[Slot]:
        """Places, from the beginning of the memory, for the outputs that were not known before the run.

        Raises:
            RunError: they are not what the manifest declares, or too large.
        """
        self.size_bytes = 0
        slots = []
        for name, tensor in self._unplaced.items():
            match made.get(name):
                case [tensor.type, [*shape]] if (
                    len(shape) == len(tensor.shape)
                    and all(type(size) is int and 0 <= size < 1 << 40 for size in shape)
                    and all(
                        got == said
                        for got, said in zip(shape, tensor.shape, strict=True)
                        if isinstance(said, int)
                    )
                ):
                    slots.append(self._slot(tensor, tuple(shape)))
                case other:
                    raise RunError(
                        f"{self._label}: output {name} is {other!r:.100},"
                        f" the manifest says {tensor.type} of shape {list(tensor.shape)}"
                    )
        if self.size_bytes > self._limit_bytes:
            raise RunError(
                f"{self._label}: outputs take {self.size_bytes} bytes,"
                f" the manifest's memory is {self._limit_bytes}"
            )
        return slots

    def _check(self, tensor: Tensor, array: NDArray[Any]) -> None:
        fits = array.ndim == len(tensor.shape) and all(
            # A free size that has a name is the same wherever the name stands.
            got == (self._sizes.setdefault(said, got) if isinstance(said, str) else said)
            for got, said in zip(array.shape, tensor.shape, strict=True)
        )
        if not fits or array.dtype != DTYPES[tensor.type]:
            raise TensorError(
                f"{self._label}: input {tensor.name} is {array.dtype} of shape {array.shape},"
                f" the manifest says {tensor.type} of shape {list(tensor.shape)}"
            )

    def _slot(self, tensor: Tensor, shape: tuple[int, ...]) -> Slot:
        slot = Slot(tensor.name, tensor.type, shape, self.size_bytes)
        self.size_bytes = slot.end
        return slot
