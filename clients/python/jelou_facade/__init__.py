"""Connects to jelou-facade: with a request_id on every send, so that retries are safe, with the published retries and
deadlines, and with errors that read as the API means them."""

import dataclasses
import pathlib
import uuid

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

SERVICE_CONFIG = (pathlib.Path(__file__).parents[2] / "service_config.json").read_text()

# The requests that send, and the field that holds what they send with.
_SENDS = {"SendMessageRequest": "", "SendNotificationRequest": "", "ReplayBatchRequest": "", "CreateBatchRequest": "spec"}


def connect(target, credentials=None, options=()):
    """A channel for the generated stubs; without credentials it is not encrypted."""
    options = [("grpc.service_config", SERVICE_CONFIG), *options]
    if credentials is None:
        channel = grpc.insecure_channel(target, options)
    else:
        channel = grpc.secure_channel(target, credentials, options)
    return grpc.intercept_channel(channel, _RequestIds())


@dataclasses.dataclass
class Failure:
    """What an error of the API says beside its gRPC code. An error of another origin has an empty reason."""

    code: str
    message: str
    reason: str = ""
    domain: str = ""
    metadata: dict = dataclasses.field(default_factory=dict)
    fields: list = dataclasses.field(default_factory=list)
    retry_delay: float | None = None  # seconds to wait before the call is repeated; None: a retry does not help


def explain(error: grpc.RpcError) -> Failure:
    """Reads the details of an error."""
    failure = Failure(error.code().name, error.details() or "")
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        for kind, read in _DETAILS.items():
            message = kind()
            if detail.Is(kind.DESCRIPTOR) and detail.Unpack(message):
                read(failure, message)
    return failure


def _read_info(failure, info):
    failure.reason, failure.domain, failure.metadata = info.reason, info.domain, dict(info.metadata)


def _read_retry(failure, retry):
    failure.retry_delay = retry.retry_delay.ToTimedelta().total_seconds()


def _read_fields(failure, request):
    failure.fields = [v.field for v in request.field_violations]


_DETAILS = {
    error_details_pb2.ErrorInfo: _read_info,
    error_details_pb2.RetryInfo: _read_retry,
    error_details_pb2.BadRequest: _read_fields,
}


class _RequestIds(grpc.UnaryUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):
    """Gives every send that has none an id of its own. It stands outside of gRPC's retries: all attempts have one id."""

    def intercept_unary_unary(self, continuation, details, request):
        return continuation(details, _identified(request))

    def intercept_stream_stream(self, continuation, details, requests):
        return continuation(details, map(_identified, requests))


def _identified(request):
    name = request.DESCRIPTOR.name
    if name == "StreamBatchRequest" and request.open.WhichOneof("batch") == "spec":
        _set_if_empty(request.open.spec)
    elif name in _SENDS and not getattr(request, "validate_only", False):
        _set_if_empty(getattr(request, _SENDS[name]) if _SENDS[name] else request)
    return request


def _set_if_empty(message):
    message.request_id = message.request_id or str(uuid.uuid4())
