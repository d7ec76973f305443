"""Rendering is a function of the values: nothing restarts that did not change."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from chart_harness import Chart, Manifest, Renderer, Scenario, SchemaStore

CLUSTER_HAS = ("apps/v1", "autoscaling/v2", "batch/v1", "keda.sh/v1alpha1", "monitoring.coreos.com/v1",
               "networking.istio.io/v1", "networking.k8s.io/v1", "policy/v1", "ray.io/v1", "v1")  # fmt: skip
"""API versions as Argo CD tells helm those of the cluster it deploys to."""

MAPPED_HOOKS = {"pre-install": "PreSync", "pre-upgrade": "PreSync", "post-install": "PostSync",
                "post-upgrade": "PostSync", "post-delete": "PostDelete", "test": "left out"}  # fmt: skip
"""What Argo CD makes of helm's hooks; others it applies as ordinary objects."""

MAPPED_POLICIES = {"before-hook-creation", "hook-succeeded", "hook-failed"}
"""Delete policies that Argo CD knows too."""


def test_two_renderings_are_equal_byte_by_byte(scenario: Scenario, chart: Chart, renderer: Renderer) -> None:
    """A random or time-dependent value would restart pods on every upgrade and every sync of Argo CD."""
    assert renderer.text(chart, scenario, fresh=True) == renderer.text(chart, scenario)


def test_an_upgrade_renders_what_the_install_rendered(scenario: Scenario, chart: Chart, renderer: Renderer) -> None:
    assert renderer.text(chart, replace(scenario, upgrade=True)) == renderer.text(chart, scenario)


def test_kubernetes_versions_render_alike(
    scenario: Scenario, chart: Chart, renderer: Renderer, schemas: SchemaStore
) -> None:
    for version in schemas.versions("kubernetes"):
        assert renderer.text(chart, replace(scenario, kube_version=version)) == renderer.text(chart, scenario), version


def test_an_unsupported_kubernetes_is_refused(scenario: Scenario, chart: Chart, renderer: Renderer) -> None:
    with pytest.raises(AssertionError, match="incompatible with Kubernetes"):
        renderer.text(chart, replace(scenario, kube_version="1.24.0"))


def test_names_do_not_depend_on_the_release(scenario: Scenario, chart: Chart, renderer: Renderer) -> None:
    """Clients and documented commands use fixed names, whatever the release and the namespace are called."""
    other = renderer.render(chart, replace(scenario, release="other", namespace="elsewhere"))
    known = renderer.render(chart, scenario)
    # A Job's name follows its content, since a Job cannot be changed; nobody calls it by name.
    assert [m.id for m in other if m.kind != "Job"] == [m.id for m in known if m.kind != "Job"]
    assert {m.namespace for m in other} <= {"elsewhere", None}


def test_argo_cd_renders_what_helm_installs(scenario: Scenario, chart: Chart, renderer: Renderer) -> None:
    """Argo CD runs `helm template --include-crds`, each time as for an install, and names the versions of the cluster.

    `lookup` finds nothing there. So nothing may depend on versions, and no template may ask the cluster (see below).
    """
    argo = replace(scenario, api_versions=CLUSTER_HAS, upgrade=False)
    assert renderer.text(chart, argo) == renderer.text(chart, scenario)


def test_argo_cd_knows_every_hook(manifest: Manifest) -> None:
    """An unknown hook would be an ordinary object; one that nothing deletes, a Job that can run once only."""
    assert manifest.hooks <= MAPPED_HOOKS.keys(), manifest
    policies = manifest.annotations.get("helm.sh/hook-delete-policy", "before-hook-creation").split(",")
    assert {policy.strip() for policy in policies} <= MAPPED_POLICIES, manifest
    assert re.fullmatch(r"-?\d+", manifest.annotations.get("helm.sh/hook-weight", "0")), manifest


@pytest.mark.sources
def test_templates_ask_neither_the_cluster_nor_chance_nor_the_clock(chart: Chart) -> None:
    """Under Argo CD the answers would be other ones, at every sync."""
    changing = (
        r"\b(lookup|rand\w+|genCA\w*|genSignedCert\w*|genPrivateKey|genSelfSignedCert\w*|uuidv4|now|htpasswd|bcrypt)\b"
    )
    for file in chart.files:
        if "templates" in file.parts:
            for action in re.findall(r"\{\{(?!-?\s*/\*).*?\}\}", chart.read(file), re.DOTALL):
                code = re.sub(r'"[^"]*"', "", action)
                assert not re.search(changing, code), f"{file}: {action}"
                assert ".Release.Is" not in code, f"{file}: {action}"
                assert ".Release.Revision" not in code, f"{file}: {action}"
