"""A pytest plugin that proves a Helm chart: render once, sweep one property over every object.

The parts, each usable without pytest:

- `Chart`, `Scenario`, `Renderer` (`render`): run `helm template` once per distinct input and keep its answer.
- `Manifests`, `Manifest`, `Pod`, `Container` (`objects`): the rendered objects, with selectors.
- `SchemaStore` (`schemas`): strict validation against vendored schemas, with explanations.
- `Origins`, `Location` (`origins`): the template line that made a field.
- `unresolved` (`references`): what a manifest refers to and nothing provides.
- `restricted` (`security`): what Pod Security `restricted` would refuse.
- `immutable_changes`, `restarts` (`upgrade`): what an upgrade from one rendering to another would do.
- `Exemptions` (`exemptions`): who may break a property, why, and whether that is still needed.

`plugin` turns them into fixtures, `cli` into commands (`python -m chart_harness`); see `docs/testing.md`.
"""

from chart_harness.exemptions import Exemptions
from chart_harness.objects import Container, Manifest, Manifests, Pod, quantity
from chart_harness.origins import Location
from chart_harness.problems import Problem
from chart_harness.references import Given, Reference, references, unresolved
from chart_harness.render import Chart, HelmError, Renderer, Scenario, Setup, find_helm
from chart_harness.schemas import SchemaStore
from chart_harness.security import restricted
from chart_harness.upgrade import Change, Restart, immutable_changes, restarts

__all__ = [
    "Change",
    "Chart",
    "Container",
    "Exemptions",
    "Given",
    "HelmError",
    "Location",
    "Manifest",
    "Manifests",
    "Pod",
    "Problem",
    "Reference",
    "Renderer",
    "Restart",
    "Scenario",
    "SchemaStore",
    "Setup",
    "find_helm",
    "immutable_changes",
    "quantity",
    "references",
    "restarts",
    "restricted",
    "unresolved",
]
