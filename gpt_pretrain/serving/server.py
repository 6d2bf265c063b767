"""The HTTP server, which runs until it is interrupted."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import uvicorn
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from gpt_pretrain.errors import UserError
from gpt_pretrain.serving.app import build_app
from gpt_pretrain.serving.engine import Engine
from gpt_pretrain.serving.guards import LOOPBACK, Guards, host_name
from gpt_pretrain.serving.page import ModelFacts

HEADER_SECONDS = 20.0  # time for the headers of a request to arrive
READING_SECONDS = 120.0  # time for a client to receive what has been sent so far
# Time between two requests. Clients keep connections for 15 s (aiohttp) to 60 s (nginx), and should be the first to close them.
IDLE_SECONDS = 75
MAX_CONNECTIONS = 512
CLOSING_SECONDS = 5  # time for answers that are on their way when the server ends


@dataclass(frozen=True)
class Address:
    """The address at which the server listens, and the rules for its clients.

    Args:
        host: Name or address of an interface of this machine.
        port: Port; 0 takes any free one.
        api_key: Secret that clients must send; None requires none.
        cors: Origins of other pages that may use the server.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    cors: Sequence[str] = ()

    @property
    def is_local(self) -> bool:
        """True if only this machine can reach it."""
        return self.host in LOOPBACK


class PatientlessProtocol(H11Protocol):
    """Closes a connection whose client is too slow to send its headers or receive its answer, or if others need the room.

    uvicorn 0.54 itself only closes connections on which nothing has arrived since the last answer.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._began = self.loop.time()
        self._headers_due: asyncio.TimerHandle | None = self.loop.call_later(HEADER_SECONDS, transport.close)
        self._reading_due: asyncio.TimerHandle | None = None
        if len(self.connections) > MAX_CONNECTIONS:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering and self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None
        elif not is_answering and self._headers_due is None:
            self._headers_due = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading_due = self.loop.call_later(READING_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reading_due is not None:
            self._reading_due.cancel()

    def _make_room(self) -> None:
        """Close the oldest connection that waits for its client."""
        others = [one for one in self.connections if isinstance(one, PatientlessProtocol) and one is not self]
        waiting = [one for one in others if one._waits_for_client and not one.transport.is_closing()]
        if waiting:
            min(waiting, key=lambda one: one._began).transport.abort()

    @property
    def _waits_for_client(self) -> bool:
        """True if the client has yet to send its request, or to receive its answer."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body or self.flow.write_paused

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._headers_due, self._reading_due):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)


class InterruptibleServer(uvicorn.Server):
    """A server that reports when it listens. When it is interrupted, it ends the engine first."""

    def __init__(self, config: uvicorn.Config, engine: Engine, *, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._engine, self._ready = engine, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.to_thread(self._engine.stop)
        asyncio.get_running_loop().call_later(CLOSING_SECONDS, self._abort_connections)
        await super().shutdown(sockets)

    def _abort_connections(self) -> None:
        """End the connections of clients that do not receive their answers."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def guarded_app(engine: Engine, address: Address, facts: Mapping[str, ModelFacts]) -> ASGIApp:
    """Return the application behind its checks."""
    # A proxy may pass on the host name that the browser used.
    proxies = [host_name(origin.partition("://")[2]) for origin in address.cors]
    hosts = (*LOOPBACK, address.host, *filter(None, proxies)) if address.is_local else None
    app: ASGIApp = Guards(build_app(engine, facts), hosts=hosts, api_key=address.api_key, origins=address.cors)
    if address.cors:  # This is outside of the checks, so that pages of these origins can read their messages.
        app = CORSMiddleware(app, allow_origins=list(address.cors), allow_methods=["GET", "POST"], allow_headers=["*"])
    return app


def server_config(app: ASGIApp) -> uvicorn.Config:
    """Return uvicorn's settings for an application."""
    return uvicorn.Config(
        app,
        http=PatientlessProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS + 1,  # the last limit, if no connection can be closed
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=CLOSING_SECONDS + 5,  # for tasks that outlive their connections
    )


def open_socket(address: Address) -> socket.socket:
    """Listen at an address.

    Raises:
        UserError: If it is taken, or this machine has no such address.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind, protocol)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(where)
        opened.listen()  # From now on, a second server finds the port taken, even while the models are still loading.
    except (OSError, UnicodeError) as error:  # A name that no host can have raises a UnicodeError.
        reason = getattr(error, "strerror", None) or "there is no such host"
        is_port = getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES)
        remedy = "another port, such as port=8001, or port=0 for any free one"
        raise UserError(
            f"host={address.host} port={address.port}: the server cannot listen there ({reason}). Choose "
            f"{remedy if is_port else 'host=127.0.0.1, this machine itself'}."
        ) from error
    return opened


def run_server(
    engine: Engine,
    address: Address,
    opened: socket.socket,
    *,
    facts: Mapping[str, ModelFacts],
    ready: Callable[[], None],
) -> None:
    """Answer requests until the process is interrupted.

    Args:
        facts: Facts about the models, by name.
        ready: Called when the server listens.
    """
    engine.start()
    config = server_config(guarded_app(engine, address, facts))
    InterruptibleServer(config, engine, ready=ready).run(sockets=[opened])
