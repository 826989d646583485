"""The life of a server: the model loaded, the port opened, requests answered, and on SIGTERM or Ctrl-C those in flight finished."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

from axformer_onnx.errors import RuntimeFailure
from axformer_onnx.inputs import locate
from axformer_onnx.options import ServeOptions

_GRACE_SECONDS = 30
"""For requests in flight when the server is told to stop."""
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclasses.dataclass(frozen=True)
class Started:
    """A server that answers. notes: what whoever started it must know."""

    url: str
    name: str
    about: str
    notes: tuple[str, ...]


def serve(
    options: ServeOptions,
    started: Callable[[Started], None] = lambda started: None,
    step: Callable[[str], None] = lambda text: None,
) -> None:
    """Answer requests until told to stop; `started` is called once when the port is open.

    Raises: RuntimeFailure without the extra [serve], or where the port is in use; what loading a model raises.
    """
    application, uvicorn = _extra()
    located = locate(options.model, None, None, step)
    with contextlib.closing(_socket(options.host, options.port)) as bound:
        server = _loaded(options, located.path, application)
        config = uvicorn.Config(
            application.application(server), log_level="warning", access_log=False, lifespan="on",
            timeout_graceful_shutdown=_GRACE_SECONDS, server_header=False, ws="none",
        )  # fmt: skip
        running = uvicorn.Server(config)
        started_once = running.startup

        async def startup(sockets: Any = None) -> None:
            await started_once(sockets)
            bound_to = _url(options.host, bound.getsockname()[1])
            notes = (*located.notes, *server.answerer.warnings, *_exposed(options.host))
            started(Started(bound_to, server.answerer.name, _about(server), notes))

        running.startup = startup
        _run(running, bound)


def _run(running: Any, bound: socket.socket) -> None:
    """Until it is told to stop; in a thread of its own where an event loop runs here already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        with _signals_that_end_well():
            running.run(sockets=[bound])
        return
    thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.2)  # without a time, an interrupt that comes to another thread would not be seen
    except KeyboardInterrupt:
        running.should_exit = True
        thread.join()


def _extra() -> tuple[Any, Any]:
    """(our application, uvicorn). Raises: RuntimeFailure."""
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise RuntimeFailure(f"serve needs an extra: pip install 'axformer-onnx[serve]' ({error})") from None
    from axformer_onnx.serving import application

    return application, uvicorn


def _loaded(options: ServeOptions, path: Any, application: Any) -> Any:
    """What the routes work with."""
    from axformer_onnx.serving.answering import Answerer
    from axformer_onnx.serving.batching import policy_of

    answerer = Answerer.of(options, path)
    most_bytes = int(options.max_body * 2**20)
    return application.Server(
        answerer, policy_of(options, answerer.reading.encoder), most_bytes, version("axformer-onnx")
    )


def _socket(host: str, port: int) -> socket.socket:
    """A socket bound there. Raises: RuntimeFailure."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, number)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError as error:
        raise RuntimeFailure(f"--host {host}: {error.strerror}; give an address of this machine") from None
    try:
        bound.bind(address)
        bound.listen(2048)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise RuntimeFailure(f"{host}:{port}: the port is in use; give another with --port, 0 for any") from None
        raise RuntimeFailure(
            f"{host}:{port}: cannot be opened: {error.strerror}; give others, --host, --port"
        ) from None
    return bound


@contextlib.contextmanager
def _signals_that_end_well() -> Iterator[None]:
    """uvicorn hands the signal that stopped it on to whoever had it before; for a server, being stopped is no failure."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.signal(one, lambda *_: None) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _about(server: Any) -> str:
    """What it answers, in words."""
    answerer = server.answerer
    labels = (
        f" ({', '.join(answerer.labels[:6])}{', ..' if len(answerer.labels) > 6 else ''})" if answerer.labels else ""
    )
    kind = answerer.reading.task.kind.name
    return f"{kind}{labels}, up to {answerer.reading.encoder.max_length} tokens, batches of up to {server.policy.rows}"


def _exposed(host: str) -> tuple[str, ...]:
    if host in _LOOPBACK:
        return ()
    return (f"whoever reaches {host} may ask: there is no authentication and no encryption; put a proxy before it",)
