"""A lane: one setting, its gateways side by side with destinations of their own, and cases asked of them one by one."""

import pathlib
import subprocess
import threading
import time

import generate
import http2
import wire

START_SECONDS = 30


def quoted(text):
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(char, char) for char in text) + '"'


def configuration(settings, listen_port, destinations):
    """The settings as a file of Alloy's, which both gateways read."""
    lines = []
    ports = list(enumerate([destination.port for destination in destinations] + [1] * settings["dead"]))
    writers = [[port] for port in ports] if settings.get("writers") else [ports]
    for number, ports in enumerate(writers):
        lines += writer(settings, number, ports)
    forward = ", ".join(f"pyroscope.write.out{number}.receiver" for number in range(len(writers)))
    # One relabel component, or one for each rule behind that for the rule before it.
    components = [[rule] for rule in settings["rules"]] if settings.get("chain") else [settings["rules"]]
    for number, rules in reversed(list(enumerate(components))):
        if rules:
            lines += relabel(number, rules, forward)
            forward = f"pyroscope.relabel.rules{number}.receiver"
    lines += [
        'pyroscope.receive_http "in" {', f'  http {{\n    listen_address = "127.0.0.1"\n    listen_port = {listen_port}',
        *["    http2 {\n      enabled = true\n    }"] * settings.get("http2", False), "  }", f"  forward_to = [{forward}]", "}"
    ]
    return "\n".join(lines) + "\n"


def writer(settings, number, ports):
    lines = [f'pyroscope.write "out{number}" {{', "  " + settings.get("tracing", "")]
    if settings["external"]:
        pairs = ", ".join(f"{quoted(name)} = {quoted(value)}" for name, value in settings["external"].items())
        lines.append(f"  external_labels = {{ {pairs} }}")
    user = settings.get("user", "")
    for at, port in ports:
        retries = [] if "max_backoff_retries" in settings["endpoint"] else ["    max_backoff_retries = 2"]
        lines += [
            "  endpoint {", f'    name = "d{at}"', f'    url = "http://{user}127.0.0.1:{port}{settings["path"]}"',
            '    min_backoff_period = "1ms"', '    max_backoff_period = "2ms"', *retries, '    remote_timeout = "1s"',
            f"    {settings['endpoint']}", "  }"
        ]
    return [*lines, "}"]


def relabel(number, rules, forward):
    lines = [f'pyroscope.relabel "rules{number}" {{', f"  forward_to = [{forward}]"]
    for rule in rules:
        lines.append("  rule {")
        for name, value in rule.items():
            is_list, is_number = isinstance(value, list), isinstance(value, int)
            shown = f"[{', '.join(map(quoted, value))}]" if is_list else str(value) if is_number else quoted(value)
            lines.append(f"    {name} = {shown}")
        lines.append("  }")
    return [*lines, "}"]


class Gateway:
    """A gateway process with its destinations."""

    def __init__(self, command, name, settings, folder):
        self.destinations = [wire.Destination() for _ in range(settings["destinations"])]
        self.port = free_port()
        self.file = pathlib.Path(folder) / f"{name}.alloy"
        self.file.write_text(configuration(settings, self.port, self.destinations))
        self.log = open(pathlib.Path(folder) / f"{name}.log", "wb")
        command = [part.replace("FILE", str(self.file)) for part in command]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=self.log, stderr=self.log)
        self.await_port()

    def await_port(self):
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if self.process.poll() is not None:
                break
            try:
                wire.socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.05)
        self.stop()
        raise RuntimeError(f"{self.file} has not started: {pathlib.Path(self.log.name).read_text(errors='replace')}")

    def ask(self, case):
        """What the client is answered and what arrives, for one case."""
        for destination, script in zip(self.destinations, case["script"]):
            destination.begin(script)
        if "streams" in case:
            frames, ended = http2.talk(self.port, case["pieces"], case["streams"])
            answers = http2.answers(frames, case["streams"])
        else:
            pieces = case["pieces"] + ([generate.PROBE] if case["probe"] else [])
            came, ended = wire.talk(self.port, pieces, case["leaves"])
            answers = wire.answers(came, case["head"])
        if case["leaves"]:
            # Who has left is not waited for: give what is under way a moment.
            time.sleep(0.03)
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.file}: the gateway is gone ({self.process.returncode})")
        return {
            "answers": answers, "ended": ended,
            "arrived": [destination.taken() for destination in self.destinations]
        }

    def calm(self):
        """Clears what failures without an answer have left behind: a destination that counts as down."""
        good = generate.request(target=b"/ingest?name=calm", body=b"calm")
        until = time.monotonic() + 20
        while time.monotonic() < until:
            for destination in self.destinations:
                destination.begin([generate.OK])
            came, _ = wire.talk(self.port, [good, generate.PROBE], False)
            # Rules may drop or refuse it; a dead destination fails it.
            if all(destination.taken()
                   for destination in self.destinations) or came.startswith((b"HTTP/1.1 200", b"HTTP/1.1 400")):
                return
            time.sleep(0.2)

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.log.close()


def free_port():
    with wire.socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def both(alloy, ours, case):
    """Asks both at the same time."""
    found = {}
    thread = threading.Thread(target=lambda: found.update(alloy=alloy.ask(case)))
    thread.start()
    found["ours"] = ours.ask(case)
    thread.join()
    return found["alloy"], found["ours"]
