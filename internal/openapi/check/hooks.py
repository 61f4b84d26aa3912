"""What Schemathesis has to know beside service/openapi.json: what the document can say in words only."""

import itertools
import json
import re

import schemathesis

LINES = "application/x-ndjson"

# The rules that Swagger 2.0 has no keyword for, as an error's BadRequest tells them. Who keeps all others must be served.
WORDS_ONLY = re.compile("|".join([
    ".*must not contain the character U[+]0000",
    ".*labels: must be ",
    ".*: must be different once normalised",
    "page_token: is not of an answer with these filters",
    "after_cursor: is not a cursor of this batch",
    "(.*[.])?(expire|schedule)_time: must ",
    ".*: (exactly one field is required in oneof|only one of the oneof's fields may be set)",
    ".*: is required for ",
    "items.*[.]sequence: must be ",
    "request_id: (differs from the|the) Idempotency-Key header",
    "request_id: must be empty with validate_only",
    ".*: must not be empty or blank",
    ".*[.]raw: must (not )?have ",
    "open: must be the first message of the stream",
]))


@schemathesis.hook
def before_load_schema(context, raw_schema):
    for path in raw_schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("default")  # it stands for statuses that are not known yet: none of those may come
            # A stream is described by its line; here it is an array of them.
            if LINES in operation.get("produces", []):
                ok = operation["responses"]["200"]
                ok["schema"] = {"type": "array", "items": ok["schema"]}
            if LINES in operation.get("consumes", []):
                body = operation["parameters"][0]
                body["schema"] = {"type": "array", "items": body["schema"], "minItems": 1}
                body["x-examples"] = {name: [json.loads(line) for line in text.splitlines()] for name, text in body["x-examples"].items()}
    for definition in raw_schema["definitions"].values():
        if "properties" in definition:
            # Answers may grow for callers, but not beside the document of the same server.
            definition["additionalProperties"] = False
            for name, schema in definition["properties"].items():
                # A member that is null is as good as missing.
                if name not in definition.get("required", []):
                    schema["x-nullable"] = True


@schemathesis.serializer(LINES)
def write_lines(context, value):
    lines = value if isinstance(value, list) else [value]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@schemathesis.deserializer(LINES)
def read_lines(context, response):
    return [json.loads(line) for line in response.content.splitlines()]


@schemathesis.deserializer("text/event-stream")
def read_events(context, response):
    """Reads events as the lines that they stand for: the member's name and its value."""
    events = [dict(line.split(": ", 1) for line in event.split("\n")) for event in response.text.split("\n\n") if event]
    return [{event["event"]: json.loads(event["data"])} for event in events]


accept = itertools.cycle([LINES, "text/event-stream"])


@schemathesis.hook
def before_call(context, case, kwargs):
    if re.search(":(watch|stream)$", case.path):
        case.headers["Grpc-Timeout"] = "200m"  # or most would not end
        case.headers["Accept"] = next(accept)
    elif re.fullmatch("[0-9]+[mun]", case.headers.get("Grpc-Timeout", "")):
        case.headers["Grpc-Timeout"] = "5S"  # 504 is right for less, and says nothing


@schemathesis.check
def valid_data_breaks_no_rule(ctx, response, case):
    """Sharper than positive_data_acceptance, which takes every 400 or none: only what cannot be said by a schema may be refused."""
    if response.status_code != 400 or case.meta is None or not case.meta.generation.mode.is_positive:
        return
    error = response.json()["error"]
    if error["details"][0]["reason"] not in ("INVALID_FIELD", "INVALID_JSON"):
        return  # the state does not allow it, or Jelou refused it
    told = [f"{v['field']}: {v['description']}" for d in error["details"] for v in d.get("field_violations", [])] or [error["message"]]
    unsaid = [t for t in told if not WORDS_ONLY.match(t)]
    assert not unsaid, f"the document allows what the server refuses: {unsaid}"
