"""Makes requests up, from a seed: nearly right ones, odd ones and broken ones, and what destinations answer to them.

A case is a dict: `kind`, the `pieces` that a client sends, one after the other, whether it then `leaves` (ends its side),
whether the first request is HEAD (`head`), and the `script` of each destination: what it does with the first request of
the case, the second, and so on; the last holds for all that follow. Every case comes from a generator of its own
(`case(seed, index)`), so one can be had again without those before it.
"""

import base64
import gzip
import json
import random
import zlib

PUSH = b"/push.v1.PusherService/Push"
OK = {"ok": True}
# What follows a request on its connection: its answer shows that both sides saw the same end of the request before it.
PROBE = b"GET /probe HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n"
# A piece that stands for: wait until something has come back.
WAIT = b""

CODES = [
    "canceled", "unknown", "invalid_argument", "deadline_exceeded", "not_found", "already_exists", "permission_denied",
    "resource_exhausted", "failed_precondition", "aborted", "out_of_range", "unimplemented", "internal", "unavailable",
    "data_loss", "unauthenticated"
]


def case(seed, index, destinations=1):
    rng = random.Random(f"{seed}:{index}")
    kind = rng.choices(list(KINDS), weights=[weight for _, weight in KINDS.values()])[0]
    made = {"kind": kind, "leaves": False, "head": False, "probe": True, "script": [[OK]] * destinations}
    KINDS[kind][0](rng, made)
    return made


# -- the head ----------------------------------------------------------------------------------------------------


def request(method=b"POST", target=b"/ingest", headers=(), body=b"", version=b"HTTP/1.1", host=b"gateway", length=True):
    lines = [method + b" " + target + b" " + version]
    if host is not None:
        lines.append(b"Host: " + host)
    lines += [name + b": " + value for name, value in headers]
    if length:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def body(rng):
    size = rng.choice([0, 1, 5, 100, 1000, 5000, 70_000]) if rng.random() < 0.98 else rng.choice([300_000, 2_500_000])
    return rng.randbytes(min(size, 5000)) * max(1, size // 5000) if size else b""


def chunked(rng, data):
    out, at = [], 0
    while at < len(data):
        size = rng.choice([1, 2, 10, 100, 1000, 100_000])
        part = data[at:at + size]
        at += size
        digits = b"%x" % len(part)
        if rng.random() < 0.2:
            digits = digits.upper()
        if rng.random() < 0.1:
            digits = b"0" * rng.randrange(1, 6) + digits
        if rng.random() < 0.1:
            digits += rng.choice([b";a", b";a=b", b" ; a=b", b";a=\"q;q\"", b";", b" ", b"\t"])
        out.append(digits + b"\r\n" + part + b"\r\n")
    out.append(rng.choice([b"0"] * 8 + [b"000", b"0;last"]) + b"\r\n")
    if rng.random() < 0.15:
        out.append(rng.choice([b"X-Trailer: 1\r\n", b"A: b\r\nC: d\r\n", b"Content-Length: 3\r\n", b"X-T:\r\n"]))
    out.append(b"\r\n")
    return b"".join(out)


# -- /ingest -----------------------------------------------------------------------------------------------------

APPS = [
    "foo", "my.app-1/x_y", "a", "9app", "app.cpu", "föö", "", " foo ", "foo bar", "foo:bar", "foo\x00", "\tfoo\n", "a" * 300,
    "foo\u00a0", "\u2003foo", "foo\u200b", "foo\u0085", "\ufefffoo", "{", "}", "=", "foo\U0001f600"
]
KEYS = [
    "a", "b", "env", "zone", "service_name", "app_name", "__name__", "__session_id__", "__delta__", "A", "_", "a.b", "1a", "a-b",
    "a/b", "a b", "é", "", " a ", "ab c", "\u00a0a", "job", "pod", "team", "a" * 200
]
VALUES = [
    "1", "x", "prod", "", " ", " v ", "é", "a=b", "{", "\"q\"", "b c", "\u00a0x\u2003", "1;2", "%41", "&", "+", "\x00", "\x7f",
    "日本", "\U0001f600", "x" * 400, "a/b", "~", "\\", "'", "<>", "\r\n", "#", "?", "eu-1", "dev", "1.2.3", "İI", "ß", "ΣΑΣ", "ǅ",
    "ŉ", "ﬃ", "K", "ſ", "Ⅷ", "ά"
]


def name_bytes(rng):
    """A `name`, decoded: by the grammar, and then perhaps changed in places."""
    text = rng.choice(APPS) if rng.random() < 0.3 else rng.choice(APPS[:5])
    if rng.random() < 0.85:
        pairs = []
        for _ in range(rng.choice([0, 1, 1, 2, 3, 6])):
            key = rng.choice(KEYS) if rng.random() < 0.4 else rng.choice(KEYS[:8])
            value = rng.choice(VALUES) if rng.random() < 0.6 else rng.choice(VALUES[:3])
            pairs.append(key + rng.choice(["="] * 12 + [" = ", "==", ""]) + value)
        text += "{" + rng.choice([","] * 8 + [", ", ",,", "},", "}"]).join(pairs) + rng.choice(["}"] * 10 +
                                                                                               ["", "}}", "},", ",}"])
    data = bytearray(text.encode())
    while rng.random() < 0.25:
        at = rng.randrange(len(data) + 1)
        change = rng.choice([
            b"{", b"}", b"=", b",", b" ", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b";", b"+", b"%",
            b"&", b"_", b".", b"-", b"/", b"\x00", b"\t", b"\n", b"\xe2\x80\xa8", b"a", b"service_name=s"
        ])
        data[at:at + rng.choice([0, 0, 1])] = change
    return bytes(data)


def escaped(rng, data):
    """Percent-encodes, more or less than need be."""
    style = rng.random()
    out = bytearray()
    for byte in data:
        char = bytes([byte])
        plain = char.isalnum() or char in b"-_.~"
        if style < 0.1:
            keep = 0x21 <= byte < 0x7f and char not in b"&#%+"
        elif style < 0.2:
            keep = plain and rng.random() < 0.7
        else:
            keep = plain or (style < 0.7 and char in b"{}=,/")
        if keep:
            out += char
        elif byte == 0x20 and rng.random() < 0.5:
            out += b"+"
        elif style < 0.05 and byte > 0x7f:
            out += char
        else:
            out += b"%%%02x" % byte if rng.random() < 0.3 else b"%%%02X" % byte
    return bytes(out)


PARAMETERS = [
    b"from=1700000000", b"until=1700000010", b"format=pprof", b"format=jfr", b"sampleRate=100", b"spyName=gospy",
    b"units=samples", b"aggregationType=sum", b"x", b"x=", b"=x", b"=", b"", b"a=1", b"a=2", b"a=%zz", b"%zz=1", b"a=%4", b"a=%",
    b"a=1;b=2", b"k%3d=v%26", b"a+b=c+d", b"k=%ff", b"k=\xc3\xa9", b"k=a=b=c", b"A=1", b"~=~", b"k=%7e", b"k=*'()!", b"k=%2f/",
    b"Name=n", b"name", b"nam%65=late", b"k=[1]", b"k=%00", b"k=<>\"`|^\\", b"k=%C3%A9", b"k=:@$", b"k=?", b"k=%u0041"
]


def query(rng):
    parts = [rng.choice(PARAMETERS) for _ in range(rng.choice([0, 0, 1, 2, 3, 5, 8]))]
    if rng.random() < 0.95:
        for _ in range(rng.choice([1] * 9 + [2])):
            key = b"name" if rng.random() < 0.95 else rng.choice([b"n%61me", b"%6eame", b"NAME"])
            parts.insert(rng.randrange(len(parts) + 1), key + b"=" + escaped(rng, name_bytes(rng)))
    if rng.random() < 0.01:
        parts += [b"p=%d" % at for at in range(rng.choice([9_990, 9_999, 10_000, 10_001]))]
    text = b"&".join(parts)
    if rng.random() < 0.01:
        text += b"#frag"
    return text


CONTENT_TYPES = [
    b"application/octet-stream", b"binary/octet-stream+trie", b"multipart/form-data; boundary=abc", b"text/plain;charset=utf-8",
    b"", b"x/y; a=\"b c\"", b"TEXT/Plain", b"no slash", b"a,b", b"\xff", b"t\ta/b", b"application/x-www-form-urlencoded",
    b"x" * 3000
]


def good_target(rng):
    return b"/ingest?name=" + escaped(rng, rng.choice([b"app", b"app{env=prod,a=1}", b"svc{service_name=x}"]
                                                      )) + rng.choice([b"", b"&from=1&until=2", b"&format=pprof"])


def ingest_names(rng, made):
    text = query(rng)
    made["pieces"] = [
        request(
            target=b"/ingest" + (b"?" if text or rng.random() < 0.5 else b"") + text,
            body=body(rng) if rng.random() < 0.1 else b"body"
        )
    ]


def ingest_bodies(rng, made):
    data = body(rng)
    headers = []
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        headers.append((rng.choice([b"Content-Type", b"content-type", b"CONTENT-TYPE"]), rng.choice(CONTENT_TYPES)))
    if rng.random() < 0.2:
        headers.append((b"Content-Encoding", rng.choice([b"gzip", b"identity", b"br", b"", b"gzip, br"])))
        if rng.random() < 0.5:
            data = gzip.compress(data, mtime=0)
    for name, value in [(b"Authorization", b"Bearer t"), (b"X-Scope-OrgID", b"t"), (b"User-Agent", b"ua"),
                        (b"traceparent", b"00-1-1-00"), (b"Accept-Encoding", b"gzip"), (b"Cookie", b"a=b"),
                        (b"X-Forwarded-For", b"1.1.1.1"), (b"Upgrade", b"h2c"), (b"TE", b"trailers"), (b"Origin", b"http://x"),
                        (b"Trailer", b"X-T"), (b"Via", b"1.1 x"), (b"Range", b"bytes=0-1")]:
        if rng.random() < 0.07:
            headers.append((name, value))
    rng.shuffle(headers)
    if rng.random() < 0.35:
        head = request(target=good_target(rng), headers=[*headers, (b"Transfer-Encoding", b"chunked")], length=False)
        whole = head + chunked(rng, data)
    else:
        whole = request(target=good_target(rng), headers=headers, body=data)
    cut = rng.random()
    if cut < 0.04:
        made.update(
            pieces=[whole[:rng.randrange(whole.index(b"\r\n\r\n") + 4, len(whole)) if data else len(whole)]],
            leaves=True,
            probe=False
        )
    elif cut < 0.25:
        at = rng.randrange(len(whole))
        made["pieces"] = [whole[:at], whole[at:]]
    else:
        made["pieces"] = [whole]


def large(rng, made):
    """At and beyond limits."""
    value = b"v" * rng.choice([1000, 60_000, 65_536, 65_537, 100_000])
    name = rng.choice([
        lambda: b"app{a=" + value + b"}", lambda: b"app{" + b"k" * rng.choice([1000, 1024, 1025, 3000]) + b"=1}",
        lambda: b"app{" + b",".join(b"k%d=1" % at for at in range(rng.choice([100, 1000, 1020, 1030]))) + b"}",
        lambda: b"a" * rng.choice([1000, 60_000, 70_000]),
    ])()
    target = b"/ingest?name=" + name + (b"&x=" + b"y" * rng.choice([0, 0, 500_000, 900_000, 1_040_000, 1_100_000]))
    headers = [(b"X-Long", b"v" * rng.choice([0, 1000, 60_000, 66_000, 200_000]))] if rng.random() < 0.3 else []
    if rng.random() < 0.6:
        made["pieces"] = [request(target=target, headers=headers, body=b"body")]
        return
    label = field(rng, 1, rng.choice([b"a", b"k" * 1024, b"k" * 1025]), 0) + field(rng, 2, value, 0)
    labels = b"".join(
        field(rng, 1,
              field(rng, 1, b"l%d" % at, 0) + field(rng, 2, b"1", 0), 0) for at in range(rng.choice([0, 1000, 1023, 1024]))
    )
    data = field(rng, 1, field(rng, 1, label, 0) + labels + field(rng, 2, field(rng, 1, b"profile", 0), 0), 0)
    made["pieces"] = [request(target=PUSH, headers=[*headers, (b"Content-Type", b"application/proto")], body=data)]


PATHS = [
    b"/ingest", b"//ingest", b"/./ingest", b"/a/../ingest", b"/ingest/", b"/ingest/.", b"/ing%65st", b"/%69ngest", b"%2fingest",
    b"/%2fingest", b"/ingest%2f", b"/ingest%00", b"/INGEST", b"/pyroscope/ingest", b"/", b"", b"*", b"/ready", b"/metrics",
    b"/ingest;x", b"/ingest%3fname=a", b"/..", b"/../ingest", b"/ingest/..", b"/%2e/ingest", b"/%2e%2e/ingest", b"/ingest//",
    b"///ingest", b"/ingest/../ingest", b"http://h/ingest", b"http://h:1/ingest", b"HTTP://H/ingest", b"https://h/ingest",
    b"http:///ingest", b"http://h", b"http:/ingest", b"ftp://h/ingest", b"//h/ingest", b"ingest", b"./ingest", b"h:80",
    b"http://u:p@h/ingest", b"http://[::1]/ingest", b"/ingest%", b"/ingest%zz", b"/ing\xc3\xa9st", b"/\xff", b"/ingest\\",
    b"/ingest|", b"/ingest%20", b"/in+gest", b"/push.v1.PusherService/", b"/push.v1.PusherService",
    b"/push.v1.PusherService/Other", b"/push.v1.PusherService/Push", b"/push.v1.PusherService/Push/",
    b"/push.v1.PusherService//Push", b"/push%2ev1.PusherService/Push", b"/push.v1.pusherservice/Push",
    b"//push.v1.PusherService/Push", b"/debug/pprof/", b"/querier.v1.QuerierService/SelectMergeStacktraces", b"/v1/profiles",
    b"/ingest/x", b"/a", b"/a//b", b"/a/./b", b"/a/b/", b"/a/b//", b"/.", b"/a/..", b"/%2F/", b"/%41//b", b"/a%20//b", b"/\"<>//",
    b"/[x]//", b"/a:b//", b"/ingest?//", b"/debuginfo.v1alpha1.DebuginfoService/Nothing",
    b"/debuginfo.v1alpha1.DebuginfoService/", b"/debuginfo.v1alpha1.DebuginfoService/Upload/",
    b"/debuginfo.v1alpha1.DebuginfoService/Upload"
]
METHODS = [b"POST"] * 12 + [
    b"GET", b"HEAD", b"PUT", b"OPTIONS", b"DELETE", b"PATCH", b"TRACE", b"CONNECT", b"post", b"Post", b"FOO", b"P-OST", b"PO\tST",
    b"", b"P@ST", b"PRI", b"QUERY", b"A" * 300
]


def paths(rng, made):
    method = rng.choice(METHODS)
    target = rng.choice(PATHS)
    if rng.random() < 0.6:
        target += (b"&" if b"?" in target else
                   b"?") + rng.choice([b"name=app", b"name=app%7Ba%3D1%7D", b"", b"x=1", b"name=a;b", b"name=app&b=\"<>"])
    made["head"] = method == b"HEAD"
    version = rng.choice([b"HTTP/1.1"] * 20 + [
        b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/0.9", b"http/1.1", b"HTTP/1", b"HTTP/1.10", b"HTTPS/1.1", b"", b"HTTP/1.1 ",
        b"HTTP/3.0", b"HTTP/1.x"
    ])
    headers = [(b"Content-Type", b"application/proto")] if rng.random() < 0.3 else []
    made["pieces"] = [request(method, target, headers, rng.choice([b"", b"", b"body"]), version)]


HEADER_LINES = [
    b"X-A: 1", b"X-A:1", b"X-A:", b"X-A: ", b"X-A:\t1\t", b"X-A : 1", b" X-A: 1", b"\tX: 1", b"X-A", b": 1", b"X-A: \x01",
    b"X-A: \x7f", b"X-A: \xff", b"X\xff: 1", b"X(A): 1", b"X\"A: 1", b"X@: 1", b"X_A: 1", b"X.A: 1", b"X'A: 1", b"X A: 1",
    b"X-A: a\rb", b"X-A: a\x00b", b"Host: second", b"host: gateway", b"HOST:", b"Content-Length: 4", b"Content-Length: 5",
    b"content-length: 4", b"Content-Length: +4", b"Content-Length: -4", b"Content-Length: 4,4", b"Content-Length: 4, 4",
    b"Content-Length: 0x4", b"Content-Length: 04", b"Content-Length:", b"Content-Length: 4 ",
    b"Content-Length: 99999999999999999999", b"Content-Length: 4 4", b"Content-Length: \xb2", b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: Chunked", b"Transfer-Encoding: identity", b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: chunked, chunked", b"Transfer-Encoding:", b"Transfer-Encoding: xchunked", b"Transfer-Encoding: chunked ",
    b"Transfer-Encoding : chunked", b"Transfer-Encoding:\tchunked", b"Transfer_Encoding: chunked", b"Connection: close",
    b"Connection: keep-alive", b"Connection: Close", b"Connection: x, close", b"Connection: Upgrade\r\nUpgrade: websocket",
    b"Connection: host", b"Expect: 100-continue", b"Expect: 100-Continue", b"Expect: 200-ok", b"Expect:",
    b"Expect: 100-continue, x", b"Proxy-Connection: close", b"X-Long: " + b"v" * 9000, b"A: 1\r\n b", b"A: 1\r\n\tb", b"A: 1\n",
    b"X-Http-Method-Override: GET", b"Keep-Alive: timeout=5",
    b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
    b"Content-Type: a\r\nContent-Type: b", b"Content-Type: a\r\nX: y\r\ncontent-type: b", b"Content-Type:  a  ",
    b"Content-Type:\ta\t", b"Date: x", b"Pragma: no-cache", b"Trailer: Content-Length"
]
HOSTS = [b"gateway"] * 15 + [
    None, b"", b"a b", b"a/b", b"h:80", b"h:x", b"[::1]", b"[::1", b"h,h", b"\xff", b"h@x", b"h\"", b"h<", b"a\tb", b"h:",
    b"user:p@h", b"%41", b"h%", b"h_1", b"x" * 300, b"h|", b"h\\x", b"h^", b"h`", b"h{}", b"h#", b"h?"
]


def heads(rng, made):
    """One request whose head is odd in one to three ways."""
    target = good_target(rng) if rng.random() < 0.9 else rng.choice(PATHS)
    host = rng.choice(HOSTS)
    lines = [b"Host: " + host] if host is not None else []
    extra = [rng.choice(HEADER_LINES) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    if rng.random() < 0.02:
        extra += [b"X-%d: 1" % at for at in range(rng.choice([50, 100, 120, 130, 2000]))]
    version = rng.choice([b"HTTP/1.1"] * 6 + [b"HTTP/1.0"])
    framed = any(line.lower().startswith((b"content-length", b"transfer-encoding")) for line in extra)
    data = b"body"
    if any(b"chunked" in line.lower() for line in extra) and rng.random() < 0.8:
        data = b"4\r\nbody\r\n0\r\n\r\n"
    elif not framed or rng.random() < 0.3:
        lines.append(b"Content-Length: %d" % len(data))
    lines += extra
    if rng.random() < 0.5:
        rng.shuffle(lines)
    end = b"\n" if rng.random() < 0.03 else b"\r\n"
    start = rng.choice([b""] * 30 + [b"\r\n", b"\r\n\r\n", b"\n", b" ", b"\r"])
    gap = rng.choice([b" "] * 40 + [b"  ", b"\t"])
    whole = start + gap.join([b"POST", target, version]) + end + end.join(lines) + end + end + data
    made["pieces"] = [whole]
    if any(line.startswith(b"Expect") for line in extra) and rng.random() < 0.6:
        made["pieces"] = [whole[:-len(data)], WAIT, data]


def chunks(rng, made):
    """Chunked bodies, broken ones among them."""
    framed = bytearray(chunked(rng, body(rng)[:3000] or b"x"))
    while rng.random() < 0.6:
        at = rng.randrange(len(framed))
        if rng.random() < 0.5:
            at = framed.find(b"\r\n", at) if framed.find(b"\r\n", at) >= 0 else at
        framed[at:at + rng.choice([0, 1, 1, 2])] = rng.choice([
            b"", b"\n", b"\r", b"\r\n", b" ", b"x", b"f", b"-1", b"+1", b"0x1", b";", b"fffffffffffffffff", b"\x00"
        ])
    version = b"HTTP/1.0" if rng.random() < 0.03 else b"HTTP/1.1"
    made["pieces"] = [
        request(target=good_target(rng), headers=[(b"Transfer-Encoding", b"chunked")], length=False, version=version) +
        bytes(framed)
    ]
    # A body that goes on for ever is ended by the client.
    made["leaves"] = True


def pipelined(rng, made):
    many = [request(target=good_target(rng), body=b"body %d" % at) for at in range(rng.choice([2, 3, 5]))]
    if rng.random() < 0.5:
        many.insert(
            rng.randrange(len(many)),
            rng.choice([
                b"\r\n",
                request(b"GET", b"/ready", length=False),
                request(target=b"/ingest", body=b"x"),
                request(target=b"/nothing", body=b"xyz"),
                request(b"PUT", b"/ingest?name=a", body=b"xyz")
            ])
        )
    made["pieces"] = [b"".join(many)]


# -- Push --------------------------------------------------------------------------------------------------------


def varint(number, pad=0):
    out = bytearray()
    while True:
        low, number = number & 0x7f, number >> 7
        if number or pad > 0:
            out.append(low | 0x80)
            pad -= 0 if number else 1
        else:
            out.append(low)
            return bytes(out)


def field(rng, number, data, odd):
    """A length-delimited field; sometimes written in an odd way that means the same."""
    pad = rng.choice([1, 2, 4]) if rng.random() < odd else 0
    tag_pad = rng.choice([1, 2, 3]) if rng.random() < odd else 0
    return varint(number << 3 | 2, tag_pad) + varint(len(data), pad) + data


def junk(rng):
    """Fields that nobody knows, and some that nobody should send."""
    number = rng.choice([1, 2, 3, 4, 15, 16, 100, 536870911])
    return rng.choice([
        lambda: varint(number << 3) + varint(rng.choice([0, 1, 300, 2**64 - 1])), lambda: varint(number << 3 | 1) + b"12345678",
        lambda: varint(number << 3 | 5) + b"1234", lambda: varint((number + 3) << 3 | 2) + varint(3) + b"abc",
        lambda: varint(number << 3 | 3) + varint(1 << 3) + b"\x01" + varint(number << 3 | 4),
        lambda: varint(number << 3 | 3) + varint(2 << 3 | 3) + varint(2 << 3 | 4) + varint(number << 3 | 4),
        lambda: varint(9 << 3 | 3) + varint(8 << 3 | 4), lambda: varint(9 << 3 | 3) * 101 + varint(9 << 3 | 4) * 101,
        lambda: varint(9 << 3 | 4), lambda: varint(9 << 3 | 6), lambda: varint(9 << 3 | 7) + b"x",
        lambda: varint(0 << 3 | 2) + b"\x00", lambda: varint(9 << 3) + b"\xff" * 9 + b"\x01",
        lambda: varint(9 << 3) + b"\xff" * 9 + b"\x02", lambda: varint(9 << 3) + b"\x80" * 10 + b"\x01",
        lambda: varint(9 << 3 | 2) + varint(2**31), lambda: varint(9 << 3 | 2) + varint(2**63),
        lambda: varint(536870912 << 3 | 2) + b"\x00", lambda: b"\x80" * 5 + b"\x01",
        lambda: varint(2 << 3 | 3) + field(rng, 1, b"x", 0) + varint(2 << 3 | 4),
    ])()


LABEL_NAMES = [
    "service_name", "__name__", "a", "b", "env", "app_name", "__session_id__", "__delta__", "__profile_type__", "pod", "job",
    "team", "zone", "_", "A", "a.b", "1a", "__", "a-b", "é", "", " a", "a b", "x" * 300, "__a-b__"
]


def texts(rng, choices, plain):
    text = rng.choice(choices) if rng.random() < 0.4 else rng.choice(choices[:plain])
    data = text.encode()
    if rng.random() < 0.01:
        data += rng.choice([b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\x00"])
    return data


def push_message(rng):
    """A PushRequest in bytes, odd in places."""
    odd = rng.choice([0, 0, 0.1])
    junk_share = rng.choice([0, 0, 0, 0.04])
    out = bytearray()

    def sprinkle(target):
        if rng.random() < junk_share:
            target += junk(rng)

    for _ in range(rng.choice([0, 1, 1, 1, 1, 2, 3, 12]) if rng.random() < 0.99 else 300):
        series = bytearray()
        parts = []
        for _ in range(rng.choice([0, 1, 2, 2, 3, 4, 8])):
            label = bytearray()
            fields = [field(rng, 1, texts(rng, LABEL_NAMES, 4), odd), field(rng, 2, texts(rng, VALUES, 3), odd)]
            if rng.random() < 0.08:
                fields = rng.choice([
                    fields[:1], fields[1:], fields[::-1], [], fields + fields[:1], [field(rng, 1, b"first", odd), *fields],
                    [*fields, field(rng, 2, b"last", odd)]
                ])
            for one in fields:
                label += one
                sprinkle(label)
            parts.append(field(rng, 1, bytes(label), odd))
        for at in range(rng.choice([0, 1, 1, 1, 2, 4])):
            sample = bytearray()
            raw = field(rng, 1, rng.randbytes(rng.choice([0, 1, 20, 200, 200, 5000])), odd)
            ident = field(rng, 2, rng.choice([b"", b"id-%d" % at, b"3f2c9a52-7ad4-4c15-a83e-1a3a4e5f6071", "ü".encode()]), odd)
            fields = rng.choice([[raw]] * 4 + [[raw, ident]] * 4 +
                                [[ident, raw], [raw, raw], [], [ident], [raw, ident, ident], [ident, raw, ident]])
            for one in fields:
                sample += one
                sprinkle(sample)
            parts.append(field(rng, 2, bytes(sample), odd))
        if rng.random() < 0.1:
            parts.append(field(rng, 3, field(rng, 1, b"k", 0) + field(rng, 2, b"v", 0), odd))
        if rng.random() < 0.3:
            rng.shuffle(parts)
        for part in parts:
            series += part
            sprinkle(series)
        out += field(rng, 1, bytes(series), odd)
        sprinkle(out)
    return bytes(out)


def damaged(rng, data, share):
    data = bytearray(data)
    while data and rng.random() < share:
        at = rng.randrange(len(data))
        change = rng.randrange(4)
        if change == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            del data[at:at + rng.choice([1, 2, 10])]
        elif change == 2:
            data[at:at] = rng.randbytes(rng.choice([1, 2, 5]))
        else:
            del data[at:]
    return bytes(data)


STRINGS = [
    '""', '"x"', '"\\u0041"', '"\\u00e9"', '"\\ud83d\\ude00"', '"\\ud83d"', '"\\ude00x"', '"\\n\\t\\"\\\\\\/\\b\\f\\r"',
    '"\\x41"', '"\\u12"', '"a\tb"', '"é"', '"\\u0000"', "'x'", '"unclosed', '"svc"', '"\\U0041"', '"\\ud83d\\u0041"'
]
SCALARS = [
    '1', '-0', '1.5e3', '01', '+1', '1.', '.5', 'NaN', '-', 'true', 'false', 'null', 'True', 'nul', '1e400', '0x1', '[]', '{}',
    '[1,2,{"a":[null]}]', '""', '1e', '9' * 400
]
BASE64 = [
    "", "AA==", "AA", "AAA=", "AAA", "AAAA", "-_-_", "+/+/", "+_", "AA=", "A", "AB==", "AA===", "A A=", "AA\\n==", "====",
    "AAAAA", "aGVsbG8=", "aGVsbG8", "aGVs\\r\\nbG8=", "aGVsbG9=", "AA==AA==", "\\u0041A==", "*", "é", "-+8="
]


def json_value(rng, depth=0):
    if depth > 3 or rng.random() < 0.6:
        return rng.choice(SCALARS) if rng.random() < 0.6 else rng.choice(STRINGS)
    if rng.random() < 0.5:
        return "[" + ",".join(json_value(rng, depth + 1) for _ in range(rng.randrange(3))) + "]"
    return "{" + ",".join(f'"{rng.choice("abc")}":{json_value(rng, depth + 1)}' for _ in range(rng.randrange(3))) + "}"


def push_json(rng):
    odd = rng.choice([0, 0, 0.03, 0.1])
    gap = rng.choice(["", "", " ", "\n\t ", "\r\n"])

    def maybe(value):
        return json_value(rng) if rng.random() < odd else value

    def obj(fields):
        fields = [(name, value) for name, value in fields if value is not None]
        if rng.random() < odd:
            fields.append((rng.choice(["x", "Series", "id", "", "é", "@type", "[ext]", "a\\u0062"]), json_value(rng)))
        if fields and rng.random() < odd / 2:
            fields.append(rng.choice(fields))
        if rng.random() < 0.2:
            rng.shuffle(fields)
        return "{" + gap + ("," + gap).join(f'"{name}"{gap}:{gap}{value}' for name, value in fields
                                            ) + (rng.choice([",", "", "]"]) if rng.random() < odd / 3 else "") + gap + "}"

    def array(items):
        if rng.random() < odd / 2:
            items.append(rng.choice(["null", "1", "[]", '"x"']))
        return "[" + gap + ("," + gap).join(items) + gap + "]"

    def text(choices, plain):
        value = rng.choice(choices) if rng.random() < 0.3 else rng.choice(choices[:plain])
        return json.dumps(value, ensure_ascii=rng.random() < 0.5) if rng.random() > odd else rng.choice(STRINGS)

    series = []
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        labels = [
            maybe(
                obj([(rng.choice(["name"] * 9 + ["n\\u0061me"]), maybe(text(LABEL_NAMES, 4))), ("value", maybe(text(VALUES, 3)))])
            ) for _ in range(rng.choice([1, 2, 3]))
        ]
        samples = []
        for _ in range(rng.choice([0, 1, 1, 2])):
            coded = rng.choice(BASE64) if rng.random() < 0.3 else base64.b64encode(
                rng.randbytes(rng.choice([0, 1, 2, 3, 50, 300]))
            ).decode()
            raw = (rng.choice(["rawProfile"] * 3 + ["raw_profile", "raw\\u0050rofile"]), maybe(f'"{coded}"'))
            samples.append(maybe(obj([raw, rng.choice([("ID", maybe('"an-id"'))] * 3 + [("id", '"other"'), ("ID", None)])])))
            if rng.random() < odd / 2:
                samples[-1] = '{"rawProfile":"AA==","raw_profile":"AA=="}'
        notes = array([obj([("key", '"k"'), ("value", '"v"')])]) if rng.random() < 0.1 else None
        series.append(obj([("labels", maybe(array(labels))), ("samples", maybe(array(samples))), ("annotations", notes)]))
    whole = obj([(rng.choice(["series"] * 20 + ["s\\u0065ries"]), maybe(array(series)))])
    if rng.random() < odd:
        whole = rng.choice([
            whole + "x", whole + whole, "\ufeff" + whole, "null", "[]", "", " ", whole + " \n", "[" * 200 + "]" * 200,
            '{"x":' + "[" * 9000 + "]" * 9000 + "}", '{"x":' + "[" * 10001 + "]" * 10001 + "}", whole[:-1], '"x"', "1",
            '{"series":null}', '{"series":[]}', "{}", "{,}", "//c\n" + whole, whole + "\x00", "\x0b" + whole
        ])
    data = whole.encode("utf-8", "surrogatepass")
    return damaged(rng, data, 0.3) if rng.random() < odd else data


def zipped(rng, data):
    choice = rng.random()
    if choice < 0.6:
        return gzip.compress(data, mtime=0)
    if choice < 0.7:
        half = len(data) // 2
        return gzip.compress(data[:half], mtime=0) + gzip.compress(data[half:], mtime=0)
    whole = gzip.compress(data, compresslevel=rng.choice([0, 1, 9]), mtime=0)
    return rng.choice([
        lambda: whole + b"trailing", lambda: whole + b"\x00" * 8, lambda: whole[:-4], lambda: whole[:-8], lambda: whole[:-1],
        lambda: whole[:10], lambda: b"", lambda: whole[:-8] + b"\x00" * 4 + whole[-4:], lambda: whole[:-4] + b"\xff" * 4,
        lambda: zlib.compress(data), lambda: data, lambda: whole + whole[:5], lambda: gzip.compress(b"") + whole,
        lambda: whole + gzip.compress(b""), lambda: damaged(rng, whole, 0.7),
        lambda: whole[:3] + b"\x08" + whole[4:10] + b"name\x00" + whole[10:],
        lambda: whole[:3] + b"\x04" + whole[4:10] + b"\x02\x00xy" + whole[10:],
        lambda: whole[:3] + b"\x10" + whole[4:10] + b"comment\x00" + whole[10:],
        lambda: whole[:3] + b"\x02" + whole[4:10] + b"\x00\x00" + whole[10:], lambda: whole[:3] + b"\xe0" + whole[4:],
        lambda: whole[:2] + b"\x07" + whole[3:],
    ])()


PUSH_TYPES = [b"application/proto"] * 10 + [
    b"APPLICATION/Proto", b"application/proto; charset=utf-8", b"application/proto;", b" application/proto",
    b"application/proto ;", b"application/x-protobuf", b"application/connect+proto", b"application/protobuf", b"", b"text/plain",
    b"application/grpc", b"application/grpc+proto", b"application/grpc-web-text", b"application/grpc-web-text+proto",
    b"application/proto; a=b", b"application/", b"proto", b"application/proto, application/json", b"application/proto;charset",
    b"\xff"
]
JSON_TYPES = [b"application/json"] * 8 + [
    b"application/json; charset=utf-8", b"application/json;charset=UTF-8", b"application/json; charset=\"utf-8\"",
    b"application/JSON; Charset=utf-8", b"application/json; charset=latin1", b"application/json;", b"application/json; a=b",
    b"application/json; charset=utf-8; a=b", b"application/json ; charset=utf-8", b"application/json; charset=utf-8;",
    b"application/json; charset=utf-8; charset=utf-8", b"application/json;charset=utf8", b"application/json; charset=",
    b"application/json; charset*=utf-8''utf-8", b"application/connect+json", b"text/json",
    b"application/json; charset=\"UTF\\-8\""
]
WEB_TYPES = [
    b"application/grpc-web", b"application/grpc-web+proto", b"application/grpc-web+proto", b"application/grpc-web+json",
    b"application/grpc-web+json; charset=utf-8", b"Application/GRPC-Web+Proto", b"application/grpc-web+proto; charset=utf-8",
    b"application/grpc-web; a=b"
]
TIMEOUTS = [
    b"1000", b"5000", b"30000", b"0", b"-1", b"", b"abc", b"1.5", b"9999999999", b"99999999999", b"+500", b" 5000", b"05000",
    b"1e3", b"0x10", b"1_000", b"10000 ", b"-0", b"00000000001"
]
ENCODINGS = [b"gzip"] * 6 + [
    b"identity", b"", b"br", b"GZIP", b"gzip, gzip", b"deflate", b"x-gzip", b" gzip", b"gzip,identity", b"zstd"
]
ACCEPTS = [
    b"gzip", b"identity", b"gzip;q=1.0", b"br, gzip", b"br gzip", b"gzip;q=0", b"*", b"", b"GZIP", b"deflate,gzip", b"br,,gzip",
    b"gzip ;q=1", b"\tgzip"
]


def push_headers(rng):
    headers = []
    if rng.random() < 0.3:
        headers.append((b"Connect-Protocol-Version", rng.choice([b"1"] * 6 + [b"2", b"", b"1 ", b"01", b"one", b"1, 1"])))
    if rng.random() < 0.2:
        headers.append((b"Connect-Timeout-Ms", rng.choice(TIMEOUTS)))
    if rng.random() < 0.25:
        headers.append((b"Accept-Encoding", rng.choice(ACCEPTS)))
    for name, value in [(b"Connect-Protocol-Version", b"1"), (b"Accept", b"*/*"), (b"Connect-Accept-Encoding", b"gzip"),
                        (b"Connect-Content-Encoding", b"gzip"), (b"Accept-Encoding", b"br"), (b"Content-Encoding", b"identity"),
                        (b"Connect-Timeout-Ms", b"4000"), (b"Content-Type", b"application/json"), (b"User-Agent", b"x"),
                        (b"Origin", b"http://x")]:
        if rng.random() < 0.02:
            headers.append((name, value))
    return headers


def sent(rng, made, target, headers, data):
    """The request in one piece or in several, with a length or in chunks, whole or cut short."""
    rng.shuffle(headers)
    if rng.random() < 0.2:
        whole = request(target=target, headers=[*headers, (b"Transfer-Encoding", b"chunked")], length=False) + chunked(rng, data)
    else:
        whole = request(target=target, headers=headers, body=data)
    made["pieces"] = [whole]
    luck = rng.random()
    if luck < 0.02 and data:
        made.update(pieces=[whole[:rng.randrange(whole.index(b"\r\n\r\n") + 4, len(whole))]], leaves=True, probe=False)
    elif luck < 0.1:
        at = rng.randrange(len(whole))
        made["pieces"] = [whole[:at], whole[at:]]


def push_target(rng):
    return rng.choice(
        [PUSH] * 30 +
        [PUSH + b"?x=1", b"http://h" + PUSH, PUSH + b"?connect=v1", b"/push.v1.PusherService/%50ush", PUSH + b"?name=a;b"]
    )


def push_proto(rng, made):
    data = push_message(rng)
    if rng.random() < 0.1:
        data = damaged(rng, data, 0.6)
    headers = push_headers(rng)
    if rng.random() < 0.97:
        headers.append((b"Content-Type", rng.choice(PUSH_TYPES)))
    if rng.random() < 0.25:
        coding = rng.choice(ENCODINGS)
        headers.append((b"Content-Encoding", coding))
        data = zipped(rng, data) if coding.strip() == b"gzip" or rng.random() < 0.3 else data
    sent(rng, made, push_target(rng), headers, data)


def push_as_json(rng, made):
    data = push_json(rng)
    headers = [*push_headers(rng), (b"Content-Type", rng.choice(JSON_TYPES))]
    if rng.random() < 0.1:
        headers.append((b"Content-Encoding", b"gzip"))
        data = zipped(rng, data)
    sent(rng, made, push_target(rng), headers, data)


def push_grpc_web(rng, made):
    content_type = rng.choice(WEB_TYPES)
    message = push_json(rng) if b"json" in content_type.lower() else push_message(rng)
    headers = [(b"Content-Type", content_type)]
    coding = rng.choice(ENCODINGS) if rng.random() < 0.3 else None
    if coding is not None:
        headers.append((b"Grpc-Encoding", coding))
    flags = 0
    if coding == b"gzip" and rng.random() < 0.8 or rng.random() < 0.03:
        flags, message = 1, zipped(rng, message)
    if rng.random() < 0.05:
        flags = rng.choice([2, 3, 0x80, 0x81, 0xff])

    def frame(flags, data, length=None):
        return bytes([flags]) + (len(data) if length is None else length).to_bytes(4, "big") + data

    data = frame(flags, message)
    if rng.random() < 0.15:
        data = rng.choice([
            b"", data + data, data + b"x", data[:-1], data[:4], data + frame(0, b""),
            frame(0, b"") + data,
            frame(flags, message,
                  len(message) + 10), data + frame(0x80, b"a: b\r\n"),
            frame(0, b""),
            frame(1, b""),
            frame(flags, message, 2**32 - 1), data + b"\x00\x00", data[:5],
            frame(0x80, b"")
        ])
    if rng.random() < 0.2:
        headers.append((
            b"Grpc-Timeout",
            rng.choice([
                b"5S", b"100m", b"5000m", b"0S", b"", b"5", b"S", b"-1S", b"123456789S", b"12345678S", b"1H", b"99999999H", b"5s",
                b"1.5S", b"+5S", b"5 S", b"1n", b"9000000u"
            ])
        ))
    if rng.random() < 0.2:
        headers.append((b"Grpc-Accept-Encoding", rng.choice(ACCEPTS)))
    for name, value in [(b"X-Grpc-Web", b"1"), (b"X-User-Agent", b"grpc-web"), (b"Content-Encoding", b"gzip"),
                        (b"TE", b"trailers"), (b"Connect-Protocol-Version", b"2"), (b"Accept-Encoding", b"gzip"),
                        (b"Grpc-Timeout", b"3S"), (b"Connect-Timeout-Ms", b"abc")]:
        if rng.random() < 0.03:
            headers.append((name, value))
    sent(rng, made, PUSH, headers, data)


def debuginfo(rng, made):
    """What the gateways pass on to their first destination; each message is small and plain."""
    base = b"/debuginfo.v1alpha1.DebuginfoService/"
    build = rng.choice([b"abcdef0123456789", b"ab", b"x%2fy", b"a.b-c_d", b"A" * 40])
    method = rng.choice([b"POST"] * 8 + [b"GET", b"PUT"])
    if rng.random() < 0.4:
        made["pieces"] = [
            request(method, base + b"Upload/" + build, [(b"Content-Type", b"application/octet-stream")],
                    body(rng)[:20_000])
        ]
        return
    if rng.random() < 0.5:
        name, message = b"UploadFinished", field(rng, 1, build, 0)
    else:
        name, message = b"ShouldInitiateUpload", field(rng, 1, field(rng, 1, build, 0) + field(rng, 4, b"name", 0), 0)
    content_type = rng.choice([b"application/proto"] * 4 + [b"application/grpc-web+proto", b"text/plain", b"application/json"])
    if b"grpc-web" in content_type:
        message = b"\0" + len(message).to_bytes(4, "big") + message
    if b"json" in content_type:
        message = b'{"gnuBuildId":"ab"}' if name == b"UploadFinished" else b'{"file":{"gnuBuildId":"ab"}}'
    made["pieces"] = [request(method, base + name, [(b"Content-Type", content_type)], message)]


# -- what destinations answer --------------------------------------------------------------------------------------

# Answers as bytes; `TYPE` is the content type that the route wants. Those without a length end with the connection.
RAW_ANSWERS = [
    "HTTP/1.1 200 OK\r\nTYPETransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTYPETransfer-Encoding: chunked\r\n\r\n0\r\nX: trailer\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTYPETransfer-Encoding: chunked\r\n\r\n5\r\nab",
    "HTTP/1.1 500 No\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
    "HTTP/1.0 200 OK\r\nTYPE\r\n", "HTTP/1.0 200 OK\r\nTYPEContent-Length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\nTYPE\r\n",
    "HTTP/1.1 200 OK\r\nTYPEConnection: close\r\n\r\n", "HTTP/1.1 200 OK\r\nTYPEContent-Length: 10\r\n\r\nshort",
    "HTTP/1.1 400 Bad\r\nContent-Length: 10\r\n\r\nshort",
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTYPEContent-Length: 0\r\n\r\n",
    "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nTYPEContent-Length: 0\r\n\r\n",
    "HTTP/1.1 200\r\nTYPEContent-Length: 0\r\n\r\n", "HTTP/1.1 200 \r\nTYPEContent-Length: 0\r\n\r\n",
    "HTTP/1.1 403\r\nContent-Length: 0\r\n\r\n", "garbage", "\r\n\r\n", "HTTP/1.1 20 OK\r\n\r\n",
    "HTTP/1.1 099 Low\r\nContent-Length: 0\r\n\r\n", "HTTP/2.0 200 OK\r\nTYPEContent-Length: 0\r\n\r\n",
    "HTTP/1.2 200 OK\r\nTYPEContent-Length: 0\r\n\r\n", "HTTP/1.1 200 OK\nTYPEContent-Length: 0\n\n",
    "HTTP/1.1 200 OK\r\nTYPEContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTYPEContent-Length: 0\r\nContent-Length: 2\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTYPEContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTYPEContent-Length: +0\r\n\r\n", "HTTP/1.1 200 OK\r\nTYPEX-A: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTYPEX-A : a\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\nTYPEno colon\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTYPEX-Long: " + "v" * 70_000 + "\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTYPETransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTYPEContent-Length: 0\r\n\r\ntrailing",
    "HTTP/1.1 200 OK\r\nTYPEContent-Encoding: gzip\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTYPEContent-Encoding: br\r\nContent-Length: 0\r\n\r\n",
]


def act(rng, push):
    status = rng.choice([
        200, 201, 202, 204, 299, 301, 302, 303, 304, 307, 308, 400, 401, 403, 404, 405, 408, 409, 412, 413, 415, 418, 422, 425,
        429, 499, 500, 501, 502, 503, 504, 505, 599, 600, 999
    ])
    luck = rng.random()
    if luck < 0.3:
        return OK
    if luck < 0.34:
        return {"close": True}
    if luck < 0.343:
        return {"slow": True}
    if luck < 0.42:
        return {"raw": rng.choice(RAW_ANSWERS)}
    if push and luck < 0.65:
        code = rng.choice(CODES + ["nonsense", "", "CANCELED", "code_20"])
        http = rng.choice([400, 401, 403, 404, 409, 422, 429, 499, 500, 501, 503, 504, 200])
        text = rng.choice([
            json.dumps({"code": code, "message": "because"}),
            json.dumps({"code": code}),
            json.dumps({"message": "m", "code": code, "details": []}),
            json.dumps({"code": 3}), "{", "", "null", "[]",
            json.dumps({"Code": code}),
            json.dumps({"code": code, "message": "m" * 5000}),
            json.dumps({"message": "m" * 5000, "code": code}),
            json.dumps({"code": code, "message": "because", "more": 1}),
            json.dumps({"code": code, "code ": 1})
        ])
        kind = rng.choice(["application/json"] * 5 + [
            "application/json; charset=utf-8", "application/json;charset=utf-8", "text/plain", "application/proto",
            "Application/JSON", "application/json; a=b"
        ])
        step = {"status": http, "headers": [["Content-Type", kind]], "body": text}
        if rng.random() < 0.15:
            step["headers"].append(["Content-Encoding", "gzip"])
            step["coded"] = True
        return step
    if push and luck < 0.75:
        return {
            "status": 200, "headers": [["Content-Type", kind]] if (
                kind := rng.choice([
                    "application/proto", "application/json", "text/html", "", "application/proto; charset=utf-8",
                    "Application/Proto", "application/grpc", "application/", "application/x"
                ])
            ) else [], "body": rng.choice(["", "", "", "{}", "hello", "\n\x00", "<html>"])
        }
    headers = [["Content-Type", "text/plain"]]
    if status in (301, 302, 303, 307, 308) and rng.random() < 0.8:
        headers.append([
            "Location",
            rng.choice([
                "/elsewhere", "/elsewhere?name=kept", "elsewhere", "?x=1", "//127.0.0.1:1/x", "http://127.0.0.1:1/", "", "/a b",
                ":", "ftp://x/"
            ])
        ])
    if status in (429, 503) and rng.random() < 0.2:
        headers.append(["Retry-After", "0"])
    if rng.random() < 0.05:
        headers.append(rng.choice([["Content-Encoding", "gzip"], ["Connection", "close"], ["X-Y", "z"], ["Grpc-Status", "3"]]))
    return {"status": status, "headers": headers, "body": rng.choice(["", "no", "x" * 5000, '{"code":"resource_exhausted"}'])}


def one_series(rng):
    """One series: for several, Alloy asks several times, and a script of several steps would mean something else."""
    label = field(rng, 1, b"service_name", 0) + field(rng, 2, b"svc", 0)
    return field(rng, 1, field(rng, 1, label, 0) + field(rng, 2, field(rng, 1, b"profile", 0), 0), 0)


def answers(rng, made):
    push = rng.random() < 0.5
    if push:
        data = one_series(rng)
        if rng.random() < 0.2:
            made["pieces"] = [
                request(
                    target=PUSH,
                    headers=[(b"Content-Type", b"application/grpc-web+proto")],
                    body=b"\0" + len(data).to_bytes(4, "big") + data
                )
            ]
        elif rng.random() < 0.2:
            made["pieces"] = [
                request(
                    target=PUSH,
                    headers=[(b"Content-Type", b"application/json")],
                    body=b'{"series":[{"labels":[{"name":"a","value":"b"}],"samples":[{"rawProfile":"AAAA"}]}]}'
                )
            ]
        else:
            made["pieces"] = [request(target=PUSH, headers=[(b"Content-Type", b"application/proto")], body=data)]
    else:
        made["pieces"] = [request(target=good_target(rng), headers=[(b"Content-Type", b"text/plain")], body=b"body")]
    made["script"] = [[act(rng, push) for _ in range(rng.choice([1, 1, 1, 2, 3]))] for _ in made["script"]]


# What is made, by which function, how often.
KINDS = {
    "names": (ingest_names, 25), "bodies": (ingest_bodies, 10), "paths": (paths, 12), "heads": (heads, 14), "chunks": (chunks, 5),
    "pipelined": (pipelined, 2), "large": (large, 1), "proto": (push_proto, 22), "json": (push_as_json, 16),
    "grpc-web": (push_grpc_web, 10), "debuginfo": (debuginfo, 3), "answers": (answers, 10)
}

# -- settings --------------------------------------------------------------------------------------------------------


def settings(seed, number):
    """How a lane's gateways are set up: those of `drawn`, and every fourth lane speaks HTTP/2."""
    found = {**drawn(seed, number), "http2": number % 4 == 3, "user": "", "tracing": "", "chain": False, "writers": False}
    if number and number % 4 != 1:
        rng = random.Random(f"{seed}:more:{number}")
        found.update(tracing=rng.choice(TRACINGS), chain=rng.random() < 0.4, writers=rng.random() < 0.4)
        if not found["endpoint"]:
            found.update(endpoint=rng.choice(ENDPOINTS), user=rng.choice(["", "", "u:p@", "u%40x:%C3%A9%2F:@", "user@", ":p@"]))
    return found


TRACINGS = [
    "", "", "tracing {\n  }", "tracing {\n    jaeger_propagator = false\n    trace_context_propagator = false\n  }"
]
ENDPOINTS = [
    "", 'headers = { "x-lower" = "v", "X-B" = " spaced " }', 'headers = { "X-Scope-OrgID" = "a|b", "X-U" = "\u00e9" }',
    'headers = {}', 'http_headers = { "X-A" = ["1", "2"], "x-b" = ["3"] }', "enable_http2 = false", "enable_http2 = true",
    'retry_on_http_429 = true\n    follow_redirects = true', 'proxy_from_environment = false', "headers = { Accept = `x`, }",
    'headers = { "X-Joined" = "a" + "b", X_Bare = `c` }',
    'max_backoff_retries = 1', '// a comment\n    /* another */ debug_info_upload_timeout = "5s"'
]


def drawn(seed, number):
    """How many destinations, external labels, relabel rules, path of the URL."""
    rng = random.Random(f"{seed}:lane:{number}")
    if number == 0:
        return {"destinations": 1, "external": {}, "rules": [], "path": "", "endpoint": "", "dead": False}
    return {
        "endpoint": rng.choice([
            "", "", "retry_on_http_429 = false", "follow_redirects = false",
            'headers = { "X-Scope-OrgID" = "team", "X-Empty" = "" }', 'basic_auth {\n username = "u"\n password = "p:é"\n }',
            'bearer_token = "token"', 'authorization {\n type = "Custom"\n credentials = "c"\n }'
        ]), "destinations": rng.choice([1, 1, 2]), "dead": rng.random() < 0.1,
        "external": rng.choice([{}, {"zone": "z1", "a": "outer"}, {"a": ""}, {"service_name": "outer"}, {"service_name": ""},
                                {"__name__": "outer", "__kept__": "1"}, {"app_name": "", "x.y": "é z"}]),
        "rules": [rule(rng) for _ in range(rng.choice([0, 1, 2, 3, 5]))],
        "path": rng.choice(["", "/", "/base", "/base/", "/a//b/", "/a/../b", "/%41b"]),
    }


def rule(rng):
    names = [
        "service_name", "__name__", "a", "b", "env", "app_name", "__session_id__", "pod", "job", "team", "zone", "A", "_",
        "missing"
    ]
    some = lambda: [rng.choice(names) for _ in range(rng.choice([1, 1, 2]))]
    regex = lambda: rng.choice([
        "(.*)", "(.+)", "x", "prod|dev", "(.)(.*)", "[a-z]+", ".*;.*", "(?i)PROD", "", "(?P<first>.).*", "a|b|env|pod", "__.*",
        "\\w+", "(?s).*\n?.*", "\\p{L}+", "[^é]*", "(a*)*", "1", "\\x{e9}|[\\x{78}]", "\\p{^Lu}+", "(?i:prod)", "^prod$",
        "\\Aprod\\z", "(?m)^x$", "a{,3}", "[[:alpha:]]+", "\\Qa=b\\E", "\\x78", ".{2,4}", "x*?", "(?U)(x+)(.*)", "[^\\s]+",
        "\\bprod\\b", "(x)|(1)", "[]x]", "(?P<first>x)(?P<second>.*)"
    ])
    action = rng.choice(
        ["replace"] * 4 +
        ["keep", "drop", "keepequal", "dropequal", "hashmod", "labelmap", "labeldrop", "labelkeep", "lowercase", "uppercase"]
    )
    made = {"action": action}
    if action in ("labeldrop", "labelkeep"):
        made["regex"] = regex() if action == "labeldrop" else rng.choice(["service_name|__name__|a|b|env", "[a-z_]+", ".*"])
        return made
    if action == "labelmap":
        return {
            **made, "regex": rng.choice(["(.*)_name", "(a|b)", "__(.*)__", "(.)(.*)"]),
            "replacement": rng.choice(["$1", "x_$1", "${1}y", "$1_$2"])
        }
    made["source_labels"] = some()
    if action in ("keepequal", "dropequal"):
        return {**made, "source_labels": some()[:1], "target_label": rng.choice(names)}
    if action not in ("hashmod", "lowercase", "uppercase") and rng.random() < 0.9:
        made["regex"] = regex()
    if action in ("keep", "drop"):
        # Not everything, if it can be had.
        made["regex"] = rng.choice(["x|", "dev", "b.*", "prod"]
                                   ) if action == "drop" else rng.choice(["[^d]*", ".*", "(?:[^x].*)?"])
        return made
    made["target_label"] = rng.choice(["out", "a", "b", "service_name", "__name__", "app_name", "${1}", "x_$1", "a.b", "env"]
                                      ) if action == "replace" else rng.choice(["out", "a", "service_name"])
    if action == "hashmod":
        return {**made, "modulus": rng.choice([1, 2, 10, 1000003])}
    if action == "replace":
        made["replacement"] = rng.choice([
            "$1", "", "v", "$2-$1", "${first}", "$$", "$1x", "${1}x", "é", "$", "a$0", "$1$2", "$$1", "${", "${}", "$-$1", "$é",
            "$10", "${1", "$first-", "$_1", "x$"
        ])
        if rng.random() < 0.2:
            made["separator"] = rng.choice([";", "", "--", "é"])
    return made
