"""produce: a model's findings as DICOM objects, written durably.

Owns which objects are made, in which order, what they are derived from, and where they
lie: `<results>/<study key>/<item key>/<kind>.dcm`. The encoding is `dicom`'s. Objects that an earlier
run of the same item left there (it died before they were entered, or the journal was lost) are
entered as they are: they may have been sent, and made anew they would have other times.

*Diagnostics*: logs that objects of an earlier run were kept.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from dicom.header import InstanceHeader
from dicom.picture import encode_picture
from dicom.readback import find_written
from dicom.report import encode_report
from dicom.results import Algorithm, ResultContext, ResultObject
from dicom.segmentation import encode_segmentation, is_segmented
from dicom.source import read_source
from dicom.uid import IMPLEMENTATION_VERSION_NAME, derive
from edge import revisions
from edge.beside import beside
from edge.handover import Headers, Inferred, Shelf
from edge.instances import InstanceStore
from edge.journal import Journal
from edge.records import Item, ResultRow
from edge.serving import ServedModel, Serving
from edge.study import Outcome, Stage
from model_store import durable

log = logging.getLogger(__name__)


class Produce:
    """The stage PRODUCE."""

    def __init__(
        self,
        journal: Journal,
        instances: InstanceStore,
        serving: Serving,
        headers: Headers,
        inferred: Shelf[Inferred],
        results: Path,
        destinations: Sequence[str],
        clock: Callable[[], datetime],
    ) -> None:
        self._journal = journal
        self._instances = instances
        self._serving = serving
        self._headers = headers
        self._inferred = inferred
        self._results = results
        self._destinations = tuple(destinations)
        self._clock = clock

    def handle(self, item: Item) -> None:
        """Make and write the item's objects, then enter them with their deliveries."""
        if (later := revisions.successor(self._journal, item)) is not None:
            reason = f"superseded: the results of revision {later} were made before these"
            self._inferred.drop(item.item_key)
            self._journal.advance(item, Outcome.DECLINE, self._clock(), reason)
            return
        inferred = self._inferred.get(item.item_key)
        if inferred is None:
            self._journal.advance(item, Outcome.REDO, self._clock(), "the findings were in memory only")
            return
        model = self._serving.model(item.model_digest)
        predecessor = item.predecessor or revisions.predecessor(self._journal, item)
        context, files = self._context(item, model, inferred, predecessor)
        directory = self._results / item.study_key / item.item_key
        rows = self._kept(directory, model, inferred, context)
        if rows is None:
            rows = self._written(directory, self._encode(model, inferred, context, files))
        self._journal.produced(item, rows, self._destinations, self._clock(), predecessor)
        self._inferred.drop(item.item_key)
        if not self._journal.is_awaited(item.study_key, Stage.ASSEMBLE, Stage.INFER, Stage.PRODUCE):
            self._headers.drop(item.study_key)

    def _kept(
        self, directory: Path, model: ServedModel, inferred: Inferred, context: ResultContext
    ) -> list[ResultRow] | None:
        """The objects of an earlier run of this item; None unless all of them are there, whole."""
        kinds = {"SR", *model.manifest.outputs.objects}
        if not is_segmented(inferred.findings):
            kinds.discard("SEG")
        if not directory.is_dir() or (found := find_written(directory, kinds, context)) is None:
            return None
        for each in (directory, directory.parent, self._results):  # it may have died before it made them so
            durable.sync_directory(each)
        log.info("results of an earlier run are kept", extra={"objects": len(found)})
        return [
            ResultRow(
                each.kind,
                each.sop_class_uid,
                each.sop_instance_uid,
                each.series_instance_uid,
                each.size_bytes,
            )
            for each in found
        ]

    @staticmethod
    def _written(directory: Path, objects: Sequence[ResultObject]) -> list[ResultRow]:
        durable.make_directory(directory)
        durable.write_files(directory, {f"{each.kind}.dcm": each.data for each in objects})
        return [
            ResultRow(
                each.kind,
                each.sop_class_uid,
                each.sop_instance_uid,
                each.series_instance_uid,
                len(each.data),
            )
            for each in objects
        ]

    def _context(
        self, item: Item, model: ServedModel, inferred: Inferred, predecessor: revisions.Report | None
    ) -> tuple[ResultContext, list[tuple[Path, InstanceHeader]]]:
        headers = self._headers.of(item.study_key, item.inputs)
        files = [
            (self._instances.path(item.study_key, key), header)
            for key, header in zip(item.inputs, headers, strict=True)
        ]
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
            predecessor=predecessor,
        )
        return context, files

    @staticmethod
    def _encode(
        model: ServedModel,
        inferred: Inferred,
        context: ResultContext,
        files: Sequence[tuple[Path, InstanceHeader]],
    ) -> list[ResultObject]:
        source = read_source(files)
        wanted = model.manifest.outputs.objects
        findings = inferred.findings
        drawing = None
        if "SC" in wanted:  # OpenCV and NumPy let go of the interpreter: the picture is drawn beside the rest
            drawing = beside("picture", lambda: encode_picture(source, findings, context, inferred.pixels))
        try:
            segmentation = encode_segmentation(source, findings, context) if "SEG" in wanted else None
            report = encode_report(source, findings, context, segmentation)
        except BaseException:
            if drawing is not None:
                drawing.exception()  # the thread ends here, whatever it came to
            raise
        found = [segmentation, report, drawing.result() if drawing is not None else None]
        return [each for each in found if each is not None]
