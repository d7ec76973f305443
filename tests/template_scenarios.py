"""Scenarios that take the branches of templates which neither the values files nor the other features take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PODS = (
    "training-api",
    "training-worker",
    "ray-serve",
    "rabbitmq",
    "mlflow.server",
    "mlflow.postgresql",
    "mlflow.objectStore",
)
_DIGEST = "sha256:" + 64 * "a"
_RULE = {"ports": [{"port": 7777, "protocol": "TCP"}]}

_OWN_CHOICES: Mapping[str, Any] = {
    "podDisruptionBudget": {"enabled": False},
    "networkPolicy": {"extraIngress": [_RULE], "extraEgress": [_RULE]},
    "topologySpreadConstraints": [
        {"maxSkew": 2, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}
    ],
}


def _placed(places: tuple[str, ...], values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values in several places, each given as dotted keys."""
    result: dict[str, Any] = {}
    for place in places:
        node = result
        for key in place.split("."):
            node = node.setdefault(key, {})
        node.update(values)
    return result


TEMPLATE_SCENARIOS: Mapping[str, Mapping[str, Any]] = {
    "own-choices": _placed(_PODS, _OWN_CHOICES),
    "digests": {
        **_placed(
            ("training-api", "training-worker", "ray-serve", "rabbitmq", "tools"), {"image": {"digest": _DIGEST}}
        ),
        "mlflow": {
            "server": {"image": {"digest": _DIGEST}},
            "postgresql": {
                "image": {"digest": _DIGEST},
                "persistence": {"storageClassName": "fast"},
                "configuration": dict.fromkeys(
                    ("shared_buffers", "effective_cache_size", "log_min_duration_statement")
                ),
            },
            "objectStore": {"minio": {"image": {"digest": _DIGEST}}, "persistence": {"storageClassName": "fast"}},
        },
    },
    "pull-secrets": {
        "global": {"imagePullSecrets": ["first", "second"]},
        "mlflow": {
            "server": {"allowedHosts": ["mlflow.example.com"]},
            "postgresql": {
                "configuration": dict.fromkeys(
                    ("max_connections", "shared_buffers", "effective_cache_size", "log_min_duration_statement")
                )
            },
        },
        "rabbitmq": {
            "configuration": {"heartbeat": "30", "channel_max": "64"},
            "persistence": {"storageClassName": "fast"},
        },
    },
    "external-broker": {
        "global": {"broker": {"host": "mq.example.com"}, "secrets": {"broker": {"existingSecret": "own-broker"}}},
        "rabbitmq": {"enabled": False},
    },
    "external-mlflow": {
        "global": {"mlflow": {"trackingUri": "http://mlflow.example.com"}},
        "mlflow": {"server": {"enabled": False}},
    },
}
"""Name -> values over the defaults."""

REFUSALS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "no database": ({"mlflow": {"postgresql": {"enabled": False}}}, "needs global.database.host"),
    "no object store": ({"mlflow": {"objectStore": {"engine": "external"}}}, "needs global.objectStore.endpointUrl"),
    "no broker": ({"rabbitmq": {"enabled": False}}, "needs global.broker.host"),
    "no MLflow": ({"mlflow": {"server": {"enabled": False}}}, "needs global.mlflow.trackingUri"),
    "no credentials of the broker": (
        {"rabbitmq": {"enabled": False}, "global": {"broker": {"host": "mq.example.com"}}},
        "global.secrets.broker.existingSecret is needed",
    ),
    "no credentials of the database": (
        {"mlflow": {"postgresql": {"enabled": False}}, "global": {"database": {"host": "db.example.com"}}},
        "global.secrets.mlflowDatabase.existingSecret is needed",
    ),
    "no credentials of the object store": (
        {
            "mlflow": {"objectStore": {"engine": "external"}},
            "global": {"objectStore": {"endpointUrl": "https://s3.example.com"}},
        },
        "global.secrets.mlflowObjectStore.existingSecret is needed",
    ),
}
"""Name -> values over the defaults that the chart must refuse, and what its message says."""
