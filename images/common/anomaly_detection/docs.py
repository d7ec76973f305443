"""The documentation page of an HTTP interface, for networks without internet as well."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

_ASSETS = "/docs/assets"


def documented_app(**options: Any) -> FastAPI:
    """An application whose page at `/docs` comes with all that it shows: nothing is fetched from another host.

    FastAPI's own page has the browser load Swagger UI from a CDN.

    Args:
        options: as `FastAPI` takes them, other than those about pages of documentation.
    """
    return FastAPIOffline(
        docs_url="/docs",
        redoc_url=None,  # it loads a picture from its maker's host
        static_url=_ASSETS,
        swagger_ui_parameters={"validatorUrl": None},  # else the document may be sent to a validator on the internet
        **options,
    )
