"""What can go wrong between a run and the tracking store, and what its user can do about it."""

import errno
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from autoselect.config.extras import extra

with extra("tracking"):
    import requests
    from alembic.util import CommandError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

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


STORE_FAULT = "STORE_FAULT"
"""Code of errors during which the store refuses everything."""
DELETED = "DELETED"
"""Code of errors about a run or an experiment that somebody deleted."""


class TrackingError(Exception):
    """MLflow did not do what it was asked to; the message is its own.

    Args:
        message: what MLflow says.
        code: MLflow's word or the HTTP status for the kind of error.
        fix: what the user can do about it.
    """

    verb: str
    usual_fix: str

    def __init__(self, message: str, code: str = "", fix: str = "") -> None:
        super().__init__(message)
        self.code = code or type(self).__name__
        self.fix = fix or self.usual_fix


class ServerUnreachableError(TrackingError):
    """The store does not take anything now; trying again later may help."""

    verb = "does not answer"
    usual_fix = "start the server, correct MLFLOW_TRACKING_URI, or switch tracking off"


class RefusedError(TrackingError):
    """The store answers, but refuses: credentials, a run it does not have, an event."""

    verb = "refuses"
    usual_fix = "correct MLFLOW_TRACKING_URI, or switch tracking off"

    def __init__(self, message: str, code: str = "", fix: str = "") -> None:
        super().__init__(message, code, fix or (CREDENTIALS if code in DENIED_CODES else ""))

    @property
    def of_everything(self) -> bool:
        """True if the store would refuse everything else as well, until the user mends it."""
        return self.code in DENIED_CODES or self.code == STORE_FAULT


CREDENTIALS = (
    "correct MLFLOW_TRACKING_URI or its credentials (MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN), or switch tracking off"
)
WRITABLE = "make the database and its folder writable, or set MLFLOW_TRACKING_URI to another store"


class Fault(NamedTuple):
    """A fault of a store by what MLflow, SQLAlchemy or the system says of it."""

    said: str
    kind: type[TrackingError]
    fix: str
    code: str = STORE_FAULT


FAULTS = (
    Fault(
        r"No module named '(?P<module>[\w.]+)'",
        RefusedError,
        "install the driver of the database into this environment: pip install {package}",
    ),
    Fault(
        "out-of-date database schema|Can't locate revision",
        RefusedError,
        "back the database up and run `mlflow db upgrade URI`; if MLflow does not know its "
        "version, a newer MLflow wrote it: install that one",
    ),
    Fault(
        "in maintenance mode",
        RefusedError,
        "set MLFLOW_TRACKING_URI to a database, such as sqlite:////FOLDER/mlflow.db, and copy "
        "earlier runs with `mlflow migrate-filestore`, or set MLFLOW_ALLOW_FILE_STORE=true",
    ),
    Fault(
        "must be in (the )?'?active'? (state|lifecycle_stage)",
        RefusedError,
        "restore what was deleted: `mlflow experiments restore --experiment-id ID`, or "
        "`mlflow runs restore --run-id ID`",
        DELETED,
    ),
    Fault("readonly database|unable to open database file", RefusedError, WRITABLE),
    Fault(
        "file is not a database|malformed",
        RefusedError,
        "restore the file from a backup, or move it away, so that a new one is made",
    ),
    Fault(
        "database is locked",
        ServerUnreachableError,
        "end the process that holds the database (`fuser FILE` names it); on a network file "
        "system use an MLflow server instead",
    ),
    Fault(
        "disk is full|No space left|[Qq]uota exceeded",
        ServerUnreachableError,
        "free some space there, or set MLFLOW_TRACKING_URI to another store",
    ),
)
PACKAGES = {
    "psycopg": "psycopg[binary]",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
}
"""Packages whose name is not that of their module."""


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
        raise _explained(error, unreachable, error.error_code) from error
    except requests.HTTPError as error:
        status = 503 if error.response is None else error.response.status_code
        down = status >= 500 or status == TOO_MANY_REQUESTS
        raise (ServerUnreachableError if down else RefusedError)(str(error), str(status)) from error
    except (SQLAlchemyError, sqlite3.Error, CommandError) as error:
        raise _explained(error, isinstance(error, OperationalError | InterfaceError)) from error
    except ImportError as error:
        raise _explained(error, unreachable=False) from error
    except OSError as error:  # also connections, requests, and full disks of artefact stores
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise RefusedError(str(error), STORE_FAULT, WRITABLE) from error
        raise _explained(error, unreachable=True) from error


def _explained(error: Exception, unreachable: bool, code: str = "") -> TrackingError:
    """Return the fault of `FAULTS` that an error tells of, or else the error as it is.

    Args:
        error: what MLflow or a library under it raised.
        unreachable: True if trying again later may help with an error that is not in `FAULTS`.
        code: MLflow's word for the kind of error.
    """
    text = str(error).strip() or type(error).__name__
    message = re.sub(r"^\([\w.]+\) ", "", text.splitlines()[0])  # (sqlite3.OperationalError)
    for fault in FAULTS:
        found = re.search(fault.said, text)
        if found is not None:
            module = found.groupdict().get("module", "")
            package = PACKAGES.get(module, module)
            return fault.kind(message, fault.code, fault.fix.format(package=package))
    return (ServerUnreachableError if unreachable else RefusedError)(message, code)
