"""What the whole suite shares: the chart and its scenarios."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from chart_harness import Scenario, Setup
from ci import paths
from template_scenarios import REFUSALS, TEMPLATE_SCENARIOS

pytest_plugins = ("chart_harness.plugin",)

RELEASE = "ads"
NAMESPACE = "ml-dev"


PODS = (
    "mlflow.server",
    "mlflow.postgresql",
    "mlflow.objectStore",
    "rabbitmq",
    "training-api",
    "training-worker",
    "ray-serve",
    "tools",
)
"""Places in the values that describe a pod: all take the same keys."""

OWN_SECRETS = {
    "databaseAdmin": {"existingSecret": "own-database-admin"},
    "mlflowDatabase": {"existingSecret": "own-mlflow-database"},
    "trainingDatabase": {"existingSecret": "own-training-database"},
    "objectStoreRoot": {"existingSecret": "own-object-store-root"},
    "mlflowObjectStore": {"existingSecret": "own-mlflow-s3"},
    "trainingObjectStore": {"existingSecret": "own-training-s3"},
    "servingObjectStore": {"existingSecret": "own-serving-s3"},
    "broker": {"existingSecret": "own-broker"},
}

EXTERNAL = {
    "global": {
        "database": {"host": "db.example.com", "port": 6432, "sslMode": "verify-full"},
        "objectStore": {"endpointUrl": "https://s3.example.com:8443"},
        "broker": {"host": "mq.example.com", "port": 5673},
        "mlflow": {"trackingUri": "https://mlflow.example.com"},
        "secrets": OWN_SECRETS,
    },
    "mlflow": {"server": {"enabled": False}, "postgresql": {"enabled": False}, "objectStore": {"engine": "external"}},
    "rabbitmq": {"enabled": False},
}

POD_EXTRAS = {
    "extraEnv": [{"name": "EXTRA_VARIABLE", "value": "extra"}],
    "extraEnvFrom": [{"secretRef": {"name": "extra-variables"}}],
    "extraVolumes": [{"name": "extra", "secret": {"secretName": "extra-files"}}],
    "extraVolumeMounts": [{"name": "extra", "mountPath": "/extra"}],
    "podLabels": {"example.org/team": "sensors"},
    "podAnnotations": {"example.org/note": "yes: it's quoted"},
    "priorityClassName": "system-cluster-critical",
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "dedicated", "operator": "Equal", "value": "ml", "effect": "NoSchedule"}],
    "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 1, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname", "labelSelector": {}}}
    ]}},
    "serviceAccount": {"annotations": {"example.org/role": "reader"}},
}  # fmt: skip

MIRROR = {"imageRegistry": "mirror.example.org/path", "imagePullSecrets": ["pull"], "imagePullPolicy": "Always"}

RAY_WORKERS = {
    "enabled": True,
    "replicas": 2,
    "rayStartParams": {"num-cpus": "2"},
    "resources": {"requests": {"cpu": 2, "memory": "3Gi"}, "limits": {"memory": "3Gi"}},
    "nodeSelector": {"example.org/pool": "inference"},
    "podLabels": {"example.org/group": "workers"},
}


def for_every_pod(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that say the same of every pod of the chart."""
    result: dict[str, Any] = {}
    for place in PODS:
        node = result
        for key in place.split("."):
            node = node.setdefault(key, {})
        node.update(values)
    return result


FEATURES: dict[str, Mapping[str, Any]] = {
    "all-external": EXTERNAL,
    "existing-secrets": {"global": {"secrets": OWN_SECRETS}},
    "extras": for_every_pod(POD_EXTRAS),
    "keda": {"training-worker": {"autoscaling": {"type": "keda"}}},
    "mirror": {"global": MIRROR},
    "no-policies": {"global": {"networkPolicy": {"enabled": False}}},
    "inference-only": {"training-api": {"enabled": False}, "training-worker": {"enabled": False}},
    "ray-workers": {"ray-serve": {"workers": RAY_WORKERS, "head": {"rayStartParams": {"num-cpus": "0"}}}},
    "training-only": {"ray-serve": {"enabled": False}},
    "versitygw": {"mlflow": {"objectStore": {"engine": "versitygw"}}},
}  # fmt: skip
"""Features that no values file uses, as values over the defaults: each is held to every property like a file."""


def scenarios() -> list[Scenario]:
    """The chart's own defaults, every values file of `values/`, and every combination of `FEATURES`."""
    files: list[tuple[str, tuple[Path, ...]]] = [("defaults", ())]
    files += [(file.stem, (file,)) for file in sorted((paths.REPOSITORY / "values").glob("*.yaml"))]
    found = [Scenario(name, values, release=RELEASE, namespace=NAMESPACE) for name, values in files]
    found += [
        Scenario(name, overrides=values, release=RELEASE, namespace=NAMESPACE) for name, values in FEATURES.items()
    ]
    return found


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a test that compares a document with the chart write it instead."""
    parser.addoption("--write-docs", action="store_true", help="write the tables of docs/network.md anew")


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker of the live tests known."""
    config.addinivalue_line("markers", "live: needs the cluster that `make up` starts")


def pytest_chart_harness(config: pytest.Config) -> Setup:
    """Render the umbrella chart, with the helm that `make up` and `make test` install."""
    covering = [
        Scenario(name, overrides=values, release=RELEASE, namespace=NAMESPACE)
        for name, values in TEMPLATE_SCENARIOS.items()
    ]
    refusals = [
        (Scenario(name, overrides=values, release=RELEASE, namespace=NAMESPACE), message)
        for name, (values, message) in REFUSALS.items()
    ]
    return Setup(
        chart=paths.REPOSITORY,
        scenarios=[*scenarios(), *covering],
        helm=[paths.BIN / "helm"],
        refusals=refusals,
    )
