"""A server of a small model, as a program: `python -m tests.real_model.server WEIGHTS [TEMPLATE]`.

It prints its address once it answers, and ends when its stdin does: with whoever started it, however that ends.
"""

import sys
from pathlib import Path

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.hostnames = ["127.0.0.1"]
params.port = 0
# One thread computes: on a machine that is busy, several wait for each other longer than they compute.
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.n_parallel = 2
params.n_ctx = 4096
params.use_jinja = True
if len(sys.argv) > 2:
    params.chat_template = Path(sys.argv[2]).read_text(encoding="utf-8")

server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
