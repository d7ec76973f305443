"""PostgreSQL: a connection pool on asyncio, and the migrations of the schema."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from anomaly_detection.errors import DependencyUnavailableError
from anomaly_detection.settings import DatabaseSettings

NAME = "database"
"""Its name on the health routes and in errors."""

Connection = psycopg.AsyncConnection[DictRow]

_MIGRATION_LOCK = 4_811_052_318  # any constant that nothing else locks in this database
_WAIT_SECONDS = 4.0
_CHECK_SECONDS = 2.0

logger = logging.getLogger(__name__)


class Database:
    """A pool of connections that survives restarts of the server.

    Args:
        settings: where the server is and who we are.
        max_connections: most connections open at a time.
    """

    def __init__(self, settings: DatabaseSettings, max_connections: int = 8) -> None:
        options: dict[str, Any] = {
            "host": settings.host,
            "port": settings.port,
            "dbname": settings.name,
            "user": settings.user,
            "password": settings.password.get_secret_value(),
            "connect_timeout": 3,
            "row_factory": dict_row,
            # Notice a server that vanished without closing the connection.
            "keepalives_idle": 15,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "options": "-c statement_timeout=15000",
        }
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            kwargs=options,
            connection_class=psycopg.AsyncConnection,
            min_size=1,
            max_size=max_connections,
            timeout=_WAIT_SECONDS,
            reconnect_timeout=10,
            # A connection broken by a server restart is replaced here instead of failing the request that gets it.
            check=AsyncConnectionPool.check_connection,
            open=False,
        )

    async def open(self) -> None:
        """Start connecting in the background; the server need not be there yet."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.close()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection in a transaction that is committed at the end and rolled back on an exception.

        Raises:
            DependencyUnavailableError: no connection within 4 s, it broke, or the schema is not there yet.
        """
        try:
            async with self._pool.connection() as connection, connection.transaction():
                yield connection
        except (
            psycopg.OperationalError,
            psycopg.InterfaceError,
            psycopg.errors.UndefinedTable,
            PoolTimeout,
            PoolClosed,
        ) as error:
            raise DependencyUnavailableError(NAME) from error

    async def migrate(self) -> None:
        """Bring the schema up to date. Safe to call from several processes at a time: they take turns.

        Raises:
            DependencyUnavailableError: the server does not answer.
        """
        folder = resources.files("anomaly_detection.migrations")
        files = sorted((item for item in folder.iterdir() if item.name.endswith(".sql")), key=lambda item: item.name)
        async with self.transaction() as connection:
            await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
            await connection.execute(
                "CREATE TABLE IF NOT EXISTS schema_migrations"
                " (name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
            )
            done = await (await connection.execute("SELECT name FROM schema_migrations")).fetchall()
            for file in files:
                if file.name not in {row["name"] for row in done}:
                    await connection.execute(file.read_text(encoding="utf-8").encode())
                    await connection.execute("INSERT INTO schema_migrations (name) VALUES (%s)", (file.name,))
                    logger.info("migration applied", extra={"migration": file.name})

    async def check(self) -> None:
        """Return if the server answers.

        Raises:
            DependencyUnavailableError: it does not, within 2 s.
        """
        try:
            async with asyncio.timeout(_CHECK_SECONDS), self.transaction() as connection:
                await connection.execute("SELECT 1")
        except TimeoutError as error:
            raise DependencyUnavailableError(NAME) from error
