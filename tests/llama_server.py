"""Run llama.cpp's own server: ``python llama_server.py MODEL.gguf`` prints its address."""

from __future__ import annotations

import sys

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.hostnames = ["127.0.0.1"]
params.port = 0  # any that is free
params.n_ctx = 1024  # half of it for each of two slots
params.n_parallel = 2
params.verbosity = 0
params.warmup = False
params.cpuparams.n_threads = 1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()  # until whoever started it closes its end
