"""The object store: an S3 bucket on asyncio."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from obstore.exceptions import BaseError
from obstore.store import S3Store

from anomaly_detection.errors import DependencyUnavailableError
from anomaly_detection.settings import ObjectStoreSettings

NAME = "object-store"
"""Its name on the health routes and in errors."""

_CHECK_SECONDS = 2.0
_CHECK_KEY = "health-check"


class ObjectNotFoundError(KeyError):
    """There is no object under this key."""


class ObjectStore:
    """One bucket of the object store.

    Args:
        settings: endpoint, bucket and credentials.
    """

    def __init__(self, settings: ObjectStoreSettings) -> None:
        self._store = S3Store(
            settings.bucket,
            endpoint=settings.endpoint_url,
            region=settings.region,
            access_key_id=settings.access_key_id.get_secret_value(),
            secret_access_key=settings.secret_access_key.get_secret_value(),
            client_options={
                "allow_http": settings.endpoint_url.startswith("http://"),
                "connect_timeout": timedelta(seconds=2),
                "timeout": timedelta(seconds=8),
            },
            # One quick retry hides a broken idle connection; a longer outage is the caller's to handle.
            retry_config={"max_retries": 1, "retry_timeout": timedelta(seconds=5)},
        )

    async def get(self, key: str) -> bytes:
        """Read an object.

        Raises:
            ObjectNotFoundError: there is none under this key.
            DependencyUnavailableError: the store does not answer or refuses access.
        """
        try:
            return bytes(await (await self._store.get_async(key)).bytes_async())
        except FileNotFoundError as error:
            raise ObjectNotFoundError(key) from error
        except (BaseError, OSError) as error:
            raise DependencyUnavailableError(NAME) from error

    async def put(self, key: str, blob: bytes) -> None:
        """Write an object, replacing one under the same key.

        Raises:
            DependencyUnavailableError: the store does not answer or refuses access.
        """
        try:
            await self._store.put_async(key, blob)
        except (BaseError, OSError) as error:
            raise DependencyUnavailableError(NAME) from error

    async def check(self) -> None:
        """Return if the store answers and takes the credentials.

        Raises:
            DependencyUnavailableError: it does not, within 2 s.
        """
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                await self._store.head_async(_CHECK_KEY)
        except FileNotFoundError:
            return  # the answer of a healthy store: nobody writes this key
        except (BaseError, OSError) as error:  # OSError covers TimeoutError
            raise DependencyUnavailableError(NAME) from error
