"""What the training process answers: apart from what it computes with, so that reading an answer imports neither."""

from __future__ import annotations

from dataclasses import dataclass


class TrainingError(Exception):
    """A failure with a meaning to the worker."""


class RegistryUnavailableError(TrainingError):
    """MLflow, or the object store behind it, does not answer."""


class UntrainableError(TrainingError):
    """No attempt at this job can succeed; the message says why."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A model that the training process has in hand.

    Attributes:
        load_s: seconds the points took to be read.
        fit_s: seconds the fit took.
    """

    load_s: float
    fit_s: float


@dataclass(frozen=True, slots=True)
class Registered:
    """A model version in the registry.

    Attributes:
        version: its number.
        run_id: of the run it came from.
        register_s: seconds the registry took.
    """

    version: int
    run_id: str
    register_s: float
