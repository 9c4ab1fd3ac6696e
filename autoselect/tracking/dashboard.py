"""`make dashboard`: serve MLflow's own pages over the store of the runs, on loopback only."""

import os
import socket
import subprocess
import sys

from autoselect.config import ConfigError
from autoselect.tracking.errors import TrackingError
from autoselect.tracking.store import Store

HOST = "127.0.0.1"


def serve(port: int) -> int:
    """Serve on 127.0.0.1 until interrupted; return the exit code of the server.

    Raises:
        ConfigError: the port is in use, or the store cannot be opened.
    """
    store = Store.open()
    if store.uri.startswith(("http://", "https://")):
        raise ConfigError(
            f"MLFLOW_TRACKING_URI={store.address} is a server that has the pages itself: open that "
            "address in a browser, or unset MLFLOW_TRACKING_URI for the runs of this folder"
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError(
                f"port={port} is already in use on {HOST}; choose another one: "
                "make dashboard PORT=5001"
            ) from error
    address = f"http://{HOST}:{port}"
    try:
        pages = store.leaderboards()
    except TrackingError as error:
        raise ConfigError(f"{store.address} {error.verb}: {error}; {error.fix}") from error
    print(f"MLflow pages of {store.address} on {address} (Ctrl-C ends it)")
    for name, page in pages.items():
        print(f"selectors of {name}, retention and speedup: {address}/{page}")
    sys.stdout.flush()
    command = [*server_command(store.uri), "--host", HOST, "--port", str(port)]
    return subprocess.run(command, env=server_environment(), check=False).returncode


def server_command(uri: str) -> list[str]:
    """Return the command that serves the pages of a store, without host and port."""
    return [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]


def server_environment() -> dict[str, str]:
    """Return the variables of the server, which starts no runners of MLflow's jobs unless asked.

    They are eight processes with MLflow in memory, for jobs that nothing here submits.
    """
    return {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ}
