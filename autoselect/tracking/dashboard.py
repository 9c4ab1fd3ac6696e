"""`make dashboard`: serve MLflow's own pages over this folder's store, on loopback only."""

import socket
import subprocess
import sys

from autoselect.config import ConfigError
from autoselect.tracking.store import Store, default_uri

HOST = "127.0.0.1"


def serve(port: int) -> int:
    """Serve on 127.0.0.1 until interrupted; return the exit code of the server.

    Raises:
        ConfigError: the port is in use.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError(
                f"port={port} is already in use on {HOST}; choose another one: "
                "make dashboard PORT=5001"
            ) from error
    uri = default_uri()
    address = f"http://{HOST}:{port}"
    print(f"MLflow pages of {uri} on {address} (Ctrl-C ends it)")
    for name, page in Store(uri).leaderboards().items():
        print(f"selectors of {name}, retention and speedup: {address}/{page}")
    sys.stdout.flush()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    return subprocess.run([*command, "--host", HOST, "--port", str(port)], check=False).returncode
