"""Secrets with random values, made once: what exists is never changed, and no value is ever printed."""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from ads_tools.console import Failure, say, setting
from ads_tools.waiting import NotYetError, wait_until

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_SERVER_SECONDS = 120.0
_MANAGED_BY = {"app.kubernetes.io/managed-by": "ads-tools"}


@dataclass(frozen=True)
class KeySpec:
    """One key of a Secret: a literal value, or the number of random characters."""

    length: int = 0
    value: str | None = None

    def make(self) -> str:
        """The value: the literal, or `length` hexadecimal digits, which need no quoting in any URL, shell or file."""
        return self.value if self.value is not None else secrets.token_hex((self.length + 1) // 2)[: self.length]


@dataclass(frozen=True)
class SecretSpec:
    """A Secret that must exist with these keys."""

    name: str
    keys: Mapping[str, KeySpec]
    labels: Mapping[str, str]


def read_specification(text: str) -> list[SecretSpec]:
    """Read the list of `{"name", "keys": {key: {"length": n} | {"value": "…"}}, "labels"}`.

    Raises:
        Failure: it has another form.
    """
    try:
        items = json.loads(text)
        if not isinstance(items, list):
            raise TypeError("not a list")
        return [
            SecretSpec(
                name=item["name"],
                keys={key: _key_spec(spec) for key, spec in item["keys"].items()},
                labels=dict(item.get("labels") or {}),
            )
            for item in items
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Failure(f"the specification of the Secrets cannot be read: {error!r}") from error


def _key_spec(spec: Mapping[str, Any]) -> KeySpec:
    key = KeySpec(**spec)
    if key.value is None and key.length < 16:
        raise ValueError("a random value needs a length of at least 16")
    return key


class Secrets:
    """The Secrets of one namespace.

    Args:
        client: of the Kubernetes API, with its address and token.
        namespace: where the Secrets are.
    """

    def __init__(self, client: httpx.Client, namespace: str) -> None:
        self._client = client
        self._namespace = namespace

    def ensure(self, spec: SecretSpec) -> str:
        """Make what is missing of a Secret; returns what was done, for people.

        Another run may do the same at the same time: who comes second finds what the first made and leaves it.

        Raises:
            Failure: the API server refuses.
        """
        return wait_until(f"Secret {spec.name}", lambda: self._ensure(spec), seconds=_SERVER_SECONDS)

    def _ensure(self, spec: SecretSpec) -> str:
        found = self._request("GET", spec.name)
        if found is None:
            made = {key: _encode(key_spec.make()) for key, key_spec in spec.keys.items()}
            self._request(
                "POST",
                "",
                {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": {"name": spec.name, "labels": {**_MANAGED_BY, **spec.labels}},
                    "type": "Opaque",
                    "data": made,
                },
            )
            return f"created with {', '.join(spec.keys)}"
        missing = [key for key in spec.keys if key not in (found.get("data") or {})]
        if not missing:
            return "exists, unchanged"
        self._request(
            "PATCH",
            spec.name,
            {
                # Refused with 409 if anybody changed the Secret since it was read: no key is ever overwritten.
                "metadata": {"resourceVersion": found["metadata"]["resourceVersion"]},
                "data": {key: _encode(spec.keys[key].make()) for key in missing},
            },
        )
        return f"exists, added {', '.join(missing)}"

    def _request(self, method: str, name: str, body: Any = None) -> dict[str, Any] | None:
        """An answer of the API server; None for a Secret that is not there."""
        path = f"/api/v1/namespaces/{self._namespace}/secrets" + (f"/{name}" if name else "")
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        content = None if body is None else json.dumps(body)
        try:
            response = self._client.request(method, path, content=content, headers={"Content-Type": kind})
        except httpx.TransportError as error:
            raise NotYetError(f"the API server does not answer ({error!r})") from error
        if response.status_code == 404 and method == "GET":
            return None
        if response.status_code == 409:
            raise NotYetError("somebody else is changing it")
        if response.status_code in (429, 500, 502, 503, 504):
            raise NotYetError(f"the API server answers {response.status_code}")
        if response.status_code == 403 and method == "PATCH":
            raise Failure(
                f"Secret {name} exists without {', '.join(body['data'])}, and this Job may not add to it: "
                f"add the missing keys yourself, or give the Job the right to patch it"
            )
        if response.is_error:
            raise Failure(f"the API server refuses {method} {path}: {response.status_code} {_message(response)}")
        answer: dict[str, Any] = response.json()
        return answer


def _message(response: httpx.Response) -> str:
    """The reason in an answer of the API server, which repeats no values."""
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        return response.reason_phrase


def _encode(value: str) -> str:
    return base64.b64encode(value.encode()).decode()


def main() -> None:
    """Make the Secrets of the specification file that `SECRETS_SPEC` names, in the namespace `NAMESPACE`.

    Raises:
        Failure: a setting is missing, or the API server refuses.
    """
    try:
        specification = read_specification(Path(setting("SECRETS_SPEC")).read_text())
        token = (_ACCOUNT / "token").read_text()
    except OSError as error:
        raise Failure(f"a file of the pod cannot be read: {error}") from error
    host, port = setting("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT_HTTPS", "443")
    address = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    tls = httpx.create_ssl_context(verify=str(_ACCOUNT / "ca.crt"))
    # trust_env off: a proxy of the company is never the way to the API server.
    with httpx.Client(
        base_url=address, headers={"Authorization": f"Bearer {token}"}, verify=tls, trust_env=False, timeout=10
    ) as client:
        existing = Secrets(client, setting("NAMESPACE"))
        for spec in specification:
            say(f"Secret {spec.name}: {existing.ensure(spec)}")
