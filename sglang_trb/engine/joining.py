"""How long a blending server waits for the peers of a distributed update; it serves nobody while its scheduler does."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import threading

from torch.distributed import TCPStore

from sglang_trb.errors import InvalidParameter

JOIN_VARIABLE = "TRB_JOIN_SECONDS"
JOIN_SECONDS = 15.0
"""For all peers of a new process group to answer."""

BROADCAST_SECONDS = 300.0
"""For a part of an update to come; requests are refused in its session anyway."""


def join_seconds() -> float:
    """The limit, from the environment or `JOIN_SECONDS`.

    Raises:
        InvalidParameter: it is no number of seconds.
    """
    text = os.environ.get(JOIN_VARIABLE) or str(JOIN_SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 86400:
        raise InvalidParameter(JOIN_VARIABLE, text, "a number of seconds, at most a day")
    return seconds


async def unreachable(address: str, port: int) -> str | None:
    """Why nobody listens there, or None as soon as somebody does. Requests go on while it waits."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(join_seconds()):
            while True:
                with contextlib.suppress(OSError, OverflowError, UnicodeError):  # the last two: no such port or host
                    _, writer = await asyncio.open_connection(address, port)
                    writer.close()
                    return None
                await asyncio.sleep(0.2)
    return f"nobody answered at {address}:{port} within {join_seconds():.0f} s ({JOIN_VARIABLE})"


def connected_store(address: str, port: int, world_size: int, limit: datetime.timedelta) -> TCPStore:
    """The store through which the members of a process group find each other.

    torch's own limit does not bound a peer that accepts the connection and then says nothing; so a thread waits for it,
    which is left behind when the time is over.

    Raises:
        InvalidParameter: the peer did not answer in time.
    """
    stores: list[TCPStore] = []

    def connect() -> None:
        with contextlib.suppress(RuntimeError):  # how torch says that it could not
            stores.append(TCPStore(address, port, world_size, is_master=False, timeout=limit))

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(limit.total_seconds())
    if not stores:
        allowed = f"a peer that answers within {limit.total_seconds():.0f} s ({JOIN_VARIABLE})"
        raise InvalidParameter("master_address, master_port", f"{address}:{port}", allowed)
    return stores[0]
