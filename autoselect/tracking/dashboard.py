"""`make dashboard`: serve MLflow's own pages over the store of the runs, on loopback only."""

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
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store.uri]
    return subprocess.run([*command, "--host", HOST, "--port", str(port)], check=False).returncode
