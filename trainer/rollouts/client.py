"""One blended server over HTTP: rollouts, its state, and weight updates.

Every failure is one of four kinds, because each is met differently: the server is `Unreachable` (wait, send the same
again), it `Refused` the request for good, it `TookTooLong` (cancel, send again, a few times), or it is `Faulty` (prove
that it is what it should be, send again, a few times).
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import orjson

from trainer.errors import TrainerError

PROBE_SECONDS = 5.0
"""A server that does not answer a look at its state within this is taken for dead."""

FLUSH_SECONDS = 60

IDLE_SECONDS = 2.0
"""An idle connection is used again within this only. SGLang closes it after 5 s, which is not seen between two steps:
the event loop stands still while the student trains."""

NOT_NOW = (408, 409, 429, 503)


class Unreachable(TrainerError, ConnectionError):
    """No server there, or one that cannot do it now (HTTP 408, 409, 429, 503)."""


class Faulty(TrainerError, RuntimeError):
    """The server fell over this request (HTTP 5xx), or answered what no blended server answers."""


class Refused(TrainerError, ValueError):
    """The server says that this request is wrong (HTTP 4xx); sending it again would not help."""


class TookTooLong(TrainerError, TimeoutError):
    """No answer in time; the server was told to drop the request."""


class TrbClient:
    """A server's routes. Make one `aiohttp.ClientSession` for all servers, with `session`."""

    def __init__(self, url: str, http: aiohttp.ClientSession, admin_key: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._http = http
        self._admin = {"Authorization": f"Bearer {admin_key}"} if admin_key else {}

    async def generate(self, body: dict[str, Any], timeout_s: float) -> Any:
        """``/generate``; the answer as parsed JSON, unchecked."""
        return await self._request("POST", "/generate", body, timeout_s)

    async def info(self) -> dict[str, Any]:
        """``/trb/info``: models, versions, stop ids, whether it refuses."""
        return await self._request("GET", "/trb/info", None, PROBE_SECONDS)

    async def post(self, route: str, body: dict[str, Any], timeout_s: float) -> Any:
        """An admin route, with the admin key."""
        return await self._request("POST", route, body, timeout_s)

    async def flush_cache(self) -> None:
        """Forget all prefixes, once the requests under way are done."""
        await self._bytes("POST", f"/flush_cache?timeout={FLUSH_SECONDS}", {}, FLUSH_SECONDS + PROBE_SECONDS)

    async def _request(self, method: str, route: str, body: dict[str, Any] | None, timeout_s: float) -> Any:
        raw = await self._bytes(method, route, body, timeout_s)
        try:
            return orjson.loads(raw)
        except orjson.JSONDecodeError:
            raise Faulty(f"{self.url}{route} answered something that is not JSON: {_abridged(raw)}") from None

    async def _bytes(self, method: str, route: str, body: dict[str, Any] | None, timeout_s: float) -> bytes:
        data = None if body is None else orjson.dumps(body)
        headers = {"Content-Type": "application/json", **self._admin}
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._http.request(method, self.url + route, data=data, headers=headers) as response,
            ):
                raw = await response.read()
        except TimeoutError:
            raise TookTooLong(f"{self.url}{route} gave no answer within {timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"{self.url} is not answering: {error or type(error).__name__}") from None
        if response.status in NOT_NOW:
            raise Unreachable(f"{self.url}{route} answered {response.status}: {_abridged(raw)}")
        if response.status >= 500:
            raise Faulty(f"{self.url}{route} answered {response.status}: {_abridged(raw)}")
        if response.status != 200:
            raise Refused(f"{self.url}{route} answered {response.status}: {_abridged(raw)}")
        return raw


def session() -> aiohttp.ClientSession:
    """A session without limits of its own: how many requests are under way is the collector's choice."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None), trust_env=False)


def _abridged(raw: bytes, limit: int = 500) -> str:
    text = raw.decode("utf-8", errors="replace")
    return text if len(text) <= limit else text[:limit] + "…"
