"""Real sockets: destinations that write down what they get and answer by a script, and a client that sends bytes as they
are and reads answers until the gateway closes."""

import base64
import gzip
import re
import socket
import threading
import time

CLIENT_SECONDS = 12
# Longer than the gateways wait for a destination (lane.py).
SLOW_SECONDS = 1.5
STATUS_TEXT = b"Scripted"


class Destination:
    """Listens, keeps every request, and answers it with the next step of the script (the last holds for all after it)."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self.listener.getsockname()[1]
        self.lock = threading.Lock()
        self.script, self.requests = [], []
        threading.Thread(target=self.accept, daemon=True).start()

    def begin(self, script):
        with self.lock:
            self.script, self.requests = script, []

    def taken(self):
        with self.lock:
            return list(self.requests)

    def accept(self):
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(connection, ), daemon=True).start()

    def serve(self, connection):
        reader = connection.makefile("rb")
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while got := read_request(reader):
                with self.lock:
                    step = self.script[min(len(self.requests), len(self.script) - 1)] if self.script else {"ok": True}
                    self.requests.append(got)
                if "close" in step:
                    return
                if "slow" in step:
                    time.sleep(SLOW_SECONDS)
                connection.sendall(answer(step, got))
                if "raw" in step and not keeps_connection(step["raw"]):
                    return
        except (OSError, ValueError):
            pass
        finally:
            reader.close()
            connection.close()


def read_request(reader):
    line = reader.readline()
    if not line:
        return None
    method, target, _ = line.rstrip(b"\r\n").split(b" ", 2)
    headers = []
    while (line := reader.readline()) not in (b"\r\n", b""):
        name, value = line.rstrip(b"\r\n").split(b":", 1)
        headers.append([name.decode("latin-1").lower(), value.strip().decode("latin-1")])
    fields = dict(headers)
    if fields.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(reader.readline(), 16):
            body += reader.read(size)
            reader.readline()
        while reader.readline() not in (b"\r\n", b""):
            pass
    else:
        body = reader.read(int(fields.get("content-length", 0)))
    return {
        "method": method.decode("latin-1"), "target": target.decode("latin-1"), "headers": headers,
        "body": base64.b64encode(body).decode()
    }


def keeps_connection(raw):
    return raw.endswith(("Content-Length: 0\r\n\r\n", "0\r\n\r\n")) and not raw.startswith("HTTP/1.0")


def answer(step, got):
    calls = ("/Push", "/ShouldInitiateUpload", "/UploadFinished")
    asked = dict(got["headers"]).get("content-type", "application/proto") if "Debuginfo" in got["target"] else "application/proto"
    kind = f"Content-Type: {asked}\r\n".encode() if got["target"].partition("?")[0].endswith(calls) else b""
    if "raw" in step:
        return step["raw"].encode().replace(b"TYPE", kind)
    if "ok" in step or "slow" in step:
        return b"HTTP/1.1 200 OK\r\n" + kind + b"Content-Length: 0\r\n\r\n"
    status, body = step["status"], step.get("body", "").encode()
    if step.get("coded"):
        body = gzip.compress(body, mtime=0)
    if status in (204, 304):
        body = b""
    lines = [b"HTTP/1.1 %d %s" % (status, STATUS_TEXT)]
    lines += [f"{name}: {value}".encode() for name, value in step.get("headers", [])]
    if status not in (204, 304):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def talk(port, pieces, leaves):
    """Sends the pieces (an empty one: wait until something has come back) and reads to the end.

    Returns what came, and how it ended: `closed`, `reset` or `silent`."""
    came, ended = bytearray(), "silent"
    deadline = time.monotonic() + CLIENT_SECONDS
    with socket.create_connection(("127.0.0.1", port), timeout=CLIENT_SECONDS) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for at, piece in enumerate(pieces):
                if not piece:
                    connection.settimeout(1)
                    try:
                        came += connection.recv(1 << 16)
                    except TimeoutError:
                        pass
                    connection.settimeout(CLIENT_SECONDS)
                    continue
                if at:
                    time.sleep(0.002)
                connection.sendall(piece)
            if leaves:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        try:
            while (left := deadline - time.monotonic()) > 0:
                connection.settimeout(left)
                got = connection.recv(1 << 16)
                if not got:
                    ended = "closed"
                    break
                came += got
        except TimeoutError:
            pass
        except OSError:
            ended = "reset"
    return bytes(came), ended


def answers(came, head):
    """The HTTP answers in these bytes; interim ones are left out. What is no answer is one with status 0."""
    found = []
    while came:
        match = re.match(rb"HTTP/1\.[01] (\d{3})[^\r\n]*\r\n", came)
        end = came.find(b"\r\n\r\n")
        if not match or end < 0:
            found.append({"status": 0, "headers": [], "body": base64.b64encode(came).decode()})
            break
        status = int(match[1])
        headers = []
        for line in came[match.end():end].split(b"\r\n") if end > match.end() else []:
            name, _, value = line.partition(b":")
            headers.append([name.decode("latin-1").lower(), value.strip().decode("latin-1")])
        came = came[end + 4:]
        fields = dict(headers)
        if status < 200:
            continue
        if (head and not found) or status in (204, 304):
            body = b""
        elif "chunked" in fields.get("transfer-encoding", ""):
            body, came, trailers = unchunked(came)
            headers += trailers
        elif "content-length" in fields:
            size = int(fields["content-length"])
            body, came = came[:size], came[size:]
        else:
            body, came = came, b""
        found.append({"status": status, "headers": headers, "body": base64.b64encode(body).decode()})
    return found


def unchunked(came):
    body, trailers = b"", []
    while True:
        line, _, came = came.partition(b"\r\n")
        if not line:
            return body + b"<cut short>", b"", trailers
        size = int(line.split(b";")[0], 16)
        if size == 0:
            break
        body, came = body + came[:size], came[size + 2:]
    while True:
        line, _, came = came.partition(b"\r\n")
        if not line:
            return body, came, trailers
        name, _, value = line.partition(b":")
        trailers.append([name.decode("latin-1").lower(), value.strip().decode("latin-1")])
