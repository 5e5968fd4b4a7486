"""infer: one model on one input, in its own warm process.

Owns the order: the model's input from slices that were begun on arrival (`edge.streaming`) or from
the volume, the worker's run with its deadline, postprocessing, the plausibility checks. What only
`edge.produce` needs is done while the model runs. Makes no DICOM object.
"""

import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicom.errors import GeometryError
from dicom.geometry import StackGeometry, stack_geometry
from dicom.header import InstanceHeader
from dicom.layout import DecodeLimits
from dicom.volume import Image, Volume, build_image, build_volume
from edge.beside import beside
from edge.engine import RunResult
from edge.handover import Headers, Inferred, Shelf
from edge.instances import InstanceStore
from edge.journal import Journal
from edge.pipeline import Context
from edge.records import Item
from edge.serving import ServedModel, Serving
from edge.streaming import Streaming
from edge.study import Outcome, Stage

log = logging.getLogger(__name__)


class Infer:
    """The stage INFER."""

    def __init__(
        self,
        journal: Journal,
        instances: InstanceStore,
        serving: Serving,
        headers: Headers,
        inferred: Shelf[Inferred],
        limits: DecodeLimits,
        clock: Callable[[], datetime],
        streaming: Streaming | None = None,
    ) -> None:
        self._journal = journal
        self._instances = instances
        self._serving = serving
        self._headers = headers
        self._inferred = inferred
        self._limits = limits
        self._clock = clock
        self._streaming = streaming

    def handle(self, item: Item) -> None:
        """Run the item's model; done with findings on the shelf, or declined with the reasons."""
        model = self._serving.model(item.model_digest)
        headers = self._headers.of(item.study_key, item.inputs)
        files = [
            (self._instances.path(item.study_key, key), header)
            for key, header in zip(item.inputs, headers, strict=True)
        ]
        run, context, pixels = self._run(item, model, files)
        interpretation = model.pipeline.interpret(run.outputs, context)
        if interpretation.failures:
            reason = "out of the model's scope: " + "; ".join(interpretation.failures)
            self._journal.advance(item, Outcome.DECLINE, self._clock(), reason)
        else:
            info = self._serving.engine(item.model_digest).info
            parameters = {
                "runtime": info.runtime,
                "provider": info.provider,
                "graph": info.graph,
                "precision": info.precision,
                "decoder": pixels.decoder,
                "preprocessing_sha256": model.pipeline.digest,
                "numpy": np.__version__,
                "python": platform.python_version(),
            }
            labels = interpretation.findings.labels
            size = labels.nbytes if labels is not None else 0
            size += pixels.voxels.nbytes if isinstance(pixels, Volume) else pixels.pixels.nbytes
            self._inferred.put(item.item_key, Inferred(pixels, interpretation.findings, parameters), size)
            ran = f"{model.label} ran in {1000 * run.run_s:.1f} ms"
            self._journal.advance(item, Outcome.DONE, self._clock(), detail=ran)
            log.info("study %s: %s", item.study_key[:12], ran)
        if self._streaming is not None and not self._journal.is_awaited(
            item.study_key, Stage.ASSEMBLE, Stage.INFER
        ):
            self._streaming.drop(item.study_key)

    def _run(
        self, item: Item, model: ServedModel, files: Sequence[tuple[Path, InstanceHeader]]
    ) -> tuple[RunResult, Context, Volume | Image]:
        """Prepare and run; what only the picture needs is made beside the run."""
        wants = model.manifest.inputs[0]
        if wants.kind == "image":
            image = build_image(*files[0], self._limits)
            tensors, context = model.pipeline.prepare({wants.name: image})
            return self._engine_run(model, tensors), context, image
        streamed = self._streamed(item, model, files)
        if streamed is None:
            volume = self._volume(item, files)
            tensors, context = model.pipeline.prepare({wants.name: volume})
            return self._engine_run(model, tensors), context, volume
        tensors, context = streamed
        making = beside("volume", lambda: self._volume(item, files))
        try:
            run = self._engine_run(model, tensors)
        except BaseException:
            making.exception()  # the thread ends here, whatever it came to
            raise
        return run, context, making.result()

    def _engine_run(self, model: ServedModel, tensors: Mapping[str, NDArray[np.float32]]) -> RunResult:
        return self._serving.engine(model.digest).run(tensors, model.manifest.deadline_s)

    def _streamed(
        self, item: Item, model: ServedModel, files: Sequence[tuple[Path, InstanceHeader]]
    ) -> tuple[dict[str, NDArray[np.float32]], Context] | None:
        """The model's input from slices that were begun; None: it begins with the whole volume."""
        if self._streaming is None:
            return None
        headers = [header for _, header in files]
        geometry = stack_geometry(headers)
        self._require_room(geometry, headers[0])
        self._streaming.settle(item.study_key, item.inputs)
        return self._streaming.prepare(model, item.study_key, item.inputs, headers, geometry)

    def _require_room(self, geometry: StackGeometry, header: InstanceHeader) -> None:
        slices, rows, columns = geometry.shape
        size = slices * rows * columns * np.dtype(np.float32).itemsize
        if size > self._limits.max_bytes:
            raise GeometryError(
                f"series {header.series_instance_uid}: a volume of {geometry.shape} voxels has {size} bytes,"
                f" allowed {self._limits.max_bytes}"
            )

    def _volume(self, item: Item, files: Sequence[tuple[Path, InstanceHeader]]) -> Volume:
        ready: dict[str, NDArray[np.float32]] = {}
        if self._streaming is not None:
            for key, (_, header) in zip(item.inputs, files, strict=True):
                pixels = self._streaming.slice(item.study_key, key)
                if pixels is not None:
                    ready[header.sop_instance_uid] = pixels
        return build_volume(files, ready, limits=self._limits)
