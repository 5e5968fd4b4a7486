"""produce: a model's findings as DICOM objects, written durably.

Owns which objects are made, in which order, what they are derived from, and where they
lie: `<results>/<study key>/<item key>/<kind>.dcm`. The encoding is `dicom`'s.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from dicom.picture import encode_picture
from dicom.report import encode_report
from dicom.results import Algorithm, ResultContext, ResultObject
from dicom.segmentation import encode_segmentation
from dicom.source import read_source
from dicom.uid import IMPLEMENTATION_VERSION_NAME, derive
from edge.handover import Inferred, Shelf
from edge.instances import InstanceStore
from edge.journal import Journal
from edge.records import Item, ResultRow
from edge.serving import ServedModel, Serving
from edge.study import Outcome
from model_store import durable

log = logging.getLogger(__name__)


class Produce:
    """The stage PRODUCE."""

    def __init__(
        self,
        journal: Journal,
        instances: InstanceStore,
        serving: Serving,
        inferred: Shelf[Inferred],
        results: Path,
        destinations: Sequence[str],
        clock: Callable[[], datetime],
    ) -> None:
        self._journal = journal
        self._instances = instances
        self._serving = serving
        self._inferred = inferred
        self._results = results
        self._destinations = tuple(destinations)
        self._clock = clock

    def handle(self, item: Item) -> None:
        """Make and write the item's objects, then enter them with their deliveries."""
        inferred = self._inferred.get(item.item_key)
        if inferred is None:
            self._journal.advance(item, Outcome.REDO, self._clock(), "the findings were in memory only")
            return
        model = self._serving.model(item.model_digest)
        objects = self._encode(item, model, inferred)
        directory = self._results / item.study_key / item.item_key
        durable.make_directory(directory)
        durable.write_files(directory, {f"{each.kind}.dcm": each.data for each in objects})
        rows = [
            ResultRow(
                each.kind,
                each.sop_class_uid,
                each.sop_instance_uid,
                each.series_instance_uid,
                len(each.data),
            )
            for each in objects
        ]
        self._journal.produced(item, rows, self._destinations, self._clock())
        self._inferred.drop(item.item_key)

    def _encode(self, item: Item, model: ServedModel, inferred: Inferred) -> list[ResultObject]:
        headers = self._journal.headers(item.study_key)
        files = [(self._instances.path(item.study_key, key), headers[key]) for key in item.inputs]
        source = read_source(files)
        manifest = model.manifest
        context = ResultContext(
            algorithm=Algorithm(
                name=manifest.title,
                version=manifest.version,
                manufacturer=manifest.vendor,
                device_uid=derive("device", model.digest),
                model_digest=model.digest,
                parameters={"appliance": IMPLEMENTATION_VERSION_NAME, **inferred.parameters},
            ),
            study_instance_uid=files[0][1].study_instance_uid,
            inputs=tuple(header for _, header in files),
            created=item.created,
            identity=(item.study_key, model.digest, item.item_key),
            predecessor=item.predecessor,
        )
        objects: list[ResultObject] = []
        segmentation: ResultObject | None = None
        wanted = manifest.outputs.objects
        findings = inferred.findings
        if "SEG" in wanted:
            segmentation = encode_segmentation(source, findings, context)
            objects += [segmentation] if segmentation is not None else []
        objects.append(encode_report(source, findings, context, segmentation))
        if "SC" in wanted:
            objects.append(encode_picture(source, findings, context, inferred.pixels))
        return objects
