"""Requests of HTTP/2: those of `generate` carried over, gRPC, and fields and frames that are odd in themselves.

A case has, besides what `generate` says, the `streams` that it opens, the last of them for the probe, and `http1`: the same
request in HTTP/1.1, from which the table of accepted differences reads what was asked.
"""

import random

import generate
from http2 import (
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PADDED, PING, PRIORITIZED, PRIORITY, PUSH_PROMISE, RST_STREAM,
    SETTINGS, WINDOW_UPDATE, block, frame, opening
)

# What may be sent before the other side's settings are known: its window.
BODY_BYTES_MAX = 60_000


def case(seed, index, destinations=1):
    rng = random.Random(f"{seed}:http2:{index}")
    kind = rng.choices(list(KINDS), weights=[weight for _, weight in KINDS.values()])[0]
    made = {"kind": kind, "leaves": False, "head": False, "probe": False, "script": [[generate.OK]] * destinations}
    KINDS[kind][0](rng, made)
    return made


def carried_over(rng, made):
    """A request of HTTP/1.1 that can be said in HTTP/2, too."""
    while True:
        one = {**made, "leaves": False, "probe": True}
        rng.choices(*zip(*CARRIED))[0](rng, one)
        if found := said(one):
            break
    made.update(head=one["head"], script=one["script"])
    sent(rng, made, *found)


def said(one):
    """Method, target, fields and body of a case; None if it is cut short, broken or too large."""
    raw = b"".join(one["pieces"])
    if one["leaves"]:
        return None
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    parts = first.split(b" ")
    if len(parts) != 3:
        return None
    fields = []
    for line in lines:
        name, _, value = line.partition(b": ")
        name = name.lower()
        if name == b"transfer-encoding":
            body = unchunked(body)
        elif name == b"content-length":
            fields.append((name, b"%d" % len(body)))
        elif name not in (b"host", b"upgrade", b"te"):
            fields.append((name, value))
    return (parts[0], parts[1], fields, body) if len(body) <= BODY_BYTES_MAX and len(raw) < 900_000 else None


def unchunked(data):
    out = b""
    while True:
        line, _, data = data.partition(b"\r\n")
        size = int(line.split(b";")[0].strip(), 16)
        if size == 0:
            return out
        out, data = out + data[:size], data[size + 2:]


def grpc(rng, made):
    one = {**made}
    generate.push_grpc_web(rng, one)
    while not (found := said(one)):
        one = {**made}
        generate.push_grpc_web(rng, one)
    method, target, fields, body = found
    fields = [(name, value.replace(b"-web", b"").replace(b"-Web", b"") if name == b"content-type" else value)
              for name, value in fields if name != b"content-length" or rng.random() < 0.1]
    if rng.random() < 0.9:
        fields.append((b"te", b"trailers"))
    if rng.random() < 0.05:
        method = rng.choice([b"GET", b"PUT"])
    if rng.random() < 0.1:
        target = rng.choice([
            b"/push.v1.PusherService/Other", b"/push.v1.PusherService/", b"/grpc.health.v1.Health/Check",
            b"/debuginfo.v1alpha1.DebuginfoService/Nothing", b"/push.v1.PusherService/Push/", b"/ingest"
        ])
    if rng.random() < 0.1:
        # One series, as in `generate.answers`.
        message = generate.one_series(rng)
        fields = [(name, value) for name, value in fields if not name.startswith((b"grpc", b"content"))]
        fields.append((b"content-type", b"application/grpc"))
        method, target, body = b"POST", generate.PUSH, b"\0" + len(message).to_bytes(4, "big") + message
        made["script"] = [[generate.act(rng, True)] for _ in made["script"]]
    sent(rng, made, method, target, fields, body)


def grpc_debuginfo(rng, made):
    name, message = rng.choice([(b"UploadFinished", generate.field(rng, 1, b"ab", 0)),
                                (b"ShouldInitiateUpload", generate.field(rng, 1, generate.field(rng, 1, b"ab", 0), 0))])
    kind = rng.choice([b"application/grpc"] * 5 + [b"application/grpc+proto", b"application/grpc+json"])
    if b"json" in kind:
        message = b'{"gnuBuildId":"ab"}' if name == b"UploadFinished" else b'{"file":{"gnuBuildId":"ab"}}'
    body = b"\0" + len(message).to_bytes(4, "big") + message
    if rng.random() < 0.1:
        body = rng.choice([b"", body[:-1], body + body, body[:3], b"\1" + body[1:]])
    if rng.random() < 0.3:
        made["script"] = [[generate.act(rng, True)] for _ in made["script"]]
    sent(
        rng, made, b"POST", b"/debuginfo.v1alpha1.DebuginfoService/" + name, [(b"content-type", kind), (b"te", b"trailers")], body
    )


ODD_FIELDS = [
    (b"X-Upper", b"1"), (b"", b"1"), (b"x y", b"1"), (b"x:", b"1"), (b":x", b"1"), (b"x\x00", b"1"), (b"x\xff", b"1"),
    (b"x", b"\x00"), (b"x", b"a\r\nb: c"), (b"x", b"\n"), (b"x", b" v "), (b"x", b"\tv"), (b"x", b"\xff"), (b"x", b"\x01"),
    (b"x", b"\x7f"), (b"connection", b"close"), (b"connection", b"keep-alive"), (b"keep-alive", b"1"), (b"proxy-connection", b"x"),
    (b"transfer-encoding", b"chunked"), (b"upgrade", b"h2c"), (b"te", b"trailers"), (b"te", b"gzip"), (b"te", b"trailers, gzip"),
    (b"te", b""), (b"host", b"gateway"), (b"host", b"other"), (b"host", b"a b"), (b"host", b""), (b"cookie", b"a=b"),
    (b"content-length", b"4"), (b"content-length", b"5"), (b"content-length", b"3"), (b"content-length", b"+4"),
    (b"content-length", b""), (b"content-length", b"4, 4"), (b"content-length", b"04"), (b"content-length", b"x"),
    (b"content-length", b"99999999999999999999"), (b"expect", b"100-continue"), (b"expect", b"200-ok"), (b"expect", b""),
    (b"trailer", b"x-t"), (b"trailer", b"content-length"), (b":status", b"200"), (b":protocol", b"websocket"),
    (b":method", b"POST"), (b":path", b"/ingest"), (b":scheme", b"http"), (b":authority", b"gateway"), (b"http2-settings", b"AAMA"),
    (b"content-type", b"a/b"), (b"content-encoding", b"gzip"), (b"x" * 300, b"v" * 20_000), (b"x_a", b"1"), (b"x(", b"1")
]
PSEUDO = {
    b":method": [b"POST", b"post", b"", b"GET", b"P OST", b"PO\x00", b"FOO", b"CONNECT", b"OPTIONS", b"HEAD"],
    b":scheme": [b"http", b"https", b"HTTP", b"", b"ftp", b"h p", b"1", b"http:"],
    b":authority": [b"gateway", b"", b"a b", b"h:80", b"h:x", b"[::1]", b"u@h", b"h/x", b"\xff", b"h,h", b"h_1", b"h%41", b"%zz"],
    b":path": [
        b"", b"*", b"/", b"ingest", b"http://h/ingest?name=app", b"//ingest?name=app", b"/ingest?name=app#f", b"/ingest?name=a b",
        b"/ingest?name=app\xc3\xa9", b"/ingest?name=a\x00", b"/ing%65st?name=app", b"/ingest%?name=app", b"/ingest?name=\"<>\"",
        b"?name=app", b"/./ingest?name=app", b"/ingest/../ingest?name=app", b"/ingest;x?name=app", b"/ingest?", b"/ingest"
    ]
}


def odd_fields(rng, made):
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"gateway"), (b":path", b"/ingest?name=app{a=1}")]
    luck = rng.random()
    if luck < 0.35:
        at = rng.randrange(4)
        name = fields[at][0]
        fields[at] = (name, rng.choice(PSEUDO[name]))
        made["head"] = fields[0][1] == b"HEAD"
    elif luck < 0.5:
        changed = rng.randrange(4)
        kind = rng.randrange(3)
        if kind == 0:
            del fields[changed]
        elif kind == 1:
            fields.append(fields[changed])
        else:
            fields.insert(rng.randrange(4), (b"x-early", b"1"))
    rest = [(b"content-type", b"text/plain")] if rng.random() < 0.5 else []
    if luck > 0.4:
        rest += [rng.choice(ODD_FIELDS) for _ in range(rng.choice([1, 1, 2]))]
    if rng.random() < 0.05:
        rest += [(b"x-%d" % at, b"1") for at in range(rng.choice([50, 100, 150, 1000]))]
    data = rng.choice([b"body", b"body", b""])
    trailers = None
    if rng.random() < 0.25:
        trailers = rng.choice([[(b"x-t", b"1")], [(b":status", b"1")], [(b"X", b"1")], [(b"content-length", b"4")], [],
                               [(b"connection", b"close")], [(b"te", b"trailers")]])
    made["http1"] = generate.request(dict(fields).get(b":method", b""), dict(fields).get(b":path", b""), rest, data, length=False)
    send(rng, made, fields + rest, data, trailers)


def odd_frames(rng, made):
    """Good requests, and frames between them that are allowed or not."""
    kind = rng.choice([
        lambda: frame(PING, 0, 0, b"12345678"), lambda: frame(PING, 1, 0, b"12345678"), lambda: frame(PING, 0, 0, b"1234"),
        lambda: frame(PING, 0, 1, b"12345678"), lambda: frame(SETTINGS, 0, 0, b""), lambda: frame(SETTINGS, 1, 0, b""),
        lambda: frame(SETTINGS, 1, 0, b"123456"), lambda: frame(SETTINGS, 0, 0, b"12345"), lambda: frame(SETTINGS, 0, 1, b""),
        lambda: frame(SETTINGS, 0, 0, b"\x00\x02\x00\x00\x00\x02"), lambda: frame(SETTINGS, 0, 0, b"\x00\x04\x80\x00\x00\x00"),
        lambda: frame(SETTINGS, 0, 0, b"\x00\x05\x00\x00\x00\x01"), lambda: frame(SETTINGS, 0, 0, b"\x00\x99\x00\x00\x00\x01"),
        lambda: frame(WINDOW_UPDATE, 0, 0, b"\x00\x00\x00\x00"), lambda: frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"),
        lambda: frame(WINDOW_UPDATE, 0, 1, b"\x00\x00\x00\x01"), lambda: frame(WINDOW_UPDATE, 0, 9, b"\x00\x00\x00\x01"),
        lambda: frame(WINDOW_UPDATE, 0, 1, b"\x00\x00"), lambda: frame(PRIORITY, 0, 9, b"\x00\x00\x00\x00\x10"),
        lambda: frame(PRIORITY, 0, 9, b"\x00\x00\x00\x09\x10"), lambda: frame(PRIORITY, 0, 0, b"\x00\x00\x00\x01\x10"),
        lambda: frame(PRIORITY, 0, 9, b"\x00"), lambda: frame(0x42, 0xff, 0, b"unknown"), lambda: frame(0x42, 0, 9, b""),
        lambda: frame(DATA, 0, 9, b"idle"), lambda: frame(DATA, 0, 0, b"x"), lambda: frame(DATA, 1, 1, b"late"),
        lambda: frame(RST_STREAM, 0, 9, b"\x00\x00\x00\x08"), lambda: frame(RST_STREAM, 0, 0, b"\x00\x00\x00\x08"),
        lambda: frame(RST_STREAM, 0, 1, b"\x00"), lambda: frame(PUSH_PROMISE, 4, 1, b"\x00\x00\x00\x02"),
        lambda: frame(CONTINUATION, 4, 1, b""), lambda: frame(HEADERS, 5, 2, block([(b":method", b"GET")])),
        lambda: frame(HEADERS, 5, 0, block([(b":method", b"GET")])), lambda: frame(GOAWAY, 0, 0, bytes(8)),
        lambda: frame(HEADERS, 5, 1, block([(b"again", b"1")])), lambda: frame(HEADERS, 5, 9, b"\xff\xff\xff\xff\xff\xff\xff"),
        lambda: frame(HEADERS, 13, 9, b"\x20abc"), lambda: frame(0x42, 0, 0, bytes(20_000)), lambda: b"garbage garbage garbage",
        lambda: b""
    ])()
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"gateway"), (b":path", b"/ingest?name=app")]
    send(rng, made, fields, b"body", between=kind)
    made["http1"] = b"POST /ingest?name=app HTTP/1.1\r\nHost: gateway\r\n\r\nbody"


def sent(rng, made, method, target, fields, body):
    """A request, with a length or without."""
    if rng.random() < 0.3:
        fields = [(name, value) for name, value in fields if name != b"content-length"]
    pseudo = [(b":method", method), (b":scheme", b"http"), (b":authority", b"gateway"), (b":path", target)]
    made["http1"] = generate.request(method, target, fields, body, length=False)
    made["head"] = method == b"HEAD"
    rng.shuffle(pseudo)
    send(rng, made, pseudo + fields, body)


def send(rng, made, fields, body, trailers=None, between=b""):
    out = bytearray(opening())
    head = block(fields)
    last = END_STREAM if not body and trailers is None and rng.random() < 0.8 else 0
    out += header_frames(rng, 1, head, last)
    if not last:
        at = 0
        while at < len(body) or at == 0:
            part = body[at:at + rng.choice([16_384, 16_384, 1000, 10])] if len(body) < 3000 else body[at:at + 16_384]
            at += max(1, len(part))
            ends = at >= len(body) and trailers is None
            if rng.random() < 0.1:
                pad = rng.choice([0, 1, 200])
                if len(part) + pad < 16_000:
                    out += frame(DATA, PADDED | ends, 1, bytes([pad]) + part + bytes(pad))
                    continue
            out += frame(DATA, int(ends), 1, part)
            if rng.random() < 0.03:
                out += frame(DATA, 0, 1, b"") if not ends else b""
        if trailers is not None:
            out += frame(HEADERS, END_HEADERS | END_STREAM, 1, block(trailers))
    out += between
    probe = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"probe"), (b":path", b"/probe")]
    out += frame(HEADERS, END_HEADERS | END_STREAM, 3, block(probe))
    made["streams"] = [1, 3]
    made["seen"] = f"{fields} {body[:40]} {trailers} {between[:60]}"
    cut = rng.randrange(len(out)) if rng.random() < 0.1 else len(out)
    made["pieces"] = [piece for piece in (bytes(out[:cut]), bytes(out[cut:])) if piece]


def header_frames(rng, stream, head, last):
    """A header block in one frame or in several, padded or with a priority."""
    parts, at = [], 0
    while at < len(head) or not parts:
        size = 16_000 if len(head) > 2000 or rng.random() < 0.8 else rng.randrange(1, 50)
        parts.append(head[at:at + size])
        at += size
    flags, first = last, parts[0]
    if rng.random() < 0.05:
        flags, first = flags | PRIORITIZED, b"\x00\x00\x00\x00\x10" + first
    if rng.random() < 0.05:
        flags, first = flags | PADDED, b"\x05" + first + bytes(5)
    parts[0] = first
    out = b""
    for at, part in enumerate(parts):
        ends = END_HEADERS if at == len(parts) - 1 else 0
        out += frame(HEADERS if at == 0 else CONTINUATION, (flags if at == 0 else 0) | ends, stream, part)
    return out


CARRIED = [(generate.ingest_names, 20), (generate.ingest_bodies, 10), (generate.paths, 12), (generate.large, 1),
           (generate.push_proto, 16), (generate.push_as_json, 12), (generate.push_grpc_web, 8), (generate.debuginfo, 3),
           (generate.answers, 8)]
# What is made, by which function, how often.
KINDS = {
    "h2": (carried_over, 60), "h2-grpc": (grpc, 25), "h2-debuginfo": (grpc_debuginfo, 3), "h2-fields": (odd_fields, 12),
    "h2-frames": (odd_frames, 6)
}
