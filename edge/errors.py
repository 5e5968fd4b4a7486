"""The errors of running a model, one tree; what follows from each is decided elsewhere.

EngineError
├── TensorError              the tensors handed in are not what the manifest declares
├── WorkerStartError         the worker did not become ready, or its graph cannot be loaded
├── WorkerDiedError          the worker died in the middle of a run; the next run starts another
├── DeadlineError            the run did not end in time
├── RunError                 the graph failed on these inputs, or asked for too much memory
└── ModelOutOfServiceError   its workers died again and again: nothing is started until a person says so
"""


class EngineError(Exception):
    """Anything that running a model raises on purpose."""


class TensorError(EngineError):
    """The tensors handed in are not what the manifest declares: names, types, shapes, size."""


class WorkerStartError(EngineError):
    """The worker did not become ready in time, or its graph cannot be loaded."""


class WorkerDiedError(EngineError):
    """The worker died in the middle of a run; the next run starts another."""


class DeadlineError(EngineError):
    """The run did not end in time; the worker has been stopped, and goes on or is replaced."""


class RunError(EngineError):
    """The graph failed on these inputs, or asked for more memory than the manifest grants."""


class ModelOutOfServiceError(EngineError):
    """The model's workers died too often in a row; a person must look."""
