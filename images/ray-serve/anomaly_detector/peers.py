"""The other replicas: what each of them has is asked of all, so that one answer tells of the whole deployment.

Where they are stands in the configuration of the node's HAProxy, which Ray Serve keeps up to date: it has every
replica of every node with its name and address.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from pathlib import Path

import httpx

_SERVER = re.compile(r"^ *server SERVE_REPLICA\S*-(\w+) (\S+) check\b", re.MULTILINE)
_TIMEOUT = httpx.Timeout(3.0, connect=1.0)


@dataclass(frozen=True)
class Answers:
    """What the other replicas answered.

    Attributes:
        bodies: by replica.
        unreachable: the replicas that did not answer, or with an error.
    """

    bodies: dict[str, bytes] = field(default_factory=dict)
    unreachable: list[str] = field(default_factory=list)


class Peers:
    """The replicas of the deployment but this one.

    Args:
        own: the name of this replica.
        configuration: file of the node's HAProxy; without it there are no others.
        entrance: base URL of the node's HAProxy, which gives a request to the replica that its series belongs to.
        transport: of the HTTP client; only tests need another than the network.
    """

    def __init__(
        self,
        own: str,
        configuration: Path,
        entrance: str,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.own = own
        self._configuration = configuration
        self._entrance = entrance
        self._client = httpx.AsyncClient(timeout=_TIMEOUT, transport=transport, trust_env=False)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def addresses(self) -> dict[str, str]:
        """Host and port of each other replica by its name."""
        return {name: address for name, address in self._replicas().items() if name != self.own}

    def joined(self) -> bool:
        """Whether HAProxy gives this replica requests."""
        return self.own in self._replicas()

    def _replicas(self) -> dict[str, str]:
        try:
            text = self._configuration.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        return dict(_SERVER.findall(text))

    async def ask(self, path: str, method: str = "GET") -> Answers:
        """Send the same request to all others at once; it takes 3 s at most."""
        addresses = self.addresses()
        answers = Answers()
        for name, body in zip(
            addresses,
            await asyncio.gather(*(self._body(method, f"http://{address}{path}") for address in addresses.values())),
            strict=True,
        ):
            if body is None:
                answers.unreachable.append(name)
            else:
                answers.bodies[name] = body
        return answers

    async def at_home(self, path: str, method: str) -> httpx.Response | None:
        """The answer of the replica that the series in a path belongs to; None while that cannot be had."""
        if not self.addresses():
            return None
        try:
            return await self._client.request(method, self._entrance + path)
        except httpx.HTTPError:
            return None

    async def _body(self, method: str, url: str) -> bytes | None:
        """The body of an answer, None for no answer or an error."""
        try:
            return (await self._client.request(method, url)).raise_for_status().content
        except httpx.HTTPError:
            return None
