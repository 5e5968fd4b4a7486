"""infer: one model on one input, in its own warm process.

Owns the order: volume from decoded slices, preprocessing, the worker's run with its
deadline, postprocessing, the plausibility checks. Makes no DICOM object (`edge.produce`).
"""

import logging
import platform
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np

from dicom.header import InstanceHeader
from dicom.volume import Image, Volume, build_image, build_volume
from edge.handover import Inferred, Shelf, Slices
from edge.instances import InstanceStore
from edge.journal import Journal
from edge.records import Item
from edge.serving import Serving
from edge.study import Outcome

log = logging.getLogger(__name__)


class Infer:
    """The stage INFER."""

    def __init__(
        self,
        journal: Journal,
        instances: InstanceStore,
        serving: Serving,
        slices: Slices,
        inferred: Shelf[Inferred],
        clock: Callable[[], datetime],
    ) -> None:
        self._journal = journal
        self._instances = instances
        self._serving = serving
        self._slices = slices
        self._inferred = inferred
        self._clock = clock

    def handle(self, item: Item) -> None:
        """Run the item's model; done with findings on the shelf, or declined with the reasons."""
        model = self._serving.model(item.model_digest)
        wants = model.manifest.inputs[0]
        headers = self._journal.headers(item.study_key)
        files = [(self._instances.path(item.study_key, key), headers[key]) for key in item.inputs]
        pixels = self._image(files[0]) if wants.kind == "image" else self._volume(item, files)
        tensors, context = model.pipeline.prepare({wants.name: pixels})
        engine = self._serving.engine(item.model_digest)
        run = engine.run(tensors, model.manifest.deadline_s)
        interpretation = model.pipeline.interpret(run.outputs, context)
        if interpretation.failures:
            reason = "out of the model's scope: " + "; ".join(interpretation.failures)
            self._journal.advance(item, Outcome.DECLINE, self._clock(), reason)
            return
        parameters = {
            "runtime": engine.info.runtime,
            "provider": engine.info.provider,
            "graph": engine.info.graph,
            "precision": engine.info.precision,
            "decoder": pixels.decoder,
            "preprocessing_sha256": model.pipeline.digest,
            "numpy": np.__version__,
            "python": platform.python_version(),
        }
        size = interpretation.findings.labels.nbytes if interpretation.findings.labels is not None else 0
        size += pixels.voxels.nbytes if isinstance(pixels, Volume) else pixels.pixels.nbytes
        self._inferred.put(item.item_key, Inferred(pixels, interpretation.findings, parameters), size)
        ran = f"{model.label} ran in {1000 * run.run_s:.1f} ms"
        self._journal.advance(item, Outcome.DONE, self._clock(), detail=ran)
        log.info("study %s: %s", item.study_key[:12], ran)
        for key in item.inputs:
            self._slices.drop(f"{item.study_key}/{key}")

    def _image(self, file: tuple[Path, InstanceHeader]) -> Image:
        return build_image(*file)

    def _volume(self, item: Item, files: list[tuple[Path, InstanceHeader]]) -> Volume:
        ready = {
            header.sop_instance_uid: pixels
            for key, (_, header) in zip(item.inputs, files, strict=True)
            if (pixels := self._slices.get(f"{item.study_key}/{key}")) is not None
        }
        return build_volume(files, ready)
