"""The errors of `model_store`, one tree; whose fault it is decides the branch.

ModelStoreError
├── PackageError            a model package is not what its manifest says: its maker's fault
│   ├── ManifestError       the manifest itself: every problem at once
│   └── GraphError          the ONNX graph: operators, external data, tensors
├── UnknownModelError       the store has no such model, or more than one: the caller's to mend
└── StoreError              our own disk: full, read-only, damaged
"""

from collections.abc import Sequence


class ModelStoreError(Exception):
    """Anything that `model_store` raises on purpose."""


class PackageError(ModelStoreError):
    """A model package is not what its manifest says."""


class ManifestError(PackageError):
    """The manifest is wrong; `problems` holds one line for each thing to mend."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__(f"{source}: " + "; ".join(self.problems))


class GraphError(PackageError):
    """The ONNX graph uses what is not allowed, or is not what the manifest says."""


class UnknownModelError(ModelStoreError):
    """The store has no model of this name, version or digest, or more than one; it says which it has."""


class StoreError(ModelStoreError):
    """The store on our own disk cannot be read or written."""
