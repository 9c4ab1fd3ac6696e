"""What can go wrong between a run and the tracking server."""

from collections.abc import Iterator
from contextlib import contextmanager

import requests
from mlflow.exceptions import MlflowException

UNREACHABLE_CODES = {
    "INTERNAL_ERROR",
    "TEMPORARILY_UNAVAILABLE",
    "SERVICE_UNDER_MAINTENANCE",
    "DEADLINE_EXCEEDED",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
}
DENIED_CODES = {"UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED", "401", "403"}
TOO_MANY_REQUESTS = 429


class TrackingError(Exception):
    """MLflow did not do what it was asked to; the message is its own.

    Args:
        message: what MLflow says.
        code: MLflow's word or the HTTP status for the kind of error.
    """

    verb: str

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code or type(self).__name__


class ServerUnreachableError(TrackingError):
    """The tracking server does not answer now; trying again later may help."""

    verb = "does not answer"


class RefusedError(TrackingError):
    """The tracking server answers, but refuses: credentials, a run it does not have, an event."""

    verb = "refuses"

    @property
    def of_credentials(self) -> bool:
        """True if the server would refuse everything else as well, until the user may do it."""
        return self.code in DENIED_CODES


@contextmanager
def tracking_errors() -> Iterator[None]:
    """Turn errors of MLflow, and of the requests that carry artefacts, into `TrackingError`s.

    Raises:
        ServerUnreachableError: trying again later may help.
        RefusedError: trying again does not help before something is corrected.
    """
    try:
        yield
    except MlflowException as error:
        unreachable = error.error_code in UNREACHABLE_CODES
        kind = ServerUnreachableError if unreachable else RefusedError
        raise kind(str(error).strip().splitlines()[0], error.error_code) from error
    except requests.HTTPError as error:
        status = 503 if error.response is None else error.response.status_code
        down = status >= 500 or status == TOO_MANY_REQUESTS
        raise (ServerUnreachableError if down else RefusedError)(str(error), str(status)) from error
    except OSError as error:  # also connections, requests, and full disks of artefact stores
        raise ServerUnreachableError(str(error)) from error
