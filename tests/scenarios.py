"""The ways in which the tests render the chart, and the values it has to refuse."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chart_harness import Scenario
from chart_harness.objects import load_yaml
from ci import paths

RELEASE = "ads"
NAMESPACE = "ml-dev"

SERVICES = (
    "training-api",
    "training-worker",
    "ray-serve",
    "rabbitmq",
    "mlflow.server",
    "mlflow.postgresql",
    "mlflow.objectStore",
)
"""Places in the values that describe what runs all the time."""

PODS = (*SERVICES, "tools")
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

POD_EXTRAS: Mapping[str, Any] = {
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

MIRROR: Mapping[str, Any] = {
    "imageRegistry": "mirror.example.org/path",
    "imagePullSecrets": ["pull"],
    "imagePullPolicy": "Always",
}

RAY_WORKERS: Mapping[str, Any] = {
    "enabled": True,
    "replicas": 2,
    "rayStartParams": {"num-cpus": "2"},
    "resources": {"requests": {"cpu": 2, "memory": "3Gi"}, "limits": {"memory": "3Gi"}},
    "nodeSelector": {"example.org/pool": "inference"},
    "podLabels": {"example.org/group": "workers"},
}


def placed(values: Mapping[str, Any], *places: str) -> dict[str, Any]:
    """The same values in several places, each given as dotted keys."""
    result: dict[str, Any] = {}
    for place in places:
        node = result
        for key in place.split("."):
            node = node.setdefault(key, {})
        node.update(values)
    return result


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Values over values as helm puts them: maps key by key, and null takes a key away."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        if value is None:
            result.pop(key, None)
        elif isinstance(under, Mapping) and isinstance(value, Mapping):
            result[key] = merged(under, value)
        else:
            result[key] = value
    return result


NUMBER = "1"
"""A name that YAML would read as a number."""
FRACTION = "1.5"
"""A host that YAML would read as a number."""
DATABASES = {"mlflow": {"name": "true", "user": "on"}, "training": {"name": "false", "user": "off"}}
"""Names of databases and users that YAML would read as truth."""
STORE = {"region": NUMBER, "artifactsBucket": "111", "trainingBucket": "112"}
"""A region and buckets that YAML would read as numbers."""

FEATURES: dict[str, Mapping[str, Any]] = {
    "all-external": EXTERNAL,
    "existing-secrets": {"global": {"secrets": OWN_SECRETS}},
    "extras": placed(POD_EXTRAS, *PODS),
    "keda": {"training-worker": {"autoscaling": {"type": "keda"}}},
    "mirror": {"global": MIRROR},
    "no-policies": {"global": {"networkPolicy": {"enabled": False}}},
    "inference-only": {"training-api": {"enabled": False}, "training-worker": {"enabled": False}},
    "ray-workers": {"ray-serve": {"workers": RAY_WORKERS, "head": {"rayStartParams": {"num-cpus": "0"}}}},
    "training-only": {"ray-serve": {"enabled": False}},
    "versitygw": {
        "global": {"objectStore": {"region": NUMBER}},
        "mlflow": {"objectStore": {"engine": "versitygw"}},
    },
}  # fmt: skip
"""Features that no values file uses, as values over the defaults: each is held to every property like a file."""

DIGEST = "sha256:" + 64 * "a"
RULE = {"ports": [{"port": 7777, "protocol": "TCP"}]}

OWN_CHOICES: Mapping[str, Any] = {
    "podDisruptionBudget": {"enabled": False},
    "networkPolicy": {"extraIngress": [RULE], "extraEgress": [RULE]},
    "topologySpreadConstraints": [
        {"maxSkew": 2, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}
    ],
    "resources": {"limits": {"cpu": "2", "ephemeral-storage": "8Gi"}},
}

BRANCHES: dict[str, Mapping[str, Any]] = {
    "own-choices": placed(OWN_CHOICES, *SERVICES),
    "digests": {
        **placed({"image": {"digest": DIGEST}}, "training-api", "training-worker", "ray-serve", "rabbitmq", "tools"),
        "mlflow": {
            "server": {"image": {"digest": DIGEST}},
            "postgresql": {
                "image": {"digest": DIGEST},
                "persistence": {"storageClassName": NUMBER},
                "configuration": dict.fromkeys(
                    ("shared_buffers", "effective_cache_size", "log_min_duration_statement")
                ),
            },
            "objectStore": {"minio": {"image": {"digest": DIGEST}}, "persistence": {"storageClassName": NUMBER}},
        },
    },
    "pull-secrets": {
        "global": {
            "imagePullSecrets": ["first", "second"],
            "database": DATABASES,
            "objectStore": STORE,
        },
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
            "persistence": {"storageClassName": NUMBER},
        },
    },
    "external-broker": {
        "training-worker": {"experimentName": NUMBER, "autoscaling": {"type": "keda"}},
        "global": {
            "broker": {"host": "mq.example.com", "vhost": NUMBER},
            "secrets": {"broker": {"existingSecret": "own-broker"}},
        },
        "rabbitmq": {"enabled": False},
        "training-api": {"strategy": {"type": "Recreate", "rollingUpdate": None}},
    },
    "read-by-yaml": merged(
        EXTERNAL,
        {
            "global": {
                "imagePullSecrets": [NUMBER],
                "networkPolicy": {"monitoringNamespace": NUMBER},
                "broker": {"host": FRACTION},
                "database": {"host": FRACTION, **DATABASES},
                "objectStore": STORE,
            },
        },
    ),
    "external-mlflow": {
        "global": {"mlflow": {"trackingUri": "http://mlflow.example.com"}},
        "mlflow": {"server": {"enabled": False}},
    },
    "api-only": placed({"enabled": False}, "training-worker", "ray-serve"),
    "mlflow-only": placed({"enabled": False}, "training-api", "training-worker", "ray-serve"),
}
"""Values that take the branches of templates which neither the values files nor the features take."""

BAD_VALUES: dict[str, list[dict[str, Any]]] = load_yaml(Path(__file__).with_name("bad_values.yaml").read_text())
"""What refuses them -> entries with `values` and what helm `says`."""


def _over_the_defaults(name: str, values: Mapping[str, Any]) -> Scenario:
    return Scenario(name, overrides=values, release=RELEASE, namespace=NAMESPACE)


def scenarios() -> list[Scenario]:
    """The chart's own defaults, every values file of `values/`, every feature, and what is left of the branches."""
    files: list[tuple[str, tuple[Path, ...]]] = [("defaults", ())]
    files += [(file.stem, (file,)) for file in sorted((paths.REPOSITORY / "values").glob("*.yaml"))]
    found = [Scenario(name, values, release=RELEASE, namespace=NAMESPACE) for name, values in files]
    return found + [_over_the_defaults(name, values) for name, values in {**FEATURES, **BRANCHES}.items()]


def refusals() -> list[Scenario]:
    """What the templates refuse; a schema refuses before a template is read."""
    return [_over_the_defaults(entry["says"][0], entry["values"]) for entry in BAD_VALUES["contradictions"]]
