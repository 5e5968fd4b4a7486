from itertools import product

import pytest
from pynetdicom.fsm import TRANSITION_TABLE

from dicom.association import TRANSITIONS, Action, Event, State, StateMachine

PAIRS = list(product(State, Event))
CAUSED_BY_A_PEER = {
    Event.A_ASSOCIATE_AC,
    Event.A_ASSOCIATE_RJ,
    Event.A_ASSOCIATE_RQ,
    Event.A_ASSOCIATE_RQ_UNACCEPTABLE,
    Event.P_DATA_TF,
    Event.A_RELEASE_RQ,
    Event.A_RELEASE_RP,
    Event.A_ABORT,
    Event.TRANSPORT_CLOSED,
    Event.INVALID_PDU,
}


def standard_name(value: State | Event) -> str:
    return value.value.partition(":")[0]


def standard_action(action: Action) -> str:
    return "-".join(action.name.split("_")[:2])


@pytest.mark.parametrize(("state", "event"), PAIRS)
def test_each_pair_does_what_table_9_10_says_or_cannot_happen(state: State, event: Event) -> None:
    expected = TRANSITION_TABLE.get((standard_name(event), standard_name(state)))
    machine = StateMachine()
    machine.state = state
    if expected is None:
        with pytest.raises(RuntimeError, match="cannot happen here"):
            machine.on(event)
        assert machine.state is state
    else:
        action = machine.on(event)
        assert standard_action(action) == expected
        assert (action, machine.state) == TRANSITIONS[state, event]


# PS3.8 Tables 9-6 to 9-9: where each action leads, written down a second time
NEXT = {
    "AE-5": "Sta2",
    "AE-6": "Sta3",
    "AE-7": "Sta6",
    "AE-8": "Sta13",
    "DT-1": "Sta6",
    "DT-2": "Sta6",
    "AR-2": "Sta8",
    "AR-4": "Sta13",
    "AR-5": "Sta1",
    "AR-7": "Sta8",
    "AA-1": "Sta13",
    "AA-2": "Sta1",
    "AA-3": "Sta1",
    "AA-4": "Sta1",
    "AA-5": "Sta1",
    "AA-6": "Sta13",
    "AA-7": "Sta13",
    "AA-8": "Sta13",
}


@pytest.mark.parametrize(("action", "state"), sorted(set(TRANSITIONS.values())))
def test_each_action_leads_to_the_state_the_standard_names(action: Action, state: State) -> None:
    expected = "Sta13" if action is Action.AE_6_REJECT else NEXT[standard_action(action)]
    assert standard_name(state) == expected


def test_whatever_a_peer_does_has_an_answer_in_every_state_it_can_meet() -> None:
    met = set(State) - {State.STA1}
    assert {pair for pair in product(met, CAUSED_BY_A_PEER) if pair not in TRANSITIONS} == set()


def test_every_state_can_be_reached_and_left_until_idle() -> None:
    def reachable(start: State) -> set[State]:
        found, new = {start}, {start}
        while new:
            new = {target for (state, _), (_, target) in TRANSITIONS.items() if state in new} - found
            found |= new
        return found

    assert reachable(State.STA1) == set(State)
    assert all(State.STA1 in reachable(state) for state in State)


def test_no_peer_can_reach_the_established_state_without_our_acceptance() -> None:
    into = {
        key for key, (_, target) in TRANSITIONS.items() if target is State.STA6 and key[0] is not State.STA6
    }
    assert into == {(State.STA3, Event.ACCEPT)}
