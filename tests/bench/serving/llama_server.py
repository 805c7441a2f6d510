"""llama.cpp's own server, from the package xllamacpp. Runs in llama.cpp's environment.

python llama_server.py FILE PORT THREADS CLIENTS
"""

from __future__ import annotations

import signal
import sys

import xllamacpp


def main() -> None:
    file, port, threads, clients = sys.argv[1], *map(int, sys.argv[2:5])
    settings = xllamacpp.CommonParams()
    settings.model.path = file
    settings.model_alias = {"large"}
    settings.hostnames = ["127.0.0.1"]
    settings.port = port
    settings.n_parallel = clients
    settings.n_ctx = 1024 * clients
    settings.cont_batching = True
    settings.cpuparams.n_threads = threads
    settings.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(settings)
    print(server.listening_address, flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
