"""A field leads to the template line that made it, through helpers, loops and values; never to a wrong one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from chart_harness import Chart, Location, Manifest, Manifests, Renderer, Scenario, SchemaStore, restricted
from chart_harness.origins import line_of, mark
from chart_harness.plugin import session_of

HELPERS = """\
{{- define "lib.labels" -}}
app: {{ .name }}
part: web
{{- end }}

{{- define "lib.component" -}}
{"name": "{{ .Chart.Name }}"}
{{- end }}

{{- define "lib.flavour" -}}
plain
{{- end }}

{{- define "lib.tail" -}}
{{- range .items }}
- name: {{ . }}
  value: "x"
{{- end }}
{{- end }}
"""

TEMPLATE = """\
{{- $component := include "lib.component" . | fromJson -}}
# A comment before the object.
apiVersion: v1
kind: ConfigMap
metadata:
  name: first
  labels:
    {{- include "lib.labels" $component | nindent 4 }}
  annotations:
    {{- toYaml .Values.annotations | nindent 4 }}
    checksum: {{ include "lib.labels" $component | sha256sum }}
data:
  {{- range $key, $value := .Values.data }}
  {{ $key }}: {{ $value | quote }}
  {{- end }}
  {{- if eq (include "lib.flavour" .) "plain" }}
  flavour: plain
  {{- else }}
  flavour: other
  {{- end }}
  {{ if .Values.data }}last: "1"{{ else }}last: "2"{{ end }}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: second}
spec:
  template:
    spec:
      containers:
        - name: main
          env:
            {{- include "lib.tail" (dict "items" (list "A" "B")) | nindent 12 }}
            - name: C
              value: {{ .Values.annotations.one }}
          args:
            - >-
              text: of
              lines: here
          ports: [{name: http}]
"""

CRD = """\
# A custom resource definition.
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: things.example.org
spec:
  group: example.org
"""


@pytest.fixture
def chart_folder(tmp_path: Path) -> Path:
    """A chart with a library, loops, values, a helper that is compared, one that is parsed, and a definition."""
    folder = tmp_path / "traced"
    for name, text in {
        "Chart.yaml": "apiVersion: v2\nname: traced\nversion: 0.1.0\n",
        "values.yaml": "annotations: {one: '1', two: '2'}\ndata: {a: x, b: y}\n",
        "templates/main.yaml": TEMPLATE,
        "crds/things.yaml": CRD,
        "charts/lib/Chart.yaml": "apiVersion: v2\nname: lib\nversion: 0.1.0\ntype: library\n",
        "charts/lib/templates/_lib.tpl": HELPERS,
    }.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


@pytest.fixture
def traced(chart_folder: Path, empty_renderer: Renderer) -> Manifests:
    """The chart's objects."""
    return empty_renderer.render(Chart(chart_folder), Scenario("traced"))


MAIN, LIB = "templates/main.yaml", "charts/lib/templates/_lib.tpl"
CONTAINER = "spec.template.spec.containers[main]"


@pytest.mark.parametrize(
    ("name", "path", "location"),
    [
        ("first", "", f"{MAIN}:3"),
        ("first", "metadata.name", f"{MAIN}:6"),
        ("first", "metadata.labels", f"{MAIN}:7"),
        ("first", "metadata.labels.app", f"{LIB}:2"),
        ("first", "metadata.labels.part", f"{LIB}:3"),
        ("first", "metadata.annotations.two", f"{MAIN}:10"),
        ("first", "metadata.annotations.checksum", f"{MAIN}:11"),
        ("first", "data.a", f"{MAIN}:14"),
        ("first", "data.b", f"{MAIN}:14"),
        ("first", "data.flavour", f"{MAIN}:17"),
        ("first", "data.last", f"{MAIN}:21"),
        ("first", "data.absent", f"near {MAIN}:12"),
        ("second", "kind", f"{MAIN}:24"),
        ("second", f"{CONTAINER}.env[0].value", f"{LIB}:17"),
        ("second", f"{CONTAINER}.env[B]", f"{LIB}:16"),
        ("second", f"{CONTAINER}.env[C].value", f"{MAIN}:34"),
        ("second", f"{CONTAINER}.args[0]", f"{MAIN}:36"),
        ("second", f"{CONTAINER}.ports[http].name", f"{MAIN}:39"),
        ("things.example.org", "spec.group", "crds/things.yaml:7"),
    ],
)
def test_a_field_leads_to_its_line(name: str, path: str, location: str, traced: Manifests) -> None:
    (manifest,) = traced.where(lambda manifest: manifest.name == name)
    assert str(manifest.locate(path)) == location


def test_a_helper_whose_text_is_cut_is_that_of_its_include(chart_folder: Path, empty_renderer: Renderer) -> None:
    file = chart_folder / MAIN
    cut = file.read_text().replace('include "lib.labels" $component | nindent 4', 'include "lib.cut" . | nindent 4')
    file.write_text(cut + '{{- define "lib.cut" }}{{ include "lib.labels" . | trunc 9 }}{{ end }}')
    objects = empty_renderer.render(Chart(chart_folder), Scenario("cut", overrides={"name": "longer-than-nine"}))
    assert objects.one("ConfigMap", "first").locate("metadata.labels.app") in (
        Location(MAIN, 8),
        Location(MAIN, cut.count("\n") + 1),
    )


def test_what_marks_change_is_said_to_be_near(chart_folder: Path, empty_renderer: Renderer) -> None:
    (chart_folder / MAIN).write_text(
        '{{- $text := include "whole" . }}{{- if lt (len $text) 60 }}{{ $text }}{{ else }}{{ fail "long" }}{{ end }}\n'
        '{{- define "whole" }}\nkind: ConfigMap\nmetadata:\n  name: short\n{{- end }}\n'
    )
    objects = empty_renderer.render(Chart(chart_folder), Scenario("short"))
    location = objects.one("ConfigMap", "short").locate("metadata.name")
    assert location is not None
    assert location == Location(MAIN, 1) or not location.exact


def test_an_object_without_a_renderer_has_no_line() -> None:
    (manifest,) = Manifests.parse("---\n# Source: c/templates/x.yaml\nkind: A\nmetadata: {name: a}\n")
    assert manifest.locate("metadata.name") is None


def test_marks_do_not_change_what_a_template_says(chart_folder: Path) -> None:
    files = {name: (chart_folder / name).read_text() for name in (MAIN, LIB)}
    for level in range(3):
        marked = mark(files, level)
        for name, text in files.items():
            plain = re.sub(r'\{\{-? "⟦\d+⟧" \}\}|⟦\d+⟧', "", marked.texts[name])
            assert plain == text
            for number in re.findall(r"⟦(\d+)⟧", marked.texts[name]):
                assert marked.places[int(number)][0] == name


def test_keys_with_dots_and_names_of_items_are_found() -> None:
    text = "a.b: 1\na:\n  b: 2\n  c.d/e:\n    - name: x.y\n      v: 3\n"
    assert line_of(text, "a.b") == (0, True)
    assert line_of(text, "a.c.d/e[x.y].v") == (5, True)
    assert line_of(text, "a.c.d/e[0].w") == (4, False)


def test_every_problem_names_its_line(
    empty_renderer: Renderer, fixture_chart: Path, pytestconfig: pytest.Config
) -> None:
    file = fixture_chart / "templates" / "web.yaml"
    broken = file.read_text().replace("runAsNonRoot: true", "runAsNonRot: true")
    file.write_text(broken)
    (pod,) = empty_renderer.render(Chart(fixture_chart), Scenario("broken")).pods()
    line = broken[: broken.index("runAsNonRot")].count("\n") + 1
    store = SchemaStore(session_of(pytestconfig).setup.chart / "tests" / "schemas")
    (problem,) = (str(problem) for problem in store.problems(pod.owner))
    assert problem.endswith(f"did you mean runAsNonRoot? (templates/web.yaml:{line})")
    assert any(
        "web: runAsNonRoot is not true" in text and "(near templates/web.yaml:" in text for text in restricted(pod)
    )


def _made_by(manifest: Manifest, path: str, chart: Path) -> str | None:
    """What is wrong with the line that a field leads to: it has to name the field, or to print something computed."""
    location = manifest.locate(path)
    if location is None or not location.exact:
        return f"{manifest.id} {path}: {location}"
    line = (chart / location.file).read_text().splitlines()[location.line - 1]
    key = re.sub(r"\[\d+\]$", "", path).rpartition(".")[2]
    return None if key in line or "{{" in line or path.endswith("]") else f"{manifest.id} {path}: {location}: {line}"


def test_every_field_of_the_project_leads_to_a_line_that_makes_it(pytestconfig: pytest.Config) -> None:
    session = session_of(pytestconfig)
    objects = session.render(session.setup.scenarios[0])
    fields = [(manifest, path) for manifest in objects for path, _ in manifest.walk() if path]
    wrong = [_made_by(manifest, path, session.setup.chart) for manifest, path in fields[::5]]
    assert [problem for problem in wrong if problem] == []


@pytest.mark.parametrize(
    ("kind", "name", "path", "file", "text"),
    [
        ("Deployment", "training-api", "spec.replicas", "training-api/templates/deployment.yaml", "replicas: {{"),
        ("Deployment", "training-api", "metadata.labels.app", "common/templates/_metadata.tpl", "app: {{ .app }}"),
        ("StatefulSet", "rabbitmq", "spec.serviceName", "rabbitmq/templates/stateful-set.yaml", "rabbitmq-headless"),
        (
            "StatefulSet",
            "rabbitmq",
            "spec.template.spec.containers[rabbitmq].securityContext.capabilities.drop",
            "common/templates/_pods.tpl",
            "drop: [ALL]",
        ),
    ],
)
def test_known_fields_of_the_project(
    kind: str, name: str, path: str, file: str, text: str, pytestconfig: pytest.Config
) -> None:
    session = session_of(pytestconfig)
    location = session.render(session.setup.scenarios[0]).one(kind, name).locate(path)
    assert location is not None
    assert (location.file, location.exact) == (f"charts/{file}", True)
    assert text in (session.setup.chart / "charts" / file).read_text().splitlines()[location.line - 1]
