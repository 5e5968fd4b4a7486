"""How we call another node: its address, and the TLS that its `[[peer]]` asks for."""

from dicom.requestor import Destination
from edge.options import Peer, Settings
from edge.tls import client_context


def destination_of(peer: Peer, settings: Settings) -> Destination:
    """`peer` as a destination.

    Raises:
        TlsFileError: it is called by TLS, and a file of `[tls]` cannot be used.
    """
    return Destination(
        peer.name,
        peer.ae_title,
        peer.host,
        peer.port,
        tls=client_context(settings.tls) if peer.tls else None,
        tls_name=peer.tls_name,
    )
