"""Tells others that a model has drifted: one event over the broker for each time that it happens."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from datetime import UTC, datetime

import aio_pika
from aio_pika.exceptions import AMQPError

from anomaly_detection.contracts import DRIFT_EXCHANGE, DriftDetected
from anomaly_detection.stability import MAJOR, MODERATE
from anomaly_detector.loader import LoadedModel

_KEPT = 1000
_PUBLISH_SECONDS = 5.0
_RETRY_SECONDS = 30.0

logger = logging.getLogger(__name__)


class DriftEvents:
    """Events that wait for the broker; of more than a thousand the oldest are given up.

    Args:
        replica: the name of this replica.
    """

    def __init__(self, replica: str) -> None:
        self._replica = replica
        self._arrived = asyncio.Event()
        self.waiting: deque[DriftDetected] = deque(maxlen=_KEPT)

    def notice(self, series_id: str, loaded: LoadedModel) -> None:
        """Look at the drift of a model in production that was measured anew."""
        recent = loaded.recent
        if recent is None:
            return
        if recent.index >= MAJOR and not recent.announced:
            recent.announced = True
            self.waiting.append(
                DriftDetected(
                    series_id=series_id,
                    model_version=loaded.version,
                    population_stability_index=recent.index,
                    threshold=MAJOR,
                    recent_points=round(sum(recent.counts()), 1),
                    replica=self._replica,
                    detected_at=datetime.now(UTC),
                )
            )
            self._arrived.set()
        elif recent.index < MODERATE:
            recent.announced = False

    async def publish(self, connection: aio_pika.abc.AbstractConnection) -> None:
        """Publish what waits and what comes, over a connection, until cancelled.

        An event is given up only once the broker has confirmed it. A refusal is logged and tried again: it must not
        end the connection, over which the events of the training come.
        """
        while True:
            try:
                channel = await connection.channel()
                exchange = await channel.get_exchange(DRIFT_EXCHANGE, ensure=False)
                while True:
                    while self.waiting:
                        event = self.waiting[0]
                        message = aio_pika.Message(
                            event.model_dump_json().encode(),
                            content_type="application/json",
                            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                            timestamp=event.detected_at,
                        )
                        await exchange.publish(message, event.routing_key(), mandatory=False, timeout=_PUBLISH_SECONDS)
                        # While it was under way another one may have pushed it out.
                        if self.waiting and self.waiting[0] is event:
                            self.waiting.popleft()
                        logger.info(
                            "drift detected",
                            extra={"series_id": event.series_id, "version": event.model_version},
                        )
                    self._arrived.clear()
                    await self._arrived.wait()
            except (TimeoutError, AMQPError, OSError, RuntimeError) as error:
                logger.warning("a drift event is not published, trying again", extra={"reason": repr(error)})
            await asyncio.sleep(_RETRY_SECONDS)
