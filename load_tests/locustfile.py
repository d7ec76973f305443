"""Load on the training API and on inference: single, batch and many-series predictions, and fits followed to the end.

Before the users start, `--series` series are fitted and waited for, so that every prediction meets a model. All of it
is bounded: the number of series, the fits per series (the service allows 5 a minute) and, in `locust.conf`, users and
time.
"""

from __future__ import annotations

import itertools
import logging
import time
from typing import Any, ClassVar

import httpx
import numpy as np
from locust import FastHttpUser, constant_pacing, constant_throughput, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import WorkerRunner

TRAINING_POINTS = 1_000
BATCH_POINTS = 1_000
MANY_SERIES = 20
FIT_SERIES = 20
PREPARATION_TIMEOUT_S = 120.0

_generator = np.random.default_rng(42)


def series_id(number: int) -> str:
    """Name of a series that the predictions ask about."""
    return f"load_{number:05d}"


def points(count: int) -> list[dict[str, float]]:
    """A made-up vibration signal: a sine with noise, one point per second, different each time."""
    start = 1_700_000_000 + int(_generator.integers(0, 1_000_000))
    values = np.sin(np.arange(count) / 7.0) + 0.1 * _generator.standard_normal(count)
    return [{"timestamp": start + at, "value": value} for at, value in enumerate(values.tolist())]


def add_options(parser: LocustArgumentParser, **_: object) -> None:
    """Addresses and sizes."""
    parser.add_argument("--training-api", required=True, metavar="URL", help="base URL of the training API")
    parser.add_argument("--inference", required=True, metavar="URL", help="base URL of the inference service")
    parser.add_argument("--series", type=int, default=20, help="series to fit first and predict for (default: 20)")
    parser.add_argument(
        "--rate", type=float, default=0.0, help="predictions a second per user, 0 for as many as answered"
    )


def prepare(environment: Environment, **_: object) -> None:
    """Give each kind of user its service, then fit the series and wait until each of them is served.

    Not at `test_start`, which the run time already counts.
    """
    options = environment.parsed_options
    assert options is not None
    training_api, inference = options.training_api.rstrip("/"), options.inference.rstrip("/")
    FitUser.host = training_api
    for user in (SinglePredictionUser, BatchPredictionUser, ManySeriesUser):
        user.host = inference
        user.series = options.series
        if options.rate > 0:
            user.wait_time = constant_throughput(options.rate)
    if isinstance(environment.runner, WorkerRunner):
        return
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        fit_missing(training_api, inference, [series_id(number) for number in range(options.series)])
    except (httpx.HTTPError, TimeoutError) as error:
        raise SystemExit(f"error: the series to predict for could not be prepared: {error}") from error


def fit_missing(training_api: str, inference: str, names: list[str]) -> None:
    """Fit those of the series that are not served, and wait until they are.

    Raises:
        httpx.HTTPError: when a service does not answer, or refuses a fit.
        TimeoutError: when a series is not served in time.
    """
    with httpx.Client(timeout=30, trust_env=False) as http:

        def is_served(name: str) -> bool:
            return http.post(f"{inference}/predict/{name}", json=points(1)[0]).status_code == httpx.codes.OK

        waiting = [name for name in names if not is_served(name)]
        logging.info("%d series are served already, %d will be fitted", len(names) - len(waiting), len(waiting))
        for name in waiting:
            http.post(f"{training_api}/fit/{name}", json={"data": points(TRAINING_POINTS)}).raise_for_status()
        deadline = time.monotonic() + PREPARATION_TIMEOUT_S
        while waiting := [name for name in waiting if not is_served(name)]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"not served after {PREPARATION_TIMEOUT_S:.0f} s: {', '.join(waiting)}")
            time.sleep(0.2)


events.init_command_line_parser.add_listener(add_options)  # type: ignore[no-untyped-call]
events.init.add_listener(prepare)  # type: ignore[no-untyped-call]


class PredictionUser(FastHttpUser):
    """Base of the users that predict; the next request follows the answer at once unless `--rate` says otherwise."""

    abstract = True
    series: ClassVar[int] = 1

    def some_series(self) -> str:
        """A random one of the fitted series."""
        return series_id(int(_generator.integers(0, self.series)))

    def send(self, path: str, body: Any, name: str) -> None:
        """POST one body; a failure is an answer other than 200, one by the fallback, or an error of one series."""
        with self.client.post(path, json=body, name=name, catch_response=True) as answer:
            if answer.status_code != 200:
                answer.failure(f"{answer.status_code}: {(answer.text or '')[:200]}")
            elif '"fallback"' in (answer.text or ""):
                answer.failure("answered by the fallback")
            elif '"error"' in (answer.text or ""):
                answer.failure(f"an error inside: {(answer.text or '')[:200]}")


class SinglePredictionUser(PredictionUser):
    """One point of one series."""

    weight = 20

    @task
    def predict(self) -> None:
        """POST /predict/{series_id}."""
        self.send(f"/predict/{self.some_series()}", points(1)[0], "/predict/{series_id}")


class BatchPredictionUser(PredictionUser):
    """Many points of one series."""

    weight = 4

    @task
    def predict(self) -> None:
        """POST /predict/{series_id}/batch."""
        body = {"data": points(BATCH_POINTS)}
        self.send(f"/predict/{self.some_series()}/batch", body, "/predict/{series_id}/batch")


class ManySeriesUser(PredictionUser):
    """One point for each of many series in one request."""

    weight = 4

    @task
    def predict(self) -> None:
        """POST /predict."""
        names = {self.some_series() for _ in range(MANY_SERIES)}
        self.send("/predict", {"series": {name: points(1)[0] for name in names}}, "/predict")


class FitUser(FastHttpUser):
    """Fits new data, one series after the other, and follows each job to its end.

    One user and one fit every second over 20 series: 3 a minute for each, where the service allows 5.
    """

    fixed_count = 1
    wait_time = constant_pacing(1.0)

    def on_start(self) -> None:
        """Start with the first series."""
        self._names = itertools.cycle(f"load_fit_{number:02d}" for number in range(FIT_SERIES))

    @task
    def fit(self) -> None:
        """POST /fit/{series_id}, then GET /jobs/{id} until the job ends; both together are `fit to succeeded`."""
        start = time.perf_counter()
        body = {"data": points(TRAINING_POINTS)}
        with self.client.post(
            f"/fit/{next(self._names)}", json=body, name="/fit/{series_id}", catch_response=True
        ) as answer:
            if answer.status_code != 202:
                answer.failure(f"{answer.status_code}: {(answer.text or '')[:200]}")
                return
            job_id = answer.json()["job_id"]
        status = "queued"
        while status in ("queued", "running"):
            time.sleep(0.1)
            with self.client.get(f"/jobs/{job_id}", name="/jobs/{job_id}", catch_response=True) as answer:
                if answer.status_code != 200:
                    answer.failure(f"{answer.status_code}: {(answer.text or '')[:200]}")
                    raise StopUser
                status = answer.json()["status"]
        self.environment.events.request.fire(
            request_type="JOB",
            name="fit to succeeded",
            response_time=(time.perf_counter() - start) * 1000,
            response_length=0,
            exception=None if status == "succeeded" else RuntimeError(f"job ended as {status}"),
            context={},
        )
