"""Requests of ours that follow on an association: sent, answered, or said to be lost; never twice."""

import gc
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from dicom import command
from dicom.command import Command, CommandField
from dicom.commitment_service import NO_SUCH_ACTION
from dicom.dimse import MAX_POSTPONED, DimseProvider, Message, MessageError, Service
from dicom.negotiation import PresentationContext
from dicom.pdu import Fragment
from dicom.postponed import GRACE_S, Postponed
from dicom.store_handler import AssociationInfo
from tests.dicom.test_dimse import COMMITMENT, INFO
from tests.fakes.peer import IMPLICIT

EVENT = Command(
    field=CommandField.N_EVENT_REPORT_RQ,
    has_data_set=True,
    message_id=0,
    affected_sop_class_uid=COMMITMENT,
    event_type_id=1,
)


class Asked:
    """An operation whose answer is a postponed request alone."""

    def __init__(self, postponed: Postponed) -> None:
        self._postponed = postponed

    def write(self, parts: Sequence[memoryview]) -> None:
        raise AssertionError("no data set was announced")

    def complete(self) -> Sequence[Message | Postponed]:
        return [self._postponed]

    def discard(self) -> None:
        pass


class World:
    """One association's messages, and the postponed requests that its service made."""

    def __init__(self) -> None:
        self.made: list[Postponed] = []
        self.settled: list[int | None] = []
        service = Service(
            "test",
            lambda uid: (IMPLICIT,) if uid == COMMITMENT else None,
            {CommandField.N_ACTION_RQ: self.begin},
        )
        contexts = {5: PresentationContext(5, COMMITMENT, IMPLICIT)}
        self.provider = DimseProvider(INFO, contexts, (service,), max_length_bytes=0, max_objects=1)

    def begin(self, _info: AssociationInfo, context: PresentationContext, _command: Command) -> Asked:
        self.made.append(Postponed(context.id))
        return Asked(self.made[-1])

    def ask(self) -> Postponed:
        action = Command(field=CommandField.N_ACTION_RQ, message_id=1, requested_sop_class_uid=COMMITMENT)
        assert self.send(action) == b""
        return self.made[-1]

    def send(self, message: Command) -> bytes:
        return self.provider.fragment(Fragment(5, True, True, memoryview(command.encode(message))))

    def answer(self, message_id: int, status: int) -> bytes:
        return self.send(
            Command(
                field=CommandField.N_EVENT_REPORT_RSP, message_id_being_responded_to=message_id, status=status
            )
        )

    def give(self, postponed: Postponed) -> bool:
        return postponed.give(Message(EVENT, b"ds"), self.settled.append)


def test_it_is_sent_when_it_is_there_and_the_grace_has_passed_and_its_answer_is_told_once() -> None:
    world = World()
    postponed = world.ask()
    later = postponed.not_before
    assert world.provider.due(later) == b""
    thread = threading.Thread(target=world.give, args=(postponed,))
    thread.start()
    thread.join()
    assert os.eventfd_read(postponed.fileno()) == 1
    assert world.provider.due(later - GRACE_S / 2) == b""
    sent = world.provider.due(later)
    assert sent.endswith(b"ds")
    assert list(world.provider.postponed) == []
    assert world.provider.due(later + 1) == b""
    assert world.settled == []
    assert world.answer(1, 0x0110) == b""
    assert world.settled == [0x0110]
    world.provider.discard()
    assert world.settled == [0x0110]


def test_the_end_of_the_association_is_told_for_what_was_given_and_refuses_what_is_given_later() -> None:
    world = World()
    given, sent, late = world.ask(), world.ask(), world.ask()
    assert world.give(sent)
    assert world.provider.due(late.not_before) != b""
    assert world.give(given)
    world.provider.discard()
    assert world.settled == [None, None]
    assert not world.give(late)
    assert world.settled == [None, None]


def test_messages_of_ours_have_different_ids_and_each_answer_finds_its_own() -> None:
    world = World()
    statuses: list[tuple[str, int | None]] = []
    for name in ("first", "second"):
        postponed = world.ask()
        assert postponed.give(
            Message(EVENT, None),
            lambda status, name=name: statuses.append((name, status)),  # type: ignore[misc]
        )
    world.provider.due(world.made[-1].not_before)
    world.answer(2, 0x0000)
    world.answer(1, NO_SUCH_ACTION)
    assert statuses == [("second", 0x0000), ("first", NO_SUCH_ACTION)]


@pytest.mark.parametrize("message_id", [0, 2, 65535])
def test_an_answer_to_nothing_ends_the_association(message_id: int) -> None:
    world = World()
    assert world.give(world.ask())
    world.provider.due(world.made[0].not_before)
    with pytest.raises(MessageError):
        world.answer(message_id, 0)


def test_a_peer_cannot_make_more_of_them_wait_than_the_limit() -> None:
    world = World()
    for _ in range(MAX_POSTPONED + 3):
        world.ask()
    assert len(world.provider.postponed) == MAX_POSTPONED
    assert [world.give(each) for each in world.made[-3:]] == [False, False, False]
    gc.collect()  # what other tests of this process left behind does not count
    before = len(list(Path("/proc/self/fd").iterdir()))
    world.provider.discard()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before - MAX_POSTPONED
