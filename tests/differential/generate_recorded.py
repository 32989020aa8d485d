"""Requests of real SDKs (tests/data/corpus), changed in one to three places: the request line, the query, header lines, the
framing, the body, and for a Push its message and its dress."""

import base64
import gzip
import json
import pathlib
import random
import re
import zlib

import generate
from generate import PUSH, WAIT, damaged, field, request, varint
from observed import fields_of

CORPUS = pathlib.Path(__file__).resolve().parent.parent / "data" / "corpus"


def load():
    """Method, target, header lines and body, without its framing, of every recorded request."""
    found = []
    for path in sorted(CORPUS.glob("*/*.http")):
        head, _, body = path.read_bytes().partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        method, target, _ = first.split(b" ")
        if any(re.match(rb"(?i)transfer-encoding", line) for line in lines):
            out = b""
            while size := int(body.partition(b"\r\n")[0], 16):
                body = body.partition(b"\r\n")[2]
                out, body = out + body[:size], body[size + 2:]
            body = out
        lines = [line for line in lines if not re.match(rb"(?i)(transfer-encoding|content-length):", line)]
        found.append((method, target, lines, body))
    return found


REQUESTS = load()


def case(seed, index, destinations=1):
    rng = random.Random(f"{seed}:recorded:{index}")
    made = {"kind": "", "leaves": False, "head": False, "probe": True, "script": [[generate.OK]] * destinations}
    method, target, lines, body = rng.choice(REQUESTS)
    framing = rng.choice(["length", "length", "chunked"])
    one = {"method": method, "target": target, "lines": list(lines), "body": body, "framing": framing}
    is_push = target == PUSH
    made["kind"] = "recorded-push" if is_push else "recorded-ingest"
    own = [change_message, change_dress] if is_push else [change_query, change_query]
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        rng.choices([change_line, *own, change_body, change_path], [4, 5, 3, 1, 1])[0](rng, one)
    finish(rng, made, one)
    return made


def finish(rng, made, one):
    lines, body = one["lines"], one["body"]
    if one["framing"] == "chunked":
        name = rng.choice([b"Transfer-Encoding: chunked", b"transfer-encoding: chunked"])
        lines, sent = [*lines, name], generate.chunked(rng, body)
    else:
        name = rng.choice([b"Content-Length: %d", b"content-length: %d", b"CONTENT-LENGTH:%d"])
        lines, sent = [*lines, name % len(body)], body
    if rng.random() < 0.3:
        rng.shuffle(lines)
    head = b"\r\n".join([one["method"] + b" " + one["target"] + b" HTTP/1.1", *lines]) + b"\r\n\r\n"
    made["head"] = one["method"] == b"HEAD"
    luck = rng.random()
    if luck < 0.05:
        made["pieces"] = [head + sent + head + sent]
    elif luck < 0.08:
        made["pieces"] = [head + sent + rng.choice([b"\r\n", b"\n", b"x", b"\x00", b"GET / HTTP/1.1\r\n"])]
    elif luck < 0.12:
        made["pieces"] = [head.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"), WAIT, sent]
    elif luck < 0.16 and sent:
        made.update(pieces=[(head + sent)[:rng.randrange(len(head), len(head + sent))]], leaves=True, probe=False)
    elif luck < 0.3:
        at = sorted(rng.randrange(len(head + sent)) for _ in range(3))
        whole = head + sent
        made["pieces"] = [piece for piece in (whole[:at[0]], whole[at[0]:at[1]], whole[at[1]:at[2]], whole[at[2]:]) if piece]
    else:
        made["pieces"] = [head + sent]


# -- the head ----------------------------------------------------------------------------------------------------

ADDED = [
    b"Accept: application/json", b"Accept-Encoding: gzip", b"Accept-Encoding: br;q=1, gzip;q=0.5", b"Authorization: Basic dTpw",
    b"X-Scope-OrgID: tenant", b"x-scope-orgid: a|b", b"Content-Encoding: gzip", b"Content-Encoding: identity",
    b"Connect-Protocol-Version: 1", b"Connect-Timeout-Ms: 2500", b"X-Forwarded-Proto: https", b"Forwarded: for=1.1.1.1",
    b"Cookie: a=b; c=d", b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", b"uber-trace-id: 1:2:0:1",
    b"baggage: a=b", b"Content-Language: de", b"Content-Disposition: attachment", b"Content-MD5: x", b"Date: Thu, 01 Jan 1970",
    b"If-None-Match: *", b"Range: bytes=0-3", b"Max-Forwards: 0", b"Priority: u=1", b"X-Http-Method: GET", b"Referer: http://x/",
    b"TE: trailers", b"Proxy-Authorization: Basic x", b"Connection: close", b"Connection: keep-alive", b"X-Prometheus: 1",
    b"Content-Type: application/json", b"Content-Type: application/proto", b"Content-Type: multipart/form-data; boundary=\"a b\"",
    b"Content-Type: multipart/mixed", b"X-Empty:", b"x-long: " + b"v" * 5000
]


def change_line(rng, one):
    lines = one["lines"]
    at = rng.randrange(len(lines))
    name, _, value = lines[at].partition(b":")
    change = rng.randrange(9)
    if change == 0:
        del lines[at]
    elif change == 1:
        lines.insert(rng.randrange(len(lines) + 1), lines[at])
    elif change == 2:
        lines[at] = rng.choice([name.upper(), name.lower(), name.title(), name.swapcase()]) + b":" + value
    elif change == 3:
        lines[at] = name + b":" + rng.choice([b"", b" ", b"  ", b"\t"]) + value.strip() + rng.choice([b"", b" ", b"\t "])
    elif change == 4:
        lines[at] = name + b": " + damaged(rng, value.strip(), 0.9).replace(b"\r", b"").replace(b"\n", b"")
    elif change == 5:
        lines[:] = [line for line in lines if not line.lower().startswith(b"content-type")]
        kind = rng.choice(generate.CONTENT_TYPES + generate.PUSH_TYPES + generate.JSON_TYPES + generate.WEB_TYPES)
        lines.append(b"Content-Type: " + kind)
    else:
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(ADDED))


def change_path(rng, one):
    change = rng.randrange(4)
    if change == 0:
        one["method"] = rng.choice(generate.METHODS)
    elif change == 1:
        path, mark, rest = one["target"].partition(b"?")
        one["target"] = rng.choice(generate.PATHS) + mark + rest
    elif change == 2:
        one["target"] = rng.choice([b"http://gateway", b"https://gateway:443", b"HTTP://gateway:80", b"http://other"]) + one["target"]
    else:
        path, mark, rest = one["target"].partition(b"?")
        at = rng.randrange(1, len(path))
        one["target"] = path[:at] + b"%%%02x" % path[at] + path[at + 1:] + mark + rest


ODD = {
    b"from": [
        b"0", b"-1", b"", b"now", b"now-1h", b"20260101", b"1795373687000", b"1795373687000000000", b"1e9", b"abc", b"9" * 30,
        b"1,795", b"%20"
    ],
    b"sampleRate": [b"0", b"-5", b"", b"100.5", b"abc", b"9" * 20, b"+100", b"0x64"],
    b"spyName": [b"", b"gospy", b"unknown", b"a%20b", b"%F0%9F%98%80", b"x" * 2000],
    b"units": [b"", b"bytes", b"Bytes", b"nonsense", b"lock_samples"],
    b"format": [b"", b"pprof", b"jfr", b"JFR", b"trie", b"tree", b"lines", b"speedscope", b"folded", b"nonsense"],
    b"aggregationType": [b"", b"sum", b"average", b"SUM"]
}
ODD[b"until"] = ODD[b"from"]


def change_query(rng, one):
    path, _, text = one["target"].partition(b"?")
    parts = text.split(b"&")
    at = rng.randrange(len(parts))
    key, _, value = parts[at].partition(b"=")
    change = rng.randrange(9)
    if change == 0:
        del parts[at]
    elif change == 1:
        parts.insert(rng.randrange(len(parts) + 1), parts[at])
    elif change == 2:
        rng.shuffle(parts)
    elif change == 3:
        parts[at] = b"".join(b"%%%02X" % byte if rng.random() < 0.3 else bytes([byte]) for byte in key) + b"=" + value
    elif change == 4:
        key = rng.choice(list(ODD))
        parts = [part for part in parts if not part.startswith(key + b"=")] + [key + b"=" + rng.choice(ODD[key])]
    elif change == 5:
        parts.append(rng.choice(list(ODD)) + b"=" + rng.choice(ODD[b"from"]))
    elif change == 6:
        parts.insert(rng.randrange(len(parts) + 1), rng.choice(generate.PARAMETERS))
    else:
        # The name: another label, one less, other escapes, or a broken place.
        at = next((at for at, part in enumerate(parts) if part.startswith(b"name=")), None)
        if at is None:
            return
        name = parts[at]
        how = rng.randrange(6)
        if how == 0:
            pair = generate.escaped(rng, rng.choice(generate.KEYS).encode() + b"=" + rng.choice(generate.VALUES).encode())
            name = name.replace(b"%7B", b"%7B" + pair + b"%2C", 1)
        elif how == 1:
            name = re.sub(rb"%2C[^%]*%3D[^%]*", b"", name, count=1)
        elif how == 2:
            name = name.replace(b"%7B", b"{").replace(b"%7D", b"}").replace(b"%3D", b"=").replace(b"%2C", b",")
        elif how == 3:
            name = re.sub(rb"%[0-9A-F]{2}", lambda found: found[0].lower(), name)
        elif how == 4:
            name = name.replace(b"%7D", rng.choice([b"", b"%2C%7D", b"%7D%7D", b"%7Dx", b"%20%7D"]))
        else:
            cut = rng.randrange(5, len(name))
            inserted = [b"%", b"%00", b"+", b"%20", b"%2B", b"%3D", b"\xc3\xa9", b"%C3%A9", b"%FF", b"%7B", b"%2C"]
            name = name[:cut] + rng.choice(inserted) + name[cut:]
        parts[at] = name
    one["target"] = path + b"?" + b"&".join(parts)


# -- the body ----------------------------------------------------------------------------------------------------


def change_body(rng, one):
    body = one["body"]
    change = rng.randrange(4)
    if change == 0:
        body = damaged(rng, body, 0.7)
    elif change == 1:
        body += rng.choice([b"\x00", b"\r\n", b"trailing", body])
    elif change == 2:
        body = b""
    elif b"\r\n--" in body:
        body = rng.choice([
            body.replace(b"filename=", b"FileName="), body.replace(b"form-data", b"attachment"), body.rstrip(b"-\r\n"),
            body.replace(b"\r\n", b"\n"), b"preamble\r\n" + body, body + b"epilogue", re.sub(rb'name="[^"]*"', b"name=x", body)
        ])
    one["body"] = body


def message_of(one):
    body = one["body"]
    try:
        return gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
    except (OSError, EOFError, zlib.error):
        return None


def write(rng, one, message, coded=None):
    """The message as the body, in gzip or not."""
    one["lines"][:] = [line for line in one["lines"] if not line.lower().startswith(b"content-encoding")]
    if coded is None:
        coded = rng.random() < 0.6
    if coded:
        one["lines"].append(rng.choice([b"Content-Encoding: gzip", b"content-encoding: gzip"]))
        message = generate.zipped(rng, message) if rng.random() < 0.2 else gzip.compress(message, rng.choice([0, 1, 9]), mtime=0)
    one["body"] = message


def change_message(rng, one):
    """Labels, samples and series of a real message, each in turn perhaps left out, doubled, moved or changed."""
    message = message_of(one)
    if message is None:
        return
    try:
        series = [list(fields_of(data)) for number, data in fields_of(message) if number == 1]
    except (ValueError, IndexError):
        return
    for parts in series:
        for _ in range(rng.choice([0, 1, 1, 2])):
            if not parts:
                break
            at = rng.randrange(len(parts))
            number, data = parts[at]
            change = rng.randrange(8)
            if change == 0:
                del parts[at]
            elif change == 1:
                parts.insert(rng.randrange(len(parts) + 1), parts[at])
            elif change == 2:
                rng.shuffle(parts)
            elif change == 3:
                label = field(rng, 1, generate.texts(rng, generate.LABEL_NAMES, 4), 0)
                parts.append((1, label + field(rng, 2, generate.texts(rng, generate.VALUES, 3), 0)))
            elif change == 4:
                parts.append((rng.choice([2, 3, 4, 15]), rng.choice([b"", data, field(rng, 3, b"x", 0), field(rng, 1, b"", 0)])))
            elif change == 5:
                parts[at] = (number, data + rng.choice([generate.junk(rng), field(rng, 1, b"again", 0.3), field(rng, 2, b"", 0)]))
            elif change == 6:
                parts[at] = (number, b"")
            else:
                parts[at] = (number, damaged(rng, data, 0.5))
    if rng.random() < 0.2:
        series.insert(rng.randrange(len(series) + 1), rng.choice([[], list(rng.choice(series)) if series else []]))
    odd = rng.choice([0, 0, 0.1])
    out = b"".join(field(rng, 1, b"".join(field(rng, number, data, odd) for number, data in parts), odd) for parts in series)
    if rng.random() < 0.1:
        out += rng.choice([generate.junk(rng), varint(2 << 3) + b"\x00", b"\x00"])
    write(rng, one, out)


def change_dress(rng, one):
    """The same Push as JSON, gRPC-Web, or by GET."""
    message = message_of(one)
    if message is None:
        return
    lines = one["lines"]
    dress = rng.randrange(5)
    if dress == 0:
        write(rng, one, message, coded=False)
        return
    if dress == 1:
        one.update(method=b"GET", body=b"")
        text = base64.urlsafe_b64encode(message)
        one["target"] += b"?connect=v1&encoding=proto&base64=1&message=" + text[:500]
        return
    lines[:] = [line for line in lines if not re.match(rb"(?i)content-(type|encoding)", line)]
    if dress == 2:
        try:
            text = as_json(rng, message)
        except (ValueError, IndexError, UnicodeDecodeError):
            return
        lines.append(b"Content-Type: application/json")
        write(rng, one, text.encode())
        return
    coded = rng.random() < 0.5
    if coded:
        lines.append(b"Grpc-Encoding: gzip")
        message = gzip.compress(message, mtime=0)
    lines += [b"Content-Type: application/grpc-web+proto", b"X-Grpc-Web: 1"]
    if rng.random() < 0.5:
        lines.append(b"grpc-accept-encoding: gzip")
    one["body"] = bytes([coded]) + len(message).to_bytes(4, "big") + message


def as_json(rng, message):
    series = []
    for number, data in fields_of(message):
        labels, samples = [], []
        for inner, part in fields_of(data):
            found = dict(fields_of(part))
            if inner == 1:
                labels.append({"name": found.get(1, b"").decode(), "value": found.get(2, b"").decode()})
            elif inner == 2:
                coder = rng.choice([base64.b64encode, base64.urlsafe_b64encode])
                text = coder(found.get(1, b"")).decode()
                samples.append({rng.choice(["rawProfile", "raw_profile"]): text if rng.random() < 0.7 else text.rstrip("=")})
                if 2 in found:
                    samples[-1][rng.choice(["ID", "ID", "id"])] = found[2].decode()
        series.append({"labels": labels, "samples": samples})
        if rng.random() < 0.1:
            series[-1][rng.choice(["extra", "annotations"])] = rng.choice([None, [], {"a": [1, {"b": None}]}, 1])
    return json.dumps({"series": series}, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, None, 1]))


KINDS = {"recorded-push": None, "recorded-ingest": None}
