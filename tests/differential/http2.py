"""HTTP/2 by hand: requests as frames, odd ones among them, and answers read back from frames. HPACK without Huffman codes or
a table on our side; what comes back has no table either, because our SETTINGS allow it none."""

import base64
import socket
import struct
import time

from wire import CLIENT_SECONDS

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, PRIORITIZED = 1, 4, 8, 32
# No table for what comes back, no pushes, and windows that are never full.
OPENING = struct.pack(">HIHIHI", 1, 0, 2, 0, 4, 1 << 24)

STATIC_TABLE = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"), (":scheme", "http"),
    (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"), (":status", "304"), (":status", "400"),
    (":status", "404"), (":status", "500"), ("accept-charset", ""), ("accept-encoding", "gzip, deflate")
] + [(name, "") for name in (
    "accept-language accept-ranges accept access-control-allow-origin age allow authorization cache-control "
    "content-disposition content-encoding content-language content-length content-location content-range content-type cookie "
    "date etag expect expires from host if-match if-modified-since if-none-match if-range if-unmodified-since last-modified "
    "link location max-forwards proxy-authenticate proxy-authorization range referer refresh retry-after server set-cookie "
    "strict-transport-security transfer-encoding user-agent vary via www-authenticate"
).split()]
# RFC 7541, appendix B, is canonical: the lengths of its codes, a letter for each byte (`a` is 5 bits), make the codes.
HUFFMAN_LENGTHS = (
    "isxxxxxxxtzxxzxxxxxxxxzxxxxxxxxxbffhibdgffdgdbbbaaabbbbbbbcdkbhfibccccccccccccccccccccccdcdioijbkabababbbaccbbbabcbaabccccckgjix"
    "prpprrrsrssssststtrstssssqrsrsstrqprrssqsrrtqrssqqrqsrssprrrsrrsvvporsruvvvwwvtuoqvwwvwtqqvvxwwwptpqrqqsrruuttvsvwvvwwwwwxwwwwwv"
)


def frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def opening():
    return PREFACE + frame(SETTINGS, 0, 0, OPENING) + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 24))


def integer(value, bits, first):
    most = (1 << bits) - 1
    if value < most:
        return bytes([first | value])
    out, value = bytearray([first | most]), value - most
    while value >= 128:
        out.append(value & 0x7f | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def block(fields):
    """A header block: literals that go into no table."""
    return b"".join(
        b"\x00" + integer(len(name), 7, 0) + name + integer(len(value), 7, 0) + value for name, value in fields
    )


def codes():
    """The bytes by length and bits of their code: codes of one length follow each other, shorter ones come first."""
    found, code, length = {}, 0, 0
    for letter, byte in sorted((letter, byte) for byte, letter in enumerate(HUFFMAN_LENGTHS)):
        wanted = ord(letter) - ord("a") + 5
        code <<= wanted - length
        length = wanted
        found[length, code] = byte
        code += 1
    return found


CODES = codes()


def plain(data):
    """Text without its Huffman code."""
    out, length, bits = bytearray(), 0, 0
    for byte in data:
        for at in range(7, -1, -1):
            length, bits = length + 1, bits << 1 | byte >> at & 1
            if (length, bits) in CODES:
                out.append(CODES[length, bits])
                length = bits = 0
    return bytes(out)


def fields_of(data):
    """The fields of a header block that uses no dynamic table."""
    at, found = 0, []

    def number(bits):
        nonlocal at
        most = (1 << bits) - 1
        value, shift = data[at] & most, 0
        at += 1
        if value < most:
            return value
        while True:
            byte = data[at]
            at += 1
            value += (byte & 0x7f) << shift
            shift += 7
            if byte < 128:
                return value

    def text():
        nonlocal at
        is_coded = data[at] & 0x80
        size = number(7)
        taken, at = data[at:at + size], at + size
        return (plain(taken) if is_coded else taken).decode("latin-1")

    while at < len(data):
        first = data[at]
        if first & 0x80:
            found.append(STATIC_TABLE[number(7) - 1])
        elif first & 0xe0 == 0x20:
            number(5)
        else:
            index = number(6 if first & 0x40 else 4)
            name = STATIC_TABLE[index - 1][0] if index else text()
            found.append((name, text()))
    return found


def talk(port, pieces, streams, tls=None):
    """Sends the pieces and reads frames until every stream has ended, or the connection has; how it ended, as in `wire`."""
    deadline, ended, came, frames = time.monotonic() + CLIENT_SECONDS, "silent", bytearray(), []
    open_streams = set(streams)
    with socket.create_connection(("127.0.0.1", port), timeout=CLIENT_SECONDS) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            connection = tls.wrap_socket(connection, server_hostname="localhost")
        try:
            for at, piece in enumerate(pieces):
                if at:
                    time.sleep(0.002)
                connection.sendall(piece)
        except OSError:
            pass
        try:
            # However late it is, what has come is read: the clock may have jumped.
            while open_streams:
                connection.settimeout(max(1, deadline - time.monotonic()))
                got = connection.recv(1 << 16)
                if not got:
                    ended = "closed"
                    break
                came += got
                while len(came) >= 9 and len(came) >= 9 + (size := int.from_bytes(came[:3], "big")):
                    kind, flags, stream = came[3], came[4], int.from_bytes(came[5:9], "big")
                    payload = bytes(came[9:9 + size])
                    del came[:9 + size]
                    frames.append((kind, flags, stream, payload))
                    if kind == SETTINGS and not flags & 1:
                        connection.sendall(frame(SETTINGS, 1, 0, b""))
                    if kind == PING and not flags & 1:
                        connection.sendall(frame(PING, 1, 0, payload))
                    if kind == RST_STREAM or kind in (DATA, HEADERS) and flags & END_STREAM:
                        open_streams.discard(stream)
            if not open_streams:
                ended = "closed"
        except TimeoutError:
            pass
        except OSError:
            ended = "reset"
    return frames, ended


def answers(frames, streams):
    """What each stream was answered, as `wire.answers` has it, trailers among the headers; status 0 for one that was reset,
    or has no answer because the connection has ended."""
    found = {stream: {"status": 0, "headers": [], "body": b"", "ended": None} for stream in streams}
    gone, pending = None, b""
    for kind, flags, stream, payload in frames:
        if kind == GOAWAY:
            gone = int.from_bytes(payload[4:8], "big")
        one = found.get(stream)
        if one is None:
            continue
        if kind == RST_STREAM:
            # After a whole answer it only says that the rest of the request is not wanted.
            one["ended"] = one["ended"] or f"reset {int.from_bytes(payload, 'big')}"
        elif kind == DATA:
            one["body"] += payload
        elif kind in (HEADERS, CONTINUATION):
            pending += payload
            if flags & END_HEADERS:
                fields, pending = fields_of(pending), b""
                status = int(dict(fields).get(":status", 0))
                if status >= 200:
                    one["status"] = status
                if not 100 <= status < 200:
                    one["headers"] += [[name, value] for name, value in fields if name != ":status"]
        if kind in (DATA, HEADERS) and flags & END_STREAM:
            one["ended"] = "whole"
    out = []
    for one in found.values():
        ended = one.pop("ended")
        if ended != "whole":
            one.update(status=0, headers=[["ended", ended or f"goaway {gone}"]], body=b"")
        out.append({**one, "body": base64.b64encode(one["body"]).decode()})
    return out
