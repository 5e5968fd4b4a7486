"""The states of an association, as PS3.8 §9.2 tables them for an acceptor. No IO.

The table is Table 9-10 with the states that an acceptor can be in which never requests a
release and never opens a transport connection: Sta4, Sta5, Sta7 and Sta9 to Sta12 cannot
be reached without the events Evt1, Evt2 and Evt11, and are left out with them. An acceptor
ends an association by waiting for its release, or by A-ABORT.

`AE-6` has two outcomes in the Standard; here they are two events, decided by the caller:
an A-ASSOCIATE-RQ that the service-provider can accept, and one that it cannot.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from dicom.pdu import PduType


class State(StrEnum):
    """PS3.8 Tables 9-1 to 9-5."""

    STA1 = "Sta1: idle"
    STA2 = "Sta2: transport connection open, awaiting A-ASSOCIATE-RQ"
    STA3 = "Sta3: awaiting local A-ASSOCIATE response"
    STA6 = "Sta6: association established, ready for data transfer"
    STA8 = "Sta8: awaiting local A-RELEASE response"
    STA13 = "Sta13: awaiting transport connection close"


class Event(StrEnum):
    """The rows of PS3.8 Table 9-10."""

    A_ASSOCIATE_AC = "Evt3: A-ASSOCIATE-AC received"
    A_ASSOCIATE_RJ = "Evt4: A-ASSOCIATE-RJ received"
    TRANSPORT_INDICATION = "Evt5: transport connection indication"
    A_ASSOCIATE_RQ = "Evt6: A-ASSOCIATE-RQ received, acceptable by the service-provider"
    A_ASSOCIATE_RQ_UNACCEPTABLE = "Evt6: A-ASSOCIATE-RQ received, not acceptable by the service-provider"
    ACCEPT = "Evt7: A-ASSOCIATE response (accept)"
    REJECT = "Evt8: A-ASSOCIATE response (reject)"
    P_DATA_REQUEST = "Evt9: P-DATA request"
    P_DATA_TF = "Evt10: P-DATA-TF received"
    A_RELEASE_RQ = "Evt12: A-RELEASE-RQ received"
    A_RELEASE_RP = "Evt13: A-RELEASE-RP received"
    RELEASE_RESPONSE = "Evt14: A-RELEASE response"
    ABORT_REQUEST = "Evt15: A-ABORT request"
    A_ABORT = "Evt16: A-ABORT received"
    TRANSPORT_CLOSED = "Evt17: transport connection closed"
    ARTIM_EXPIRED = "Evt18: ARTIM timer expired"
    INVALID_PDU = "Evt19: unrecognized or invalid PDU received"


class Action(StrEnum):
    """PS3.8 Tables 9-6 to 9-9."""

    AE_5 = "issue transport connection response; start ARTIM"
    AE_6 = "stop ARTIM; issue A-ASSOCIATE indication"
    AE_6_REJECT = "stop ARTIM; send A-ASSOCIATE-RJ; start ARTIM"
    AE_7 = "send A-ASSOCIATE-AC"
    AE_8 = "send A-ASSOCIATE-RJ; start ARTIM"
    DT_1 = "send P-DATA-TF"
    DT_2 = "issue P-DATA indication"
    AR_2 = "issue A-RELEASE indication"
    AR_4 = "send A-RELEASE-RP; start ARTIM"
    AR_5 = "stop ARTIM"
    AR_7 = "send P-DATA-TF while a release is awaited"
    AA_1 = "send A-ABORT (service-user); start ARTIM"
    AA_2 = "stop ARTIM; close transport connection"
    AA_3 = "issue A-ABORT indication; close transport connection"
    AA_4 = "issue A-P-ABORT indication"
    AA_5 = "stop ARTIM (the connection closed before an association)"
    AA_6 = "ignore the PDU"
    AA_7 = "send A-ABORT"
    AA_8 = "send A-ABORT (service-provider); issue A-P-ABORT indication; start ARTIM"


EVENT_OF: Final[Mapping[PduType, Event]] = MappingProxyType(
    {
        PduType.A_ASSOCIATE_AC: Event.A_ASSOCIATE_AC,
        PduType.A_ASSOCIATE_RJ: Event.A_ASSOCIATE_RJ,
        PduType.A_ASSOCIATE_RQ: Event.A_ASSOCIATE_RQ,
        PduType.P_DATA_TF: Event.P_DATA_TF,
        PduType.A_RELEASE_RQ: Event.A_RELEASE_RQ,
        PduType.A_RELEASE_RP: Event.A_RELEASE_RP,
        PduType.A_ABORT: Event.A_ABORT,
    }
)
"""What the receipt of a PDU is."""

_S: Final = State
_E: Final = Event
_A: Final = Action

TRANSITIONS: Final[Mapping[tuple[State, Event], tuple[Action, State]]] = MappingProxyType(
    {
        (_S.STA1, _E.TRANSPORT_INDICATION): (_A.AE_5, _S.STA2),
        # no association yet: whatever is not a proposal ends it
        (_S.STA2, _E.A_ASSOCIATE_AC): (_A.AA_1, _S.STA13),
        (_S.STA2, _E.A_ASSOCIATE_RJ): (_A.AA_1, _S.STA13),
        (_S.STA2, _E.A_ASSOCIATE_RQ): (_A.AE_6, _S.STA3),
        (_S.STA2, _E.A_ASSOCIATE_RQ_UNACCEPTABLE): (_A.AE_6_REJECT, _S.STA13),
        (_S.STA2, _E.P_DATA_TF): (_A.AA_1, _S.STA13),
        (_S.STA2, _E.A_RELEASE_RQ): (_A.AA_1, _S.STA13),
        (_S.STA2, _E.A_RELEASE_RP): (_A.AA_1, _S.STA13),
        (_S.STA2, _E.A_ABORT): (_A.AA_2, _S.STA1),
        (_S.STA2, _E.TRANSPORT_CLOSED): (_A.AA_5, _S.STA1),
        (_S.STA2, _E.ARTIM_EXPIRED): (_A.AA_2, _S.STA1),
        (_S.STA2, _E.INVALID_PDU): (_A.AA_1, _S.STA13),
        # proposal is being decided on
        (_S.STA3, _E.A_ASSOCIATE_AC): (_A.AA_8, _S.STA13),
        (_S.STA3, _E.A_ASSOCIATE_RJ): (_A.AA_8, _S.STA13),
        (_S.STA3, _E.A_ASSOCIATE_RQ): (_A.AA_8, _S.STA13),
        (_S.STA3, _E.A_ASSOCIATE_RQ_UNACCEPTABLE): (_A.AA_8, _S.STA13),
        (_S.STA3, _E.ACCEPT): (_A.AE_7, _S.STA6),
        (_S.STA3, _E.REJECT): (_A.AE_8, _S.STA13),
        (_S.STA3, _E.P_DATA_TF): (_A.AA_8, _S.STA13),
        (_S.STA3, _E.A_RELEASE_RQ): (_A.AA_8, _S.STA13),
        (_S.STA3, _E.A_RELEASE_RP): (_A.AA_8, _S.STA13),
        (_S.STA3, _E.ABORT_REQUEST): (_A.AA_1, _S.STA13),
        (_S.STA3, _E.A_ABORT): (_A.AA_3, _S.STA1),
        (_S.STA3, _E.TRANSPORT_CLOSED): (_A.AA_4, _S.STA1),
        (_S.STA3, _E.INVALID_PDU): (_A.AA_8, _S.STA13),
        # established
        (_S.STA6, _E.A_ASSOCIATE_AC): (_A.AA_8, _S.STA13),
        (_S.STA6, _E.A_ASSOCIATE_RJ): (_A.AA_8, _S.STA13),
        (_S.STA6, _E.A_ASSOCIATE_RQ): (_A.AA_8, _S.STA13),
        (_S.STA6, _E.A_ASSOCIATE_RQ_UNACCEPTABLE): (_A.AA_8, _S.STA13),
        (_S.STA6, _E.P_DATA_REQUEST): (_A.DT_1, _S.STA6),
        (_S.STA6, _E.P_DATA_TF): (_A.DT_2, _S.STA6),
        (_S.STA6, _E.A_RELEASE_RQ): (_A.AR_2, _S.STA8),
        (_S.STA6, _E.A_RELEASE_RP): (_A.AA_8, _S.STA13),
        (_S.STA6, _E.ABORT_REQUEST): (_A.AA_1, _S.STA13),
        (_S.STA6, _E.A_ABORT): (_A.AA_3, _S.STA1),
        (_S.STA6, _E.TRANSPORT_CLOSED): (_A.AA_4, _S.STA1),
        (_S.STA6, _E.INVALID_PDU): (_A.AA_8, _S.STA13),
        # release is being answered
        (_S.STA8, _E.A_ASSOCIATE_AC): (_A.AA_8, _S.STA13),
        (_S.STA8, _E.A_ASSOCIATE_RJ): (_A.AA_8, _S.STA13),
        (_S.STA8, _E.A_ASSOCIATE_RQ): (_A.AA_8, _S.STA13),
        (_S.STA8, _E.A_ASSOCIATE_RQ_UNACCEPTABLE): (_A.AA_8, _S.STA13),
        (_S.STA8, _E.P_DATA_REQUEST): (_A.AR_7, _S.STA8),
        (_S.STA8, _E.P_DATA_TF): (_A.AA_8, _S.STA13),
        (_S.STA8, _E.A_RELEASE_RQ): (_A.AA_8, _S.STA13),
        (_S.STA8, _E.A_RELEASE_RP): (_A.AA_8, _S.STA13),
        (_S.STA8, _E.RELEASE_RESPONSE): (_A.AR_4, _S.STA13),
        (_S.STA8, _E.ABORT_REQUEST): (_A.AA_1, _S.STA13),
        (_S.STA8, _E.A_ABORT): (_A.AA_3, _S.STA1),
        (_S.STA8, _E.TRANSPORT_CLOSED): (_A.AA_4, _S.STA1),
        (_S.STA8, _E.INVALID_PDU): (_A.AA_8, _S.STA13),
        # over: wait until the peer closes, or ARTIM
        (_S.STA13, _E.A_ASSOCIATE_AC): (_A.AA_6, _S.STA13),
        (_S.STA13, _E.A_ASSOCIATE_RJ): (_A.AA_6, _S.STA13),
        (_S.STA13, _E.A_ASSOCIATE_RQ): (_A.AA_7, _S.STA13),
        (_S.STA13, _E.A_ASSOCIATE_RQ_UNACCEPTABLE): (_A.AA_7, _S.STA13),
        (_S.STA13, _E.P_DATA_TF): (_A.AA_6, _S.STA13),
        (_S.STA13, _E.A_RELEASE_RQ): (_A.AA_6, _S.STA13),
        (_S.STA13, _E.A_RELEASE_RP): (_A.AA_6, _S.STA13),
        (_S.STA13, _E.A_ABORT): (_A.AA_2, _S.STA1),
        (_S.STA13, _E.TRANSPORT_CLOSED): (_A.AR_5, _S.STA1),
        (_S.STA13, _E.ARTIM_EXPIRED): (_A.AA_2, _S.STA1),
        (_S.STA13, _E.INVALID_PDU): (_A.AA_7, _S.STA13),
    }
)
"""(state, event) → (action, next state). A pair that is not here is a blank cell of Table 9-10."""


class StateMachine:
    """The state of one association; events go in, the action to take comes out."""

    def __init__(self) -> None:
        self.state = State.STA1

    def on(self, event: Event) -> Action:
        """Take `event`: move to the next state and say what must be done.

        Raises:
            RuntimeError: the Standard does not foresee this event in this state. No peer can
                cause it: all that a peer can do has a cell in every state it can meet.
        """
        try:
            action, self.state = TRANSITIONS[self.state, event]
        except KeyError:
            raise RuntimeError(f"association in {self.state}: {event} cannot happen here") from None
        return action
