"""The models that serve, each compiled and warm: from the store's table to a running worker.

Owns the engines (one warm process a model). A study's item names its model by digest and
keeps it: a switch of the serving table touches no item that exists.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from edge.engine import Engine
from edge.errors import EngineError
from edge.pipeline import Pipeline
from model_store.errors import ModelStoreError
from model_store.manifest import Manifest
from model_store.package import Package
from model_store.store import ModelStore

log = logging.getLogger(__name__)

START_AGAIN_S: Final = 60.0
"""After a worker that did not start: the cause (a package, a driver) does not pass in seconds."""


@dataclass(frozen=True)
class ServedModel:
    """One model, ready to be matched and run."""

    package: Package
    pipeline: Pipeline

    @property
    def digest(self) -> str:
        """sha256 of its manifest."""
        return self.package.digest

    @property
    def manifest(self) -> Manifest:
        """What its vendor says of it."""
        return self.package.manifest

    @property
    def label(self) -> str:
        """Name and version, for people."""
        return f"{self.manifest.name} {self.manifest.version}"


class Serving:
    """Models by digest, and those of them that new studies get. Thread-safe."""

    def __init__(self, store: ModelStore, start_engine: Callable[[Package], Engine]) -> None:
        self._store = store
        self._start_engine = start_engine
        self._models: dict[str, ServedModel] = {}
        self._engines: dict[str, Engine] = {}
        self._active: tuple[ServedModel, ...] = ()
        self._starting: dict[str, threading.Lock] = {}
        self._failed: dict[str, float] = {}
        """Monotonic seconds at which a worker last failed to start."""
        self._idle: set[str] = set()
        """Workers that `warm` found without work when it looked last."""
        self._lock = threading.Lock()

    def begin(self, now: datetime) -> None:
        """Read the serving table at start; a package that is damaged gives way to its previous one."""
        for served in self._store.start_serving(who="insitu at start", now=now):
            if served.notice:
                log.error("model %s: %s", served.name, served.notice)
        self.refresh()

    def refresh(self) -> None:
        """Read the serving table again.

        A model that cannot be loaded is left out with an alarm in the log: the others serve on.
        """
        found = []
        for digest in self._store.active_digests():
            try:
                found.append(self.model(digest))
            except ModelStoreError:
                log.exception("model %s is active but cannot be loaded: it does not serve", digest[:12])
        self._active = tuple(found)

    def active(self) -> tuple[ServedModel, ...]:
        """The models for studies that close now, as of the last `refresh`."""
        return self._active

    def model(self, digest: str) -> ServedModel:
        """The model with this digest, active or not.

        Raises:
            ModelStoreError: it is not in the store, or damaged.
        """
        with self._lock:
            model = self._models.get(digest)
            if model is None:
                package = self._store.get(digest)
                model = ServedModel(package, Pipeline.compile(package.manifest))
                self._models[digest] = model
            return model

    def engine(self, digest: str) -> Engine:
        """Its warm worker; started now if it is not.

        Raises:
            ModelStoreError: the model is not in the store.
            EngineError: the worker does not start.
        """
        model = self.model(digest)
        with self._lock:
            starting = self._starting.setdefault(digest, threading.Lock())
        with starting:  # one that takes long, or fails, keeps no other model waiting
            with self._lock:
                engine = self._engines.get(digest)
            if engine is None:
                engine = self._start_engine(model.package)
                with self._lock:
                    self._engines[digest] = engine
            return engine

    def warm(self, awaited: Collection[str] = ()) -> None:
        """Read the table again, start the workers of what serves, end those that no longer do.

        A worker goes when its model neither serves nor is `awaited` twice in a row: a stage that has just
        taken it from here may be about to run it. One that does not start keeps no other from starting.

        Args:
            awaited: digests of models that some item still has to run.
        """
        self.refresh()
        active = {model.digest for model in self.active()}
        for digest in active:
            if time.monotonic() - self._failed.get(digest, -math.inf) < START_AGAIN_S:
                continue
            try:
                self.engine(digest)
                self._failed.pop(digest, None)
            except (ModelStoreError, EngineError) as error:
                self._failed[digest] = time.monotonic()
                log.error(
                    "model %s: its worker does not start, again in %g s: %s",
                    digest[:12],
                    START_AGAIN_S,
                    error,
                )
        with self._lock:
            idle = set(self._engines) - active - set(awaited)
            ending = [self._engines.pop(digest) for digest in idle & self._idle]
            self._idle = idle
        for engine in ending:
            engine.close()

    def close(self) -> None:
        """End every worker."""
        with self._lock:
            engines, self._engines = self._engines, {}
        for engine in engines.values():
            engine.close()
