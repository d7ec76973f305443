"""A reference that nothing provides is found, whatever it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from chart_harness import Chart, Exemptions, Given, Manifests, Renderer, Scenario, references, restricted, unresolved
from chart_harness.objects import load_yaml

POD = """---
# Source: c/templates/pod.yaml
apiVersion: v1
kind: Pod
metadata: {name: pod}
spec:
  %s
  containers:
    - name: main
      %s
"""


def test_the_fixture_chart_is_whole(empty_renderer: Renderer, fixture_files: Chart) -> None:
    objects = empty_renderer.render(fixture_files, Scenario("base"))
    assert [problem for manifest in objects for problem in unresolved(manifest, objects, Given())] == []


def test_a_selector_that_matches_nothing_is_found(empty_renderer: Renderer, fixture_files: Chart) -> None:
    objects = empty_renderer.render(fixture_files, Scenario("base", overrides={"label": "other"}))
    problems = {manifest.id: unresolved(manifest, objects, Given()) for manifest in objects}
    assert problems["Deployment/web"] == ["spec.selector: its own pods do not carry app=web (templates/web.yaml:8)"]
    assert problems["Service/web"] == ["spec.selector: no pod carries app=web (templates/web.yaml:37)"]


@pytest.mark.parametrize(
    ("pod_part", "container_part", "problem"),
    [
        ("serviceAccountName: who", "image: a", "spec.serviceAccountName: there is no ServiceAccount who"),
        (
            "restartPolicy: Never",
            "env: [{name: A, valueFrom: {secretKeyRef: {name: known, key: absent}}}]",
            "spec.containers[main].env[A].valueFrom.secretKeyRef: the Secret known has no key absent (it has key)",
        ),
        (
            "restartPolicy: Never",
            "env: [{name: A, valueFrom: {secretKeyRef: {name: other, key: key}}}]",
            "env[A].valueFrom.secretKeyRef: there is no Secret other",
        ),
        (
            "restartPolicy: Never",
            "envFrom: [{configMapRef: {name: other}}]",
            "envFrom[0].configMapRef: there is no ConfigMap other",
        ),
        (
            "volumes: [{name: v, persistentVolumeClaim: {claimName: other}}]",
            "volumeMounts: [{name: v, mountPath: /v}]",
            "there is no PersistentVolumeClaim other",
        ),
        (
            "volumes: [{name: v, projected: {sources: [{secret: {name: other}}]}}]",
            "volumeMounts: [{name: v, mountPath: /v}]",
            "projected.sources[0].secret: there is no Secret other",
        ),
        (
            "imagePullSecrets: [{name: other}]",
            "image: a",
            "spec.imagePullSecrets[0]: there is no Secret other",
        ),
        ("priorityClassName: high", "image: a", "spec.priorityClassName: there is no PriorityClass high"),
        (
            "volumes: [{name: v, secret: {secretName: known}}]",
            "volumeMounts: [{name: v, mountPath: /v, subPath: absent}]",
            "volumeMounts[v].subPath: the Secret known has no key absent",
        ),
        (
            "restartPolicy: Never",
            "env: [{name: A, value: $(B)}, {name: B, value: b}]",
            "spec.containers[main].env[A].value: it uses $(B), which is not set before it",
        ),
        ("volumes: [{name: v, emptyDir: {}}]", "image: a", "no container mounts the volume v"),
        ("restartPolicy: Never", "volumeMounts: [{name: v, mountPath: /v}]", "mounts the volume v, which the pod does"),
        (
            "restartPolicy: Never",
            "livenessProbe: {httpGet: {port: http}}",
            "livenessProbe.httpGet.port: it has no port named http (it has none)",
        ),
    ],
)
def test_a_reference_to_nothing_is_found(pod_part: str, container_part: str, problem: str) -> None:
    objects = Manifests.parse(POD % (pod_part, container_part))
    problems = unresolved(objects[0], objects, Given(secrets={"known": ("key",)}))
    assert any(problem in found for found in problems), problems


def test_an_optional_reference_may_lead_nowhere() -> None:
    source = "env: [{name: A, valueFrom: {secretKeyRef: {name: other, key: key, optional: true}}}]"
    objects = Manifests.parse(POD % ("restartPolicy: Never", source))
    assert unresolved(objects[0], objects, Given()) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("kind: StatefulSet\nmetadata: {name: a}\nspec: {serviceName: b, template: {spec: {containers: []}}}",
         "spec.serviceName: there is no Service b"),
        ("kind: HorizontalPodAutoscaler\nmetadata: {name: a}\nspec: {scaleTargetRef: {kind: Deployment, name: b}}",
         "there is no Deployment b"),
        (("kind: HorizontalPodAutoscaler\nmetadata: {name: a}\n"
         "spec: {scaleTargetRef: {kind: HorizontalPodAutoscaler, name: a}}"),
         "spec.scaleTargetRef: the HorizontalPodAutoscaler a has no pods"),
        (("kind: HorizontalPodAutoscaler\nmetadata: {name: a}\n"
         "spec: {scaleTargetRef: {apiVersion: v1, kind: Deployment, name: a}}\n"
         "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {template: {spec: {containers: []}}}"),
         "spec.scaleTargetRef.apiVersion: the Deployment a is of apps/v1"),
        ("kind: PodDisruptionBudget\nmetadata: {name: a}\nspec: {selector: {matchLabels: {app: b}}}",
         "no pod carries app=b"),
        ("kind: RoleBinding\nmetadata: {name: a}\nroleRef: {kind: Role, name: b}", "roleRef: there is no Role b"),
        (
            ("kind: RoleBinding\nmetadata: {name: a}\nroleRef: {kind: Role, name: a}\n"
            "subjects: [{kind: ConfigMap, name: a}]"),
            "subjects[0].kind: a ConfigMap has no rights",
        ),
        (
            ("kind: RoleBinding\nmetadata: {name: a}\nroleRef: {kind: Role, name: a}\n"
            "subjects: [{kind: ServiceAccount, name: a}]"),
            "subjects[0].namespace: an account is of a namespace",
        ),
        ("kind: RoleBinding\nmetadata: {name: a}\nroleRef: {kind: RoleBinding, name: a}",
         "roleRef.kind: a RoleBinding is no role"),
        ("kind: RoleBinding\nmetadata: {name: a}\nroleRef: {apiGroup: apps, kind: Role, name: a}",
         "roleRef.apiGroup: roles are of rbac.authorization.k8s.io"),
        ("kind: Ingress\nmetadata: {name: a}\nspec: {rules: [{http: {paths: [{backend: {service: {name: b}}}]}}]}",
         "there is no Service b"),
    ],
)  # fmt: skip
def test_an_object_that_points_nowhere_is_found(text: str, problem: str) -> None:
    objects = Manifests.parse(f"---\n# Source: c/templates/a.yaml\n{text}\n")
    problems = unresolved(objects[0], objects, Given())
    assert any(problem in found for found in problems), problems


CASES: dict[str, dict[str, str]] = load_yaml(Path(__file__).with_name("references.yaml").read_text())


@pytest.mark.parametrize("case", CASES.values(), ids=[name.replace(" ", "-") for name in CASES])
def test_a_right_name_passes_and_a_wrong_one_is_found(case: dict[str, str]) -> None:
    main = (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: main, labels: {app: main}}\n"
        "spec: {containers: [{name: c, ports: [{name: http, containerPort: 80}]}]}\n"
    )
    given = Given(objects=("StorageClass/fast",), pods=({"istio": "ingress"},))

    def found(name: str) -> list[str]:
        parts = [case["refers"].replace("NAME", name), main, case.get("beside", "")]
        objects = Manifests.parse("".join(f"---\n# Source: c/templates/a.yaml\n{part}" for part in parts))
        return unresolved(objects[0], objects, given)

    assert found(case["right"]) == []
    assert any(case["problem"] in sentence for sentence in found(case["wrong"])), found(case["wrong"])


def test_what_is_in_another_namespace_is_not_for_this_chart_to_know() -> None:
    objects = Manifests.parse(
        "---\nkind: VirtualService\nmetadata: {name: a, namespace: n}\n"
        "spec: {gateways: [istio/public], http: [{route: [{destination: {host: web.other.svc.cluster.local}},"
        " {destination: {host: www.example.org}}]}]}\n"
        "---\nkind: ServiceMonitor\nmetadata: {name: a, namespace: n}\n"
        "spec: {namespaceSelector: {matchNames: [other]}, selector: {matchLabels: {app: b}}}\n"
    )
    assert [problem for manifest in objects for problem in unresolved(manifest, objects, Given())] == []


def test_references_say_what_they_lead_to(empty_renderer: Renderer, fixture_files: Chart) -> None:
    objects = empty_renderer.render(fixture_files, Scenario("base"))
    found = {
        (manifest.id, target)
        for manifest in objects
        for reference in references(manifest, objects, Given())
        for target in reference.targets
    }
    assert found == {
        ("Deployment/web", "ConfigMap/web"),
        ("Deployment/web", "ServiceAccount/default"),
        ("Service/web", "Deployment/web"),
    }


def test_restricted_accepts_the_fixture_and_refuses_each_weakness(
    empty_renderer: Renderer, fixture_files: Chart
) -> None:
    (pod,) = empty_renderer.render(fixture_files, Scenario("base")).pods()
    assert restricted(pod) == []
    for pod_part, container_part, problem in [
        ("hostNetwork: true", "image: a", "hostNetwork is true"),
        (
            "volumes: [{name: v, hostPath: {path: /}}]",
            "image: a",
            "the volume v is of a kind that is not allowed: hostPath",
        ),
        ("restartPolicy: Never", "image: a", "main: allowPrivilegeEscalation is not false"),
        ("restartPolicy: Never", "image: a", "main: runAsNonRoot is not true"),
        ("restartPolicy: Never", "image: a", "main: capabilities.drop does not name ALL"),
        ("restartPolicy: Never", "image: a", "main: seccompProfile is not set"),
        ("restartPolicy: Never", "securityContext: {runAsUser: 0}", "main: runs as user 0"),
        ("restartPolicy: Never", "securityContext: {privileged: true}", "main: privileged is true"),
        ("restartPolicy: Never", "ports: [{containerPort: 1, hostPort: 1}]", "main: takes the host port 1"),
    ]:
        (weak,) = Manifests.parse(POD % (pod_part, container_part)).pods()
        assert any(problem in found for found in restricted(weak)), problem


def test_an_exemption_excuses_and_goes_stale() -> None:
    exemptions = Exemptions({"probes": {"Deployment/a": "the operator adds them"}})
    exemptions.check("probes", "Deployment/a", ["it has none"])
    with pytest.raises(AssertionError, match="Deployment/b: probes\n  - it has none"):
        exemptions.check("probes", "Deployment/b", ["it has none"])
    with pytest.raises(AssertionError, match="nothing to be excused: remove it"):
        exemptions.check("probes", "Deployment/a", [])
    with pytest.raises(ValueError, match="needs a reason"):
        Exemptions({"probes": {"Deployment/a": "because"}})
