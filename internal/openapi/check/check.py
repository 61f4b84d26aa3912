"""Holds service/openapi.json to its specification, and a running server to service/openapi.json.

It starts jelousim and jelou-facade out of the folder of its first argument and lets Schemathesis call every operation, by
schemathesis.toml and hooks.py. What follows is for Schemathesis, for example --include-operation-id=ListSends --seed=2.
"""

import contextlib
import datetime
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

import openapi_spec_validator

HERE = pathlib.Path(__file__).resolve().parent
DOCUMENT = HERE.parents[2] / "service/openapi.json"
PROGRAMS = pathlib.Path(sys.argv[1]).resolve()
KEY = "a-key-of-this-run"
SCHEMATHESIS = [pathlib.Path(sys.executable).with_name("schemathesis"), "--config-file", HERE / "schemathesis.toml", "run"]

# Jelou takes what it can and at once: the run is about the facade's answers.
SIMULATOR = {
    "companies": [{"client_id": "check", "client_secret": "check", "bots": [{"id": "demo"}]}],
    "templates": [{"element_name": "order_ready", "language": "es", "params": 2}],
    "everyone_open": True,
    "rate": {"requests": 1000},
    "processing": {"min": "1ms", "max": "2ms"},
}


def facade(jelou):
    return {
        "ledger": {"path": "ledger.db"},
        "companies": [{
            "id": "check", "base_url": jelou, "bots": ["demo"], "client_id_file": "credential", "client_secret_file": "credential",
            "allowance": {"requests": 1000},
        }],
        "callers": [{"name": "check", "keys": [{"sha256": hashlib.sha256(KEY.encode()).hexdigest()}], "companies": ["*"], "may_resolve": True}],
    }


def prepared(rest):
    """Makes what some operations need to have something to do: a send and batches that wait. Gives their ids as variables of the configuration."""
    later = (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)).isoformat()
    send = {"user_id": "593991234567", "message": {"text": {"text": "Hola"}}}
    batch = {"spec": {"bot_id": "demo", "options": {"schedule_time": later}}, "items": [send]}

    def post(path, body):
        request = urllib.request.Request(rest + path, json.dumps(body).encode(), {"Content-Type": "application/json", "X-Api-Key": KEY})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    return {
        "SEND": post("/v1/bots/demo/messages", send | {"mode": "QUEUE", "options": {"schedule_time": later}})["send"]["send_id"],
        "BATCH": post("/v1/batches", batch)["batch"]["batch_id"],
        "BATCH_TO_CANCEL": post("/v1/batches", batch)["batch"]["batch_id"],
    }


@contextlib.contextmanager
def started(folder, program, flags, prefix):
    """Gives what follows the prefix in the line by which a server says where it serves."""
    log = folder / f"{program}.log"
    with log.open("w") as stderr, subprocess.Popen([PROGRAMS / program, *flags], cwd=folder, stdout=subprocess.PIPE, stderr=stderr, text=True) as server:
        try:
            for line in server.stdout:
                if line.startswith(prefix):
                    yield line.removeprefix(prefix).strip()
                    return
            sys.exit(f"{program} ended before it said {prefix}: {log.read_text()}")
        finally:
            server.terminate()


def main():
    openapi_spec_validator.validate(json.loads(DOCUMENT.read_text()))
    print(f"{DOCUMENT.name} is valid", flush=True)
    with tempfile.TemporaryDirectory(prefix="jelou-openapi-") as name:
        folder = pathlib.Path(name)
        (folder / "credential").write_text("check\n")
        (folder / "simulator.json").write_text(json.dumps(SIMULATOR))
        simulator = ["-config", "simulator.json", "-addr", "127.0.0.1:0", "-control-addr", "127.0.0.1:0"]
        with started(folder, "jelousim", simulator, "jelousim api=") as line:
            (folder / "facade.json").write_text(json.dumps(facade(line.split()[0])))
            server = ["serve", "--config", "facade.json", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0"]
            with started(folder, "jelou-facade", server, "REST ") as rest:
                environment = os.environ | {"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(HERE), "KEY": KEY} | prepared(rest)
                return subprocess.call([*SCHEMATHESIS, f"{rest}/openapi.json", *sys.argv[2:]], env=environment, cwd=folder)


sys.exit(main())
