"""What an upgrade changes: semantic differences, immutable fields of each kind, and the pods that restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chart_harness import Chart, Manifests, Renderer, Scenario, immutable_changes, restarts
from chart_harness.objects import load_yaml
from chart_harness.upgrade import differences, quantity, read_baseline, write_baseline

CASES: dict[str, dict[str, Any]] = load_yaml(Path(__file__).with_name("immutable.yaml").read_text())


def one(text: str) -> Manifests:
    """Objects of a text."""
    return Manifests.parse(f"---\n# Source: c/templates/a.yaml\n{text}")


@pytest.mark.parametrize("case", CASES.values(), ids=[name.replace(" ", "-") for name in CASES])
def test_an_immutable_field_is_refused_and_a_mutable_one_is_not(case: dict[str, str]) -> None:
    before = one(case["object"].replace("VALUE", case["before"]).replace("OTHER", "1"))
    after = one(case["object"].replace("VALUE", case["after"]).replace("OTHER", "1"))
    assert [change.path for change in immutable_changes(before, after)] == [case["path"]]
    assert immutable_changes(before, one(case["object"].replace("VALUE", case["before"]).replace("OTHER", "2"))) == []


def test_a_hook_is_made_anew() -> None:
    text = "kind: Job\nmetadata: {name: a, annotations: {helm.sh/hook: pre-upgrade}}\nspec: {template: {spec: {x: %s}}}"
    assert immutable_changes(one(text % "a"), one(text % "b")) == []


def test_a_volume_may_grow() -> None:
    text = "kind: PersistentVolumeClaim\nmetadata: {name: a}\nspec: {resources: {requests: {storage: %s}}}"
    assert immutable_changes(one(text % "1Gi"), one(text % "2000Mi")) == []
    assert quantity("1Gi") == quantity("1024Mi") == 2**30
    assert quantity("1500m") == quantity("1.5")


def test_named_items_may_change_places() -> None:
    one_order = {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}], "args": ["a", "b"]}
    other_order = {"env": [{"name": "B", "value": "3"}, {"name": "A", "value": "1"}], "args": ["b", "a"], "x": None}
    assert list(differences(one_order, other_order)) == [
        ("env[B].value", "2", "3"),
        ("args", ["a", "b"], ["b", "a"]),
    ]


def test_pods_restart_when_their_template_differs(empty_renderer: Renderer, fixture_files: Chart) -> None:
    before = empty_renderer.render(fixture_files, Scenario("base"))
    same = empty_renderer.render(fixture_files, Scenario("base", overrides={"replicas": 3}))
    other = empty_renderer.render(fixture_files, Scenario("base", overrides={"image": "example.org/web:2"}))
    assert restarts(before, same) == []
    (restart,) = restarts(before, other)
    assert (restart.subject, restart.operator) == ("Deployment/web", False)
    assert restart.paths == (
        "spec.template.spec.initContainers[prepare].image",
        "spec.template.spec.containers[web].image",
    )


def test_a_custom_resources_pods_are_its_operators() -> None:
    text = "apiVersion: ray.io/v1\nkind: RayService\nmetadata: {name: a}\n"
    text += "spec: {template: {spec: {containers: [{image: %s}]}}}"
    (restart,) = restarts(one(text % "a"), one(text % "b"))
    assert str(restart) == "RayService/a (its operator decides how): spec.template.spec.containers[0].image"


def test_a_baseline_finds_what_the_whole_objects_would(tmp_path: Path) -> None:
    parts = [case["object"].replace("OTHER", "1").strip() for case in CASES.values()]
    parts = [part.replace("metadata: {name: a", f"metadata: {{name: a{number}") for number, part in enumerate(parts)]
    parts.append(
        "kind: Deployment\nmetadata: {name: w}\nspec: {selector: {}, template: {spec: {containers: [{image: VALUE}]}}}"
    )

    def objects(side: str) -> Manifests:
        values = [case[side] for case in CASES.values()] + [side]
        texts = [part.replace("VALUE", value) for part, value in zip(parts, values, strict=True)]
        return Manifests.parse("".join(f"---\n# Source: c/templates/a.yaml\n{text}\n" for text in texts), "some")

    write_baseline(tmp_path / "released.json", "1.0", [objects("before")])
    version, scenarios = read_baseline(tmp_path / "released.json")
    assert version == "1.0"
    after = objects("after")
    assert immutable_changes(scenarios["some"], after) == immutable_changes(objects("before"), after)
    assert restarts(scenarios["some"], after) == restarts(objects("before"), after) != []
