"""What the parts of the control plane have in common."""

from typing import TYPE_CHECKING, NoReturn

from google.protobuf.message import Message
from grpclib import GRPCError, Status

from modal_server.records import Container

if TYPE_CHECKING:
    from modal_server.server import Server


Asker = Container | None  # None: a client
Answer = Message | None  # None: an empty one


class Service:
    """A part of the control plane: its methods rpc_NAME answer the procedure NAME of Modal's protocol.

    Each gets the request, and who asks. Those that only containers ask have no check of that.
    """

    def __init__(self, server: "Server") -> None:
        self.server = server
        self.journal = server.journal

    @staticmethod
    def refuse(status: str, message: str) -> NoReturn:
        """Answers with an error."""
        raise GRPCError(Status[status], message)
