"""Where things lie below the configured directories."""

from edge.options import Directories
from model_store import durable


class Places:
    """Every path of the appliance; nothing else puts one together."""

    def __init__(self, directories: Directories) -> None:
        self.state = directories.state
        self.cache = directories.cache
        self.runtime = directories.runtime
        self.journal = self.state / "journal.db"
        self.instances = self.state / "instances"
        self.arrivals = self.state / "arrivals"
        self.commitments = self.state / "commitments"
        self.results = self.state / "results"
        self.models = self.state / "models"

    def make(self) -> None:
        """Make the directories that are missing, readable by their owner and group only."""
        for directory in (self.instances, self.arrivals, self.results, self.models, self.cache, self.runtime):
            durable.make_directory(directory)
