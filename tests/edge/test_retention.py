"""Retention deletes what is finished and old, and nothing else."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from edge import journal_view
from edge.journal import Journal
from edge.retention import sweep
from edge.study import Outcome, Stage
from tests.edge.records_fixture import claimed, key_of, later, received

STUDY = key_of("1.2.3")
DAY_S = 86400.0


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    journal = Journal.open(tmp_path / "journal.db")
    journal.enter([received(1), received(2)])
    (tmp_path / "results" / STUDY / "a").mkdir(parents=True)
    return journal


class Files:
    """Stands for the instance store: what it was told to delete."""

    def __init__(self) -> None:
        self.deleted: list[str] = []
        self.fails = False

    def delete(self, study_key: str, instance_keys: Sequence[str]) -> None:
        assert study_key == STUDY
        if self.fails:
            raise OSError("the disk went away")
        self.deleted += instance_keys


def end(journal: Journal, outcome: Outcome) -> None:
    journal.close_study(STUDY, "quiet timer", later(10))
    item = claimed(journal.claim((Stage.ASSEMBLE,), later(11)))
    journal.advance(item, outcome, later(12), "why")


def test_a_finished_study_goes_after_its_days_with_files_and_results(
    journal: Journal, tmp_path: Path
) -> None:
    end(journal, Outcome.DECLINE)
    files = Files()
    results = tmp_path / "results"
    assert sweep(journal, files.delete, results, 7, later(7 * DAY_S)) == 0
    assert (results / STUDY).exists()
    assert sweep(journal, files.delete, results, 7, later(7 * DAY_S + 13)) == 1
    assert sorted(files.deleted) == sorted(received(n).instance_key for n in (1, 2))
    assert not (results / STUDY).exists()
    assert journal.headers(STUDY) == {}
    assert [row.state for row in journal_view.studies(journal)] == ["deleted"]
    assert sweep(journal, files.delete, results, 7, later(9 * DAY_S)) == 0


@pytest.mark.parametrize("state", ["open", "working", "held"])
def test_what_is_not_finished_stays_however_old(journal: Journal, tmp_path: Path, state: str) -> None:
    if state == "working":
        journal.close_study(STUDY, "quiet timer", later(10))
    if state == "held":
        end(journal, Outcome.HOLD)
    files = Files()
    assert sweep(journal, files.delete, tmp_path / "results", 7, later(1000 * DAY_S)) == 0
    assert files.deleted == []
    assert len(journal.headers(STUDY)) == 2
    assert journal_view.studies(journal)[0].state == state


def test_a_sweep_that_was_cut_off_is_finished_by_the_next(journal: Journal, tmp_path: Path) -> None:
    end(journal, Outcome.DECLINE)
    files = Files()
    files.fails = True
    with pytest.raises(OSError, match="the disk went away"):
        sweep(journal, files.delete, tmp_path / "results", 7, later(8 * DAY_S))
    assert len(journal.headers(STUDY)) == 2
    files.fails = False
    assert sweep(journal, files.delete, tmp_path / "results", 7, later(8 * DAY_S)) == 1
    assert journal.headers(STUDY) == {}


def test_an_image_that_arrives_while_its_study_is_being_deleted_stays(
    journal: Journal, tmp_path: Path
) -> None:
    end(journal, Outcome.DECLINE)
    late = received(3, at=later(8 * DAY_S))

    def delete(_: str, instance_keys: Sequence[str]) -> None:
        assert late.instance_key not in instance_keys
        journal.enter([late])

    sweep(journal, delete, tmp_path / "results", 7, later(8 * DAY_S))
    assert set(journal.headers(STUDY)) == {late.instance_key}
    row = journal_view.studies(journal)[0]
    assert (row.state, row.revision, row.instances) == ("open", 2, 1)
