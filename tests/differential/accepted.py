"""The differences that are accepted, and nothing else: a row of docs/compatibility.md each.

`ROWS` is the table. A row says as exactly as it can what must be so on both sides: in an answer (`a` is Alloy's, `o` ours, `at`
its place on the connection; None: there is none), and in what arrives at a destination.
"""

import base64
import dataclasses
import json
import posixpath
import re
import urllib.parse

from observed import CODES, code, content, different_answers, series_of, split


def of_answers(context, a, o, at):
    """The row that accepts this difference."""
    return next((row for row in ROWS if row.answer and row.answer(context, a, o, at)), None)


def of_arrivals(context, theirs, ours):
    """The row that accepts this difference."""
    return next((row for row in ROWS if row.arrival and row.arrival(context, theirs, ours)), None)


def made_alike(context, theirs, ours):
    """The row of a difference in how requests are written, if there is one, and what arrives without such differences."""
    found = None
    for row in ROWS:
        if row.alike and row.alike[0](context):
            altered = [row.alike[1](one) for one in theirs], [row.alike[2](one) for one in ours]
            found = found if altered == (theirs, ours) else row
            theirs, ours = altered
    return found, theirs, ours


@dataclasses.dataclass
class Row:
    """An accepted difference."""

    # Words of its row in docs/compatibility.md.
    words: str
    # When it explains two answers.
    answer: object = None
    # When it explains what arrives.
    arrival: object = None
    # How it is written: when, and what makes Alloy's and ours alike.
    alike: tuple = ()
    # Whether the two go different ways behind it, so that what follows on the connection is not compared.
    ends: bool = False


class Context:
    """Both observations, and the request as far as rules ask about it."""

    def __init__(self, case, settings, alloy, ours):
        self.case, self.settings, self.alloy, self.ours = case, settings, alloy, ours
        self.raw = case.get("http1") or b"".join(case["pieces"])
        head, _, self.body = self.raw.partition(b"\r\n\r\n")
        if b"\n\n" in head:
            head = head.partition(b"\n\n")[0]
        self.head = head.lstrip(b"\r\n")
        lines = re.split(rb"\r?\n", self.head)
        parts = lines[0].split(b" ")
        self.method, self.target, self.version = parts[0], b" ".join(parts[1:-1]), parts[-1]
        self.lines = lines[1:]
        self.plain = all(script == [{"ok": True}] for script in case["script"])
        self.push = any(
            request["target"].endswith("/Push") for side in (alloy, ours) for one in side["arrived"] for request in one
        ) or b"PusherService" in self.target
        self.steps = [step for script in case["script"] for step in script]

    def header(self, name):
        """The values of a field, as a lenient reader finds them."""
        found = []
        for line in self.lines:
            key, colon, value = line.partition(b":")
            if colon and key.strip().lower() == name:
                found.append(value.strip())
        return found


# -- HTTP, names and labels ----------------------------------------------------------------------------------------


def bad_name(context, a, o, at):
    """Nothing of it arrives at either."""
    words = base64.b64decode(o["body"]) if o else b""
    return words.startswith((b"name: ", b"the query has no name")
                            ) and text(a, 500, "Failed to process request\n") and text(o, 400) and plain_text(o)


def broken_body(context, a, o, at):
    is_broken = text(a, 500, "") or context.case["leaves"] and text(a, 500)
    return is_broken and text(o, 400) and plain_text(o)


def failed_push(context, a, o, at):
    return code(a) == "internal" and code(o) in script_codes(context)


def bad_label(context, a, o, at):
    return code(a) == "internal" and code(o) == "invalid_argument" and context.plain


def doubtful_framing(context, a, o, at):
    lengths, codings = context.header(b"content-length"), context.header(b"transfer-encoding")
    return text(o, 400) and (
        len(lengths) > 1 or bool(lengths and codings) or any(b"identity" in one.lower() for one in codings)
        or b",".join(codings).lower().count(b"chunked") > 1 or b"" in codings
    )


def doubtful_lines(context, a, o, at):
    head = context.raw.lstrip(b"\r\n").partition(b"\r\n\r\n")[0]
    if at > 0 and re.search(rb"[^\r]\n$", context.raw):
        return text(o, 400)
    return text(o, 400) and (
        b"\n" in head.replace(b"\r\n", b"") or re.search(rb"\r\n[ \t]", head)
        or bool(context.header(b"transfer-encoding") and context.version == b"HTTP/1.0")
        or bool(context.header(b"transfer-encoding") and b"\n" in context.body.replace(b"\r\n", b""))
    )


def doubtful_space(context, a, o, at):
    framing = any(re.match(rb"(?i)(content-length|transfer-encoding)[ \t]*:.*\t", line) for line in context.lines)
    return code(o) in (None, "invalid_argument") and o is not None and o["status"] in (400, 200) and (
        framing or bool(
            context.header(b"transfer-encoding") and re.search(
                rb"(^|\r\n)[0-9a-fA-F]+[ \t]+(\r\n|;)|\r\n0[^\r]*\r\n[^\r]*[^!#$%&'*+.^`|~\w\r-][^\r]*:|;[^\r]*[\x00-\x08\x0a-\x1f]",
                context.body
            )
        )
    )


def odd_expect(context, a, o, at):
    values = context.header(b"expect")
    return text(o, 417) and (len(values) > 1 or any(one in (b"", b"100-continue, x") for one in values))


def later_version(context, a, o, at):
    return text(o, 505) and re.fullmatch(rb"HTTP/1\.[2-9]", context.version) is not None


def odd_absolute(context, a, o, at):
    if text(a, 301) and text(o, 405) and context.method == b"CONNECT":
        return True
    if text(a, 301) and text(o, 404):
        return re.fullmatch(rb"(?i)https?://[^/?]+(\?.*)?", context.target) is not None
    return text(o, 400) and re.match(rb"(?i)https?://[^/?@:,]+(:\d*)?([/?]|$)|/", context.target) is None


def odd_host(context, a, o, at):
    return text(o, 400) and (context.version == b"HTTP/1.0" or any(b"," in host for host in context.header(b"host")))


def fragment(context, a, o, at):
    return b"#" in context.target and (text(o, 400) or "streams" in context.case)


def escaped_path(context, a, o, at):
    """Where Alloy's is the last answer, ours is followed by another one."""
    bad = re.search(rb"%(?![0-9a-fA-F]{2})", context.target.partition(b"?")[0]) is not None
    return bad and o is not None and o["status"] in (400, 404) and (a is None or a["status"] in (0, 400))


def options_asterisk(context, a, o, at):
    if "streams" in context.case and context.target == b"*" and text(a, 301):
        return text(o, 404)
    return context.target == b"*" and (text(a, 200) and text(o, 404) or text(a, 301) and text(o, 400))


def debuginfo_passed(context, a, o, at=None):
    if b"/debuginfo.v1alpha1." not in context.target:
        return False
    if at is None:
        return [one["target"] for one in a] == [one["target"] for one in o]
    return a is not None and o is not None and a["status"] == o["status"]


def extended_charset(context, a, o, at):
    return text(o, 415) and any(b"charset*" in one for one in context.header(b"content-type"))


def many_headers(context, a, o, at):
    if text(a, 431) and len(context.head) > 1 << 20:
        return True
    return text(o, 431) and (len(context.lines) > 128 or len(context.head) > 64 << 10)


def many_fields(context, a, o, at):
    """Over HTTP/2: refused by the library, which ends the connection where there is far too much."""
    return "streams" in context.case and o is not None and o["status"] in (0, 431) and len(context.head) > 60_000


def reserved_flags(context, a, o, at):
    return code(o) == "invalid_argument" and b"\x1f\x8b\x08\xe0" in context.raw


def trailer_named(context, a, o, at):
    return text(a, 400) and any(b"content-length" in one.lower() for one in context.header(b"trailer"))


def has_empty_name(context):
    """A label with an empty name (bytes 0a 00, or a JSON name), and rules."""
    return bool(context.settings["rules"]) and (b"\n\x00" in context.raw or b'""' in context.raw)


def hidden_labels(context, a, o, at):
    if has_empty_name(context) and code(a) == "internal":
        return text(o, 200) and code(o) is None
    return has_empty_name(context) and text(a, 200) and code(o) == "invalid_argument"


def unhidden_labels(context, theirs, ours):
    return has_empty_name(context)


def grpc_on_http1(context, a, o, at):
    types = [one.lower() for one in context.header(b"content-type")]
    return text(o, 415) and text(a, 200) and any(
        one.startswith(b"application/grpc") and not one.startswith(b"application/grpc-web") for one in types
    )


def too_large(context, a, o, at):
    words = base64.b64decode(o["body"]) + dict(o["headers"]).get("grpc-message", "").encode() if o else b""
    return len(context.raw) > 1024 and re.search(
        rb"too long|longer than|too many labels|more than \d+ labels|too large|more than \d+ series", words
    ) is not None


def pyroscope_ingest(context, a, o, at):
    return text(a, 404) and b"/pyroscope/ingest" in context.target


def sentence(context, a, o, at):
    if a is None or o is None or a["status"] != o["status"] or code(a) or code(o):
        return False
    return a["status"] in (400, 417, 431, 501, 505) and plain_text(o)


def sentence_to_head(context, a, o, at):
    """Neither knows that it was a HEAD: the head could not be read."""
    return context.case["head"] and a is not None and o is not None and a["status"] == o["status"] == 0


def several_faults(context, a, o, at):
    """Both refuse it for what it is, in different words, and nothing arrives."""
    arrived = any(requests for side in (context.alloy, context.ours) for requests in side["arrived"])
    http = lambda answer: answer is not None and answer["status"] in (400, 405, 415, 417, 431, 501, 505)
    if http(a) and http(o) and code(a) is None and code(o) is None and len(faults(context)) > 1 and not arrived:
        return True
    late = ("deadline_exceeded", "unimplemented", "invalid_argument", "internal", "canceled")
    framed = dict(o["headers"]).get("content-type", "").startswith("application/grpc") if o else False
    return code(a) in late and code(o) in late and (framed or code(o) != "internal") and not arrived and code(a) != code(o)


def faults(context):
    """What a strict reader of HTTP finds wrong."""
    hosts, lengths = context.header(b"host"), context.header(b"content-length")
    codings, http10 = context.header(b"transfer-encoding"), context.version == b"HTTP/1.0"
    odd_host = any(not re.fullmatch(rb"[\w.:\[\]-]+", one) for one in hosts)
    found = {
        "version": context.version not in (b"HTTP/1.0", b"HTTP/1.1"),
        "target": not re.fullmatch(rb"/([^%\s]|%[0-9a-fA-F]{2})*", context.target),
        "method": not re.fullmatch(rb"[A-Z]+", context.method),
        "host": len(hosts) > 1 or not hosts and not http10 or odd_host,
        "expect": bool(context.header(b"expect")),
        "length": len(lengths) > 1 or any(not one.isdigit() for one in lengths),
        "coding": any(one.lower() != b"chunked" for one in codings),
        "lines": any(not re.fullmatch(rb"[\w-]+:[ \t]*[^\x00-\x08\x0a-\x1f\x7f]*", line) for line in context.lines),
        "route": b"ingest" not in context.target and b"/Push" not in context.target,
        "wrong method": context.method != b"POST",
    }
    return [name for name, is_so in found.items() if is_so]


def empty_encoding(context, a, o, at):
    if a is None or code(a) != "unimplemented":
        return False
    without_it = [header for header in a["headers"] if header != ["grpc-encoding", ""]]
    return different_answers({**a, "headers": without_it}, o) is None


def connection_after_refusal(context, a, o, at):
    if at == 0 or (a is None) == (o is None):
        return False
    sides = (context.alloy, context.ours) if o is None else (context.ours, context.alloy)
    ended = sides[1]["answers"][at - 1]
    return ended["status"] >= 300 and dict(ended["headers"]).get("connection") == "close" or code(ended) is not None


def unlabelled(context, a, o, at):
    """Rules, or an empty value that they read, left no label: nothing of that arrives."""
    words = base64.b64decode(a["body"]) + dict(a["headers"]).get("grpc-message", "").encode() if a else b""
    left = b"service name is required" in words if code(a) else text(a, 500, "Failed to process request\n")
    as_many = [len(one) for one in context.alloy["arrived"]] == [len(one) for one in context.ours["arrived"]]
    is_chain = context.settings.get("chain")
    return bool(context.settings["rules"]) and left and text(o, 200) and (code(a) is not None or as_many or is_chain)


def unlabelled_between(context, theirs, ours):
    """What one component leaves without labels may get some in the next."""
    if not context.settings.get("chain") or not context.settings["rules"]:
        return False
    (a_push, a_rest), (o_push, o_rest) = split(theirs), split(ours)
    o_series = [series for request in o_push for series in series_of(request)]
    series_arrived = all(series in o_series for request in a_push for series in series_of(request))
    return series_arrived and {one["target"] for one in a_rest} <= {one["target"] for one in o_rest}


def maps_to_empty(context, *arrived):
    return any(rule["action"] == "labelmap" and rule["replacement"] == "$1_$2" for rule in context.settings["rules"])


def empty_name(context, a, o, at):
    return maps_to_empty(context) and (code(a) == "internal"
                                       or text(a, 500, "Failed to process request\n")) and code(o) != "internal"


def unsendable(context, a, o, at):
    return bool(context.settings["rules"]) and text(o, 400) and b"relabel" in base64.b64decode(o["body"])


def client_left(context, a, o, at):
    return context.case["leaves"] and a is not None and a["status"] in (200, 499, 500) and text(o, 200)


def short_timeout(context, a, o, at):
    values = context.header(b"grpc-timeout") + context.header(b"connect-timeout-ms")
    return any(re.fullmatch(rb"\d+[nu]|1m?", value) for value in values) and code(a) in ("deadline_exceeded", "internal")


def strange_code(context, a, o, at):
    return any("code_20" in step.get("body", "") or '"code"' in step.get("body", "")[2000:]
               for step in context.steps) and (o is None or ours_from_script(context, o))


def leading_line(context, a, o, at):
    return context.raw.startswith((b"\r\n", b"\n")) and text(a, 400)


def success_2xx(context, a, o, at):
    return a is not None and o is not None and 201 <= a["status"] < 300 and text(o, 200) and any(
        step.get("status") == a["status"] for step in context.steps
    )


def scripted(kind):
    """The script has a step of this kind, which the two take differently; ours ends as one of its steps says."""

    def rule(context, a, o, at=None):
        found = {kind for step in context.steps for kind in step_kinds(context, step)}
        return kind in found and (at is None or ours_from_script(context, o))

    return rule


def follows(rule):
    """What arrives, or does not, follows from an answer of this rule."""

    def arrival(context, theirs, ours):
        pairs = zip(context.alloy["answers"], context.ours["answers"])
        return any(rule(context, a, o, at) for at, (a, o) in enumerate(pairs))

    return arrival


def skipped_line(context, theirs, ours):
    return leading_line(context, context.alloy["answers"][0] if context.alloy["answers"] else None, None, 0)


def same(one):
    return one


def without(name):
    return lambda one: {**one, "headers": [[key, value] for key, value in one["headers"] if key != name]}


def written_alike(one):
    path, mark, rest = one["target"].partition("?")
    return {**one, "target": posixpath.normpath(urllib.parse.unquote(path)) + mark + rest}


def malformed_http2(context, a, o, at):
    """One of them takes it or answers it, the other ends the request or the connection; or both end something, but not the
    same."""
    if "streams" not in context.case or a is None or o is None:
        return False
    hop = (b"upgrade", b"te", b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding")
    if text(a, 400) and text(o, 200) and any(context.header(name) for name in hop):
        return True
    if 0 not in (a["status"], o["status"]):
        return False
    odd_target = re.search(rb"[^!$-;=?-~]|^[^/]", context.target) is not None
    return context.case["kind"] in ("h2-fields", "h2-frames") or odd_target or not re.fullmatch(rb"[A-Z]+", context.method)


# -- helpers of the rules ------------------------------------------------------------------------------------------


def text(answer, status, *bodies):
    return answer is not None and answer["status"] == status and (not bodies or content(answer) in bodies)


def plain_text(answer):
    return dict(answer["headers"]).get("content-type", "").startswith("text/plain") if answer else False


def script_codes(context):
    """The codes of the answers in the script, or what their statuses or no answer stand for."""
    codes = {"unavailable"
             } if context.settings["dead"] or any("close" in step or step.get("status", 0) > 599
                                                  for step in context.steps) else set()
    for step in context.steps:
        if step_status(step):
            by_status = BY_STATUS.get(step_status(step), "unknown")
            codes.add(step_code(step) or by_status)
            if len(step.get("body", "")) > 2048:
                codes.add(by_status)
        if "slow" in step or "raw" in step or any(name == "Location" for name, _ in step.get("headers", [])):
            codes |= {"unavailable", "unknown"}
    return codes


BY_STATUS = {
    400: "internal", 401: "unauthenticated", 403: "permission_denied", 404: "unimplemented", 429: "unavailable",
    502: "unavailable", 503: "unavailable", 504: "unavailable"
}


def ours_from_script(context, o):
    if o is None:
        return False
    if any("raw" in step for step in context.steps) and o["status"] in (500, 503):
        return True
    if code(o) is not None:
        return code(o) in script_codes(context)
    return o["status"] in (200, 500) or any(step_status(step) == o["status"] for step in context.steps)


def step_status(step):
    """The status that a step answers with; None if it is none."""
    if "raw" in step:
        found = re.match(r"HTTP/[\d.]+ (\d{3})\b", step["raw"])
        return int(found[1]) if found else None
    return 200 if "ok" in step else step.get("status")


def step_code(step):
    """The Connect code that a step answers with."""
    headers = {name.lower(): value for name, value in step.get("headers", [])}
    if step.get("status") == 200 or headers.get("content-type") not in ("application/json", "application/json; charset=utf-8"):
        return None
    try:
        found = {name.lower(): value for name, value in json.loads(step.get("body", "")).items()}["code"]
        return found if found in CODES else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def step_kinds(context, step):
    """In which ways the two may take a step differently."""
    status, push = step.get("status", 0), context.push
    headers = {name.lower(): value for name, value in step.get("headers", [])}
    if "close" in step:
        yield "stale"
    if "raw" in step and re.search(
        r"\n[ \t]| :|OK\n|Length: 3\r\nTransfer|^HTTP/(2|1\.2)|^HTTP/1.1 (099|101)|^HTTP/1.1 4\d\d Bad\r\n.*short$|X-Long",
        step["raw"], re.S
    ):
        yield "doubtful"
    if status == 422 and "resource_exhausted" in step.get(
        "body", ""
    ) or push and status == 429 and "retry_on_http_429 = false" in context.settings["endpoint"]:
        yield "429"
    if push and "Content-Encoding" in step.get("raw", ""):
        yield "body"
    if push and step_code(step):
        return
    if 201 <= status < 300:
        yield "2xx"
    if status in (301, 302, 303):
        yield "see other"
    if status in (307, 308) and "location" in headers:
        yield "location"
    if status == 501:
        yield "501"
    if status > 599:
        yield "above 599"
    if push and status == 200:
        yield "body"
    if push and 300 <= status < 500 and status not in (401, 403, 404, 408, 429):
        yield "no Connect error"


# -- the table -----------------------------------------------------------------------------------------------------


def either(words, rule, ends=False):
    """A row of one rule for answers; what arrives follows from them."""
    return Row(words, answer=rule, arrival=follows(rule), ends=ends)


def by_script(words, kind):
    """A row for steps of destinations that the two take differently."""
    return Row(words, answer=scripted(kind), arrival=scripted(kind))


ROWS = [
    either("no limit on bodies, on what gzip inflates to, or on labels", too_large, ends=True),
    Row("a missing or malformed `name` is 500", answer=bad_name),
    Row("a body cut short, or broken in its chunks, is 500", answer=broken_body, ends=True),
    Row("any failure of a Push is `internal`", answer=failed_push),
    Row("a label name that is not allowed is `internal`", answer=bad_label),
    Row("`Content-Length` twice with one value is taken", answer=doubtful_framing, ends=True),
    Row("lines that end in a bare LF, an empty one between two requests", answer=doubtful_lines, ends=True),
    Row("a tab before the value of `Content-Length`", answer=doubtful_space, ends=True),
    either("an `Expect` that is empty, or a list", odd_expect, ends=True),
    Row("`HTTP/1.2` to `HTTP/1.9` are served as 1.1", answer=later_version, ends=True),
    Row("`OPTIONS *` is 200, `*` with another method 301", answer=options_asterisk, ends=True),
    Row("a target in absolute form may have any scheme", answer=odd_absolute, ends=True),
    Row("`Host` is not looked at for HTTP/1.0", answer=odd_host, ends=True),
    Row(
        "`#` in a request target is part of the query",
        answer=fragment,
        arrival=lambda context, *_: "streams" in context.case and b"#" in context.target,
        ends=True
    ),
    either("`Trailer` that names `Content-Length`", trailer_named, ends=True),
    either("over HTTP/2 headers and path may have 1 MiB", many_fields, ends=True),
    either("gzip with reserved flags in its header", reserved_flags),
    either("HTTP/2 that RFC 9113 calls malformed", malformed_http2, ends=True),
    Row("a bad percent-escape in a path is 400", answer=escaped_path, ends=True),
    Row("unary debuginfo requests are decoded and made anew", answer=debuginfo_passed, arrival=debuginfo_passed),
    Row("`charset*=utf-8''utf-8` in the content type of a Push", answer=extended_charset, ends=True),
    either("1 MiB for the request line and all headers together", many_headers, ends=True),
    Row("gRPC (`application/grpc`) over HTTP/1.1 is answered", answer=grpc_on_http1),
    either("`/pyroscope/ingest` is 404", pyroscope_ingest),
    Row("refusals of HTTP itself (400, 417, 431, 501, 505)", answer=sentence),
    Row("refusals of HTTP itself (400, 417, 431, 501, 505)", answer=sentence_to_head),
    Row("gRPC-Web: the refusal of an unknown `Grpc-Encoding`", answer=empty_encoding),
    Row("a request with several faults is told of one of them", answer=several_faults, ends=True),
    Row("an empty line before a request is 400", answer=leading_line, arrival=skipped_line, ends=True),
    Row("a profile that relabel rules leave without labels", answer=unlabelled, arrival=unlabelled_between),
    Row("a `labelmap` that makes an empty name fails", answer=empty_name, arrival=maps_to_empty),
    either("a value that a relabel rule makes may hold `,` or `}`", unsendable, ends=True),
    Row("a label with an empty name hides others", answer=hidden_labels, arrival=unhidden_labels),
    Row(
        "a client that leaves cancels what is under way",
        answer=client_left,
        arrival=lambda context, theirs, ours: context.case["leaves"],
    ),
    either("a `Connect-Timeout-Ms` or `Grpc-Timeout` that passes", short_timeout),
    either("a Connect error with a code of a later protocol", strange_code),
    Row("behind a refusal up to 256 KiB of the body are read", answer=connection_after_refusal),
    Row("201, 202, 204 and other 2xx on `/ingest` are failures", answer=success_2xx),
    by_script("201, 202, 204 and other 2xx on `/ingest` are failures", "2xx"),
    by_script("301, 302, 303 are followed with a GET", "see other"),
    by_script("501 is tried again", "501"),
    by_script("on Push every 3xx, and every 4xx but 401, 403, 404", "no Connect error"),
    by_script("a 200 to a Push in another content type", "body"),
    by_script("on Push `retry_on_http_429 = false` holds for JSON answers only", "429"),
    by_script("a status above 599 is relayed", "above 599"),
    by_script("an answer with folded lines, lines that end in a bare LF", "doubtful"),
    by_script("a kept connection that the destination closes", "stale"),
    by_script("a `Location` that is no URL, or of another scheme", "location"),
    Row(
        "a client's `Content-Encoding` on `/ingest` is dropped",
        alike=(lambda context: context.header(b"content-encoding"), same, without("content-encoding")),
    ),
    Row(
        "a path in a destination's URL is decoded and cleaned",
        alike=(lambda context: re.search(r"[.%]|//", context.settings["path"]), written_alike, written_alike),
    ),
    Row("a followed redirect has `Referer`", alike=(lambda context: True, without("referer"), same)),
]
