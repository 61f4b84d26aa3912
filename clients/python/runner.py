"""Carries out the calls of clients/run with the Python client."""

import concurrent.futures
import json
import pathlib
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent / "gen"))

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from jelou.facade.v1 import (batch_service_pb2, capacity_service_pb2, error_pb2, message_service_pb2,  # noqa: F401
                             notification_service_pb2, send_service_pb2)

import jelou_facade

_output = threading.Lock()
_channels = {}
_dialing = threading.Lock()


def main():
    with concurrent.futures.ThreadPoolExecutor(max_workers=64) as pool:
        for line in sys.stdin:
            pool.submit(carry_out, json.loads(line))


def carry_out(command):
    def reply(**what):
        with _output:
            print(json.dumps({"id": command["id"], **what}), flush=True)

    try:
        if command.get("repeat"):
            reply(seconds=measure(command))
            return
        call(command, lambda m: reply(message=json_format.MessageToDict(m, preserving_proto_field_name=True)))
        reply(status={"code": "OK"})
    except grpc.RpcError as error:
        reply(status=status_of(error))
    except Exception as error:  # a runner never dies of one command
        reply(status={"code": "UNKNOWN", "message": repr(error)})


def status_of(error):
    f = jelou_facade.explain(error)
    status = {"code": f.code, "message": f.message, "reason": f.reason, "domain": f.domain, "metadata": f.metadata, "fields": f.fields}
    if f.retry_delay is not None:
        status["retry_delay_ms"] = round(f.retry_delay * 1000)
    return status


def channel_of(command):
    key = json.dumps([command["address"], command.get("tls"), command.get("bare")])
    with _dialing:
        if key not in _channels:
            credentials = credentials_of(command.get("tls"))
            if not command.get("bare"):
                _channels[key] = jelou_facade.connect(command["address"], credentials)
            elif credentials:
                _channels[key] = grpc.secure_channel(command["address"], credentials)
            else:
                _channels[key] = grpc.insecure_channel(command["address"])
        return _channels[key]


def credentials_of(tls):
    if not tls:
        return None
    read = lambda name: pathlib.Path(tls[name]).read_bytes() if tls.get(name) else None
    return grpc.ssl_channel_credentials(read("ca"), read("key"), read("cert"))


def parse(command):
    service, name = command["rpc"].split("/")
    method = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    kind = message_factory.GetMessageClass(method.input_type)
    return method, [json_format.ParseDict(r, kind()) for r in command["requests"]]


def callable_of(channel, command, method):
    kinds = {(False, False): channel.unary_unary, (False, True): channel.unary_stream, (True, True): channel.stream_stream}
    return kinds[method.client_streaming, method.server_streaming](
        "/" + command["rpc"],
        request_serializer=message_factory.GetMessageClass(method.input_type).SerializeToString,
        response_deserializer=message_factory.GetMessageClass(method.output_type).FromString)


def call(command, received):
    method, requests = parse(command)
    make = callable_of(channel_of(command), command, method)
    options = {"metadata": list((command.get("metadata") or {}).items())}
    if command.get("timeout_ms"):
        options["timeout"] = command["timeout_ms"] / 1000
    if not method.server_streaming:
        received(make(requests[0], **options))
        return
    left = threading.Event()
    stream = make(upload(requests, command.get("keep_open"), left) if method.client_streaming else requests[0], **options)
    try:
        seen = {}
        for message in stream:
            received(message)
            for field, _ in message.ListFields():
                seen[field.name] = seen.get(field.name, 0) + 1
            wanted = command.get("cancel_after")
            if wanted and all(seen.get(kind, 0) >= n for kind, n in wanted.items()):
                stream.cancel()
    finally:
        left.set()


def upload(requests, keep_open, left):
    yield from requests
    if keep_open:
        left.wait()


def measure(command):
    method, requests = parse(command)
    make = callable_of(channel_of(command), command, method)

    def some(_):
        for i in range(command["repeat"] // command["concurrency"]):
            request = type(requests[0])()
            request.CopyFrom(requests[i % len(requests)])
            make(request)

    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(max_workers=command["concurrency"]) as pool:
        list(pool.map(some, range(command["concurrency"])))
    return time.monotonic() - start


if __name__ == "__main__":
    main()
