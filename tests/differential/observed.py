"""What was seen, read for its meaning: answers and arrivals, and in what two of them differ."""

import base64
import gzip
import json

# Of an answer, what a client may rely on. The rest (Date, Content-Length beside a body, Connection) is transport.
ANSWER_HEADERS = [
    "content-type", "location", "allow", "accept-post", "content-encoding", "accept-encoding", "x-content-type-options",
    "grpc-status", "grpc-encoding", "grpc-accept-encoding", "retry-after", "vary", "server", "upgrade", "www-authenticate",
    "trailer"
]
# Of a request that arrives, what is not the same in any two runs, or is compared in another way: it has to be there.
VARYING_HEADERS = ["user-agent", "x-alloy-id", "host", "content-length", "connect-timeout-ms"]
# The program around Alloy's components makes no spans.
IGNORED_HEADERS = ["uber-trace-id", "traceparent"]
CODES = [
    "canceled", "unknown", "invalid_argument", "deadline_exceeded", "not_found", "already_exists", "permission_denied",
    "resource_exhausted", "failed_precondition", "aborted", "out_of_range", "unimplemented", "internal", "unavailable",
    "data_loss", "unauthenticated"
]


def different_answers(a, o):
    if a is None or o is None:
        return f"{status(a)}, {status(o)}"
    if a["status"] != o["status"]:
        return f"status {status(a)}, {status(o)}"
    if told(a) != told(o):
        theirs, ours = told(a), told(o)
        names = [name for name in ANSWER_HEADERS if theirs.get(name) != ours.get(name)]
        return f"status {a['status']}: " + "; ".join(f"{name} {theirs.get(name)}, {ours.get(name)}" for name in names)
    if content(a) != content(o):
        return f"status {a['status']}: body {str(content(a))[:100]!r}, {str(content(o))[:100]!r}"
    return None


def content(answer):
    """The body's meaning: decompressed, Connect errors by their code, gRPC-Web by frames."""
    data = base64.b64decode(answer["body"])
    headers = dict(answer["headers"])
    if headers.get("content-encoding") == "gzip" and data:
        data = gzip.decompress(data)
    kind = headers.get("content-type", "")
    if kind.startswith("application/grpc"):
        return frames(data)
    if kind == "application/json" and answer["status"] != 200:
        try:
            return {"code": json.loads(data)["code"]}
        except (ValueError, KeyError):
            pass
    return data.decode("latin-1")


def frames(data):
    found = []
    while data:
        size = int.from_bytes(data[1:5], "big")
        message = data[5:5 + size]
        if data[0] & 1:
            message = gzip.decompress(message)
        if data[0] & 0x80:
            message = b"".join(line for line in sorted(message.splitlines(True)) if not line.startswith(b"grpc-message:"))
        found.append((data[0] & 0x7e, message.decode("latin-1"), len(data) >= 5 + size))
        data = data[5 + size:]
    return found


def told(answer):
    headers = answer["headers"]
    return {name: values for name in ANSWER_HEADERS if (values := [value for key, value in headers if key == name])}


def status(answer):
    if answer is None:
        return "none"
    return answer["status"] or dict(answer["headers"]).get("ended", 0)


def code(answer):
    """The Connect or gRPC code of an answer; None if it is none."""
    if answer is None:
        return None
    headers = dict(answer["headers"])
    if "grpc-status" in headers:
        return CODES[int(headers["grpc-status"]) - 1] if headers["grpc-status"] != "0" else None
    found = content(answer)
    return found.get("code") if isinstance(found, dict) else None


def different_arrivals(context, theirs, ours):
    (a_push, a_rest), (o_push, o_rest) = split(theirs), split(ours)
    try:
        a_series = [series for request in a_push for series in series_of(request)]
        o_series = [series for request in o_push for series in series_of(request)]
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        return f"Push: {error}"
    if not context.plain or context.case["leaves"]:
        a_series, o_series = distinct(a_series), distinct(o_series)
    if a_series != o_series:
        at = next((at for at, (a, o) in enumerate(zip(a_series, o_series)) if a != o), min(len(a_series), len(o_series)))
        return f"series {len(a_series)}, {len(o_series)}; the {at}th {str(a_series[at:at + 1])[:300]}, {str(o_series[at:at + 1])[:300]}"
    for name, look in [("method", lambda one: one["method"]), ("target", lambda one: one["target"]), ("headers", kept)]:
        a, o = distinct([look(one) for one in a_push]), distinct([look(one) for one in o_push])
        if a != o:
            return f"Push: {name} {a}, {o}"
    look = lambda one: (one["method"], one["target"], kept(one), order_of_content_types(one), one["body"])
    a_rest, o_rest = [look(one) for one in a_rest], [look(one) for one in o_rest]
    if distinct(a_rest) != distinct(o_rest):
        a_rest, o_rest = distinct(a_rest), distinct(o_rest)
        at = next((at for at, (a, o) in enumerate(zip(a_rest, o_rest)) if a != o), min(len(a_rest), len(o_rest)))
        if at < len(a_rest) and at < len(o_rest):
            names = ["method", "target", "headers", "content types", "body"]
            part = next(part for part in range(5) if a_rest[at][part] != o_rest[at][part])
            return f"{names[part]} {str(a_rest[at][part])[:400]}, {str(o_rest[at][part])[:400]}"
        return f"requests {len(a_rest)}, {len(o_rest)}: {str((a_rest[at:] or o_rest[at:])[0][:4])[:300]}"
    if len(theirs) != len(ours) and (not a_push or not context.plain):
        return f"attempts {len(theirs)}, {len(ours)}"
    return None


def split(requests):
    pushes = [one for one in requests if one["target"].endswith("/push.v1.PusherService/Push")]
    return pushes, [one for one in requests if one not in pushes]


def distinct(things):
    found = []
    for thing in things:
        if thing not in found:
            found.append(thing)
    return found


def kept(request):
    """The headers of a request that arrived, as far as they are compared."""
    return sorted([name, "*" if name in VARYING_HEADERS else value] for name, value in request["headers"]
                  if name not in IGNORED_HEADERS and not (name, value) == ("accept-encoding", "gzip"))


def order_of_content_types(request):
    return [value for name, value in request["headers"] if name == "content-type"]


def series_of(request):
    """The series of a Push that arrived: labels in order, samples in order, other fields."""
    found = []
    for number, series in fields_of(base64.b64decode(request["body"])):
        if number != 1:
            found.append(("field", number, series))
            continue
        labels, samples, others = [], [], []
        for inner, data in fields_of(series):
            parts = merged(data)
            if inner == 1:
                labels.append((parts.pop(1, b"").decode(), parts.pop(2, b"").decode()))
            elif inner == 2:
                samples.append((parts.pop(1, b"").hex(), parts.pop(2, b"").decode()))
            else:
                others.append(inner)
            others += parts
        found.append((tuple(labels), tuple(samples), tuple(others)))
    return found


def merged(message):
    found = {}
    for number, data in fields_of(message):
        found[number] = data
    return found


def fields_of(message):
    """The fields of a protobuf message that has only length-delimited ones."""
    at = 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7f) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        tag = number()
        if tag & 7 != 2:
            raise ValueError(f"tag {tag}")
        size = number()
        if at + size > len(message):
            raise ValueError("cut short")
        yield tag >> 3, message[at:at + size]
        at += size
