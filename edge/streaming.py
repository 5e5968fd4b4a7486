"""What is done to a study's slices while it still arrives: decoded, and begun for each model.

Owns the tasks of one background thread and what they leave: decoded slices, and slices on which the
manifest's slice-wise steps are done (`edge.steps.slices`). Everything here may be lost: who needs a
slice that is not here makes it, with the same bits. What each slice becomes does not
depend on the order in which they came.

Which models may want an instance is asked of its own header; whether they do want its series is
decided when the study closes (`edge.assemble`).

*Security*: decoders work on hostile bytes; the first instance of a study that cannot be decoded ends
the decoding ahead of that study, so that many made to be slow cost the time of one.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dicom.errors import DicomError
from dicom.geometry import StackGeometry, slice_affine
from dicom.header import InstanceHeader
from dicom.layout import DecodeLimits
from dicom.volume import read_slice
from edge.arrivals import Arrival
from edge.handover import Shelf, Slices
from edge.instances import InstanceStore
from edge.matching import facts, match
from edge.pipeline import Context
from edge.serving import ServedModel, Serving
from edge.steps.sample import OutOfScopeError
from edge.steps.slices import Key, SliceWork

log = logging.getLogger(__name__)

MAX_WAITING: Final = 4096
"""Slices that wait for the thread: four large studies; beyond it they are decoded when they are needed."""
MAX_WORKS: Final = 64
"""Sets of matrices that are kept: one for each model and kind of slice, some 20 kB each."""
MAX_FAILED: Final = 1024
"""Studies remembered as not decodable; one that is forgotten costs one more failed slice."""
FINISH_S: Final = 60.0
"""The longest wait for a slice that is being decoded; the slowest decoder was seen to need 12 s."""


@dataclass(frozen=True)
class BegunSlice:
    """One slice after a model's slice-wise steps."""

    values: NDArray[np.float32]
    key: Key


Begun = Shelf[BegunSlice]
"""`study key/instance key/model digest` to begun slice."""


class Streaming:
    """Begins slices in the background, and gives them out. Thread-safe."""

    def __init__(
        self,
        instances: InstanceStore,
        serving: Serving,
        slices: Slices,
        begun: Begun,
        executor: Executor,
        limits: DecodeLimits,
    ) -> None:
        self._instances = instances
        self._serving = serving
        self._slices = slices
        self._begun = begun
        self._executor = executor
        self._limits = limits
        self._lock = threading.Lock()
        self._tasks: dict[str, Future[None]] = {}
        self._works: OrderedDict[tuple[object, ...], SliceWork | None] = OrderedDict()
        self._failed: OrderedDict[str, None] = OrderedDict()

    def arrived(self, arrival: Arrival) -> None:
        """Begin an instance in the background, if a model may want its slice."""
        if arrival.header.number_of_frames != 1 or not (models := self._wanting(arrival.header)):
            return
        name = f"{arrival.study_key}/{arrival.instance_key}"
        with self._lock:
            if name in self._tasks or len(self._tasks) >= MAX_WAITING or arrival.study_key in self._failed:
                return
            try:
                task = self._executor.submit(self._begin, arrival, models)
            except RuntimeError:  # we are stopping
                return
            self._tasks[name] = task
        task.add_done_callback(lambda _: self._done(name))

    def _done(self, name: str) -> None:
        with self._lock:
            self._tasks.pop(name, None)

    def settle(self, study_key: str, instance_keys: Sequence[str]) -> None:
        """Return when none of these is being begun; what had not begun is left to the caller."""
        with self._lock:
            tasks = [self._tasks.get(f"{study_key}/{key}") for key in instance_keys]
        running = [task for task in tasks if task is not None and not task.cancel()]
        if running:
            wait(running, FINISH_S)

    def slice(self, study_key: str, instance_key: str) -> NDArray[np.float32] | None:
        """A decoded slice (rows, columns), modality units, if it is here."""
        return self._slices.get(f"{study_key}/{instance_key}")

    def prepare(
        self,
        model: ServedModel,
        study_key: str,
        instance_keys: Sequence[str],
        headers: Sequence[InstanceHeader],
        geometry: StackGeometry,
    ) -> tuple[dict[str, NDArray[np.float32]], Context] | None:
        """The input tensors of a model, from begun slices; those that are not here are begun now.

        Args:
            model: whose.
            study_key: of the series.
            instance_keys: of its slices, in the order of `headers`.
            headers: of its slices.
            geometry: of `headers`.

        Returns:
            What `Pipeline.prepare` gives for the volume, bit for bit; None if this model's steps begin
            with the whole volume.

        Raises:
            OutOfScopeError, InstanceError, OSError: as decoding and preparing the volume.
        """
        work = model.pipeline.slice_work(geometry.affine, geometry.shape[1:])
        if work is None:
            return None
        slices = []
        for index in geometry.order:
            name = f"{study_key}/{instance_keys[index]}"
            found = self._begun.get(f"{name}/{model.digest}")
            if found is not None and found.key == work.key:
                slices.append(found.values)
                continue
            pixels = self._slices.get(name)
            if pixels is None:
                path = self._instances.path(study_key, instance_keys[index])
                pixels = read_slice(path, headers[index], self._limits).pixels
                self._slices.put(name, pixels, pixels.nbytes)
            slices.append(model.pipeline.begin_slice(work, pixels))
        return model.pipeline.prepare_slices(slices, geometry.affine, geometry.shape)

    def drop(self, study_key: str) -> None:
        """Forget a study's slices: no model waits for them."""
        with self._lock:
            tasks = [task for name, task in self._tasks.items() if name.startswith(f"{study_key}/")]
            self._failed.pop(study_key, None)
        for task in tasks:
            task.cancel()
        self._slices.drop_all(f"{study_key}/")
        self._begun.drop_all(f"{study_key}/")

    def _wanting(self, header: InstanceHeader) -> list[ServedModel]:
        """The models of which nothing in this header alone says that they do not want it in a volume."""
        found = []
        for model in self._serving.active():
            wants = model.manifest.inputs[0]
            if wants.kind != "volume":
                continue
            verdict = match(wants, facts([header]))
            if verdict.accepted or verdict.only_geometry:
                found.append(model)
        return found

    def _begin(self, arrival: Arrival, models: Sequence[ServedModel]) -> None:
        with self._lock:
            if arrival.study_key in self._failed:
                return
        path = self._instances.path(arrival.study_key, arrival.instance_key)
        name = f"{arrival.study_key}/{arrival.instance_key}"
        try:
            pixels = read_slice(path, arrival.header, self._limits).pixels
            self._slices.put(name, pixels, pixels.nbytes)
            for model in models:
                work = self._work(model, arrival.header)
                if work is not None:
                    values = model.pipeline.begin_slice(work, pixels)
                    begun = BegunSlice(values, work.key)
                    self._begun.put(f"{name}/{model.digest}", begun, values.nbytes)
        except (DicomError, OSError, OutOfScopeError) as error:
            # said again, and acted upon, when the model that wants it runs
            log.info("instance %s cannot be decoded ahead: %s", arrival.instance_key[:12], error)
            with self._lock:
                self._failed[arrival.study_key] = None
                while len(self._failed) > MAX_FAILED:
                    self._failed.popitem(last=False)
        except Exception:
            log.exception("instance %s: decoding ahead failed", arrival.instance_key[:12])

    def _work(self, model: ServedModel, header: InstanceHeader) -> SliceWork | None:
        """What is done to slices like this one, made once for all of them."""
        kind = (
            model.digest,
            header.image_orientation,
            header.pixel_spacing_mm,
            header.rows,
            header.columns,
        )
        with self._lock:
            if kind in self._works:
                self._works.move_to_end(kind)
                return self._works[kind]
        work = model.pipeline.slice_work(slice_affine(header), (header.rows or 0, header.columns or 0))
        with self._lock:
            self._works[kind] = work
            while len(self._works) > MAX_WORKS:
                self._works.popitem(last=False)
        return work
