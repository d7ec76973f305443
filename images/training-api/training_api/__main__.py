"""`python -m training_api`: serve the API on port 8030."""

from __future__ import annotations

import uvicorn

from anomaly_detection.logging import configure_logging
from training_api.app import create_app
from training_api.services import connect_services
from training_api.settings import TrainingApiSettings

PORT = 8030


def main() -> None:
    """Run until SIGTERM; requests in hand are then answered."""
    settings = TrainingApiSettings()
    configure_logging("training-api", settings.log_level)
    uvicorn.run(
        create_app(connect_services(), settings),
        host="0.0.0.0",  # noqa: S104 - a container listens on all of its addresses
        port=PORT,
        loop="uvloop",
        http="httptools",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,  # longer than the idle time of gateways, which would else meet a closing connection
        timeout_graceful_shutdown=20,
    )


if __name__ == "__main__":
    main()
