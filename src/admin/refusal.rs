//! What a refusal means, in a sentence for the operator: the reasons that `inbound` counts.

/// What `reason` means and what to do. Reasons of one family that say it themselves (`host_missing`) share a sentence.
pub fn meaning(reason: &str) -> &'static str {
    MEANINGS
        .iter()
        .find(|(known, _)| match known.strip_suffix('*') {
            Some(prefix) => reason.starts_with(prefix),
            None => *known == reason,
        })
        .map_or(
            "The request was not well-formed HTTP, or could be read in two ways.",
            |(_, meaning)| meaning,
        )
}

/// The first match counts; a `*` at the end stands for anything.
const MEANINGS: [(&str, &str); 58] = [
    (
        "not_found",
        "No such path. Clients push to /ingest or /push.v1.PusherService/Push.",
    ),
    (
        "method_not_allowed",
        "The path is right, the method is not: profiles are pushed with POST.",
    ),
    (
        "debuginfo_unavailable",
        "Debuginfo, and no http:// or https:// destination takes it, or the first of them did not answer.",
    ),
    (
        "debuginfo_busy",
        "Debuginfo, while as many of its requests are under way as there may be; the client was told to come back.",
    ),
    (
        "debuginfo_failed",
        "A debuginfo upload that its destination refused or did not take to the end.",
    ),
    (
        "redirect",
        "The path had doubled slashes or dots; the client was sent to the clean one.",
    ),
    (
        "unsupported_media_type",
        "A Push with a Content-Type that is neither protobuf, JSON, gRPC-Web, nor (over HTTP/2) gRPC.",
    ),
    (
        "unsupported_encoding",
        "A Push compressed with something other than gzip.",
    ),
    (
        "connect_version",
        "The client speaks a version of the Connect protocol that does not exist yet.",
    ),
    (
        "timeout_malformed",
        "The timeout header of a Push is no number, or too long.",
    ),
    (
        "grpc_web_frame",
        "A gRPC or gRPC-Web Push whose frame is cut short, too long or of an unknown kind.",
    ),
    ("protobuf_malformed", "A Push whose body is no PushRequest."),
    ("json_malformed", "A JSON Push whose body is no PushRequest."),
    ("gzip_corrupt", "A body said to be gzip that cannot be unpacked."),
    (
        "name_missing",
        "/ingest without the name parameter: nobody could tell whose profile it is.",
    ),
    (
        "name_malformed",
        "/ingest with a name that cannot be read; it looks like app{label=value}.",
    ),
    (
        "labels_empty",
        "A profile without any label; at least the service's name is needed.",
    ),
    (
        "label_name_invalid",
        "A label whose name has other characters than letters, digits, _ and dot.",
    ),
    ("labels_too_large", "Labels that are too many, or too long."),
    (
        "relabel_unsendable",
        "A relabel rule made a value with , or } in it, or a name with {, which /ingest has no way to send; mend the rule.",
    ),
    (
        "path_malformed",
        "A path with a bad percent-escape or a control character.",
    ),
    (
        "body_too_large",
        "A body above --body-limit, as sent or unpacked.",
    ),
    (
        "memory_limit",
        "No memory left below --memory-limit; the client was told to come back. Is a destination down?",
    ),
    (
        "queue_full",
        "A destination's queue is full and --overflow is refuse; the client was told to come back.",
    ),
    (
        "spool_behind",
        "Profiles come faster than the disk stores them (--ack stored); the client was told to come back.",
    ),
    (
        "not_stored",
        "The disk failed and the destination did not take it either (--ack stored); the client was told to come back.",
    ),
    (
        "connection_limit",
        "Every connection of --conn-limit was busy, so the client was told to come back.",
    ),
    (
        "accept_failed",
        "The system gave no new connection: raise the limit of open files. Clients wait meanwhile.",
    ),
    (
        "read_timeout",
        "The request did not arrive whole within --read-timeout.",
    ),
    ("truncated", "The client left before its body was complete."),
    (
        "deadline_exceeded",
        "The client's own deadline passed while destinations were still asked.",
    ),
    (
        "relayed",
        "A destination refused it and --ack passes that on; see its last error above.",
    ),
    (
        "unanswered",
        "No destination answered in time, and --ack waits for one.",
    ),
    (
        "tls_on_plain_port",
        "A client speaks TLS to this plain HTTP port: its URL should begin with http://.",
    ),
    (
        "http2_in_cleartext",
        "A client speaks HTTP/2 (mostly gRPC) in cleartext: give --h2c, or let it use TLS.",
    ),
    (
        "http_on_tls_port",
        "A client speaks cleartext HTTP to this TLS port: its URL should begin with https://.",
    ),
    (
        "tls_certificate_missing",
        "A client showed no certificate, and --tls-client-auth requires one.",
    ),
    (
        "tls_certificate_unknown_authority",
        "A client's certificate is signed by nobody in --tls-client-ca-file.",
    ),
    (
        "tls_certificate_expired",
        "A client's certificate has expired: it needs a new one.",
    ),
    (
        "tls_certificate_*",
        "A client's certificate cannot be used: broken, for another purpose, or not valid yet.",
    ),
    (
        "tls_refused_by_client",
        "A client broke the handshake off, mostly because it does not trust --tls-cert-file or looks for another name in it.",
    ),
    (
        "tls_incompatible",
        "A client knows no version of TLS or cipher suite that is spoken here; see --tls-min-version.",
    ),
    (
        "tls_no_protocol",
        "A client offers application protocols (ALPN) that are not spoken here.",
    ),
    (
        "tls_timeout",
        "A TLS handshake was not over within --read-timeout.",
    ),
    (
        "tls_*",
        "A connection that did not become TLS: broken off, or something else than TLS.",
    ),
    ("version_unsupported", "A version of HTTP other than 1.0 and 1.1."),
    ("expect_unknown", "An Expect header other than 100-continue."),
    ("host_*", "HTTP/1.1 without exactly one good Host header."),
    (
        "headers_too_*",
        "More headers, or longer ones, than are taken (64 KiB).",
    ),
    (
        "start_line_too_long",
        "A request line above 1 MiB; most of it is usually the name parameter.",
    ),
    (
        "length_and_transfer_encoding",
        "Both Content-Length and Transfer-Encoding: two readers could disagree on its end.",
    ),
    (
        "content_length_*",
        "A Content-Length that is missing its number, repeated or beyond reading.",
    ),
    (
        "transfer_encoding_*",
        "A Transfer-Encoding other than a single chunked.",
    ),
    ("chunk_*", "A chunked body whose framing is broken."),
    (
        "trailers_too_long",
        "A chunked body with too much behind its end.",
    ),
    (
        "target_*",
        "A request target that no client of ours sends; often a proxy request or a scanner.",
    ),
    (
        "header_*",
        "A header line that two readers could read differently.",
    ),
    (
        "whitespace_*",
        "Whitespace where HTTP allows none; two readers could disagree.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_meaning_can_be_reached() {
        for (index, (reason, expected)) in MEANINGS.iter().enumerate() {
            assert_eq!(
                meaning(&reason.replace('*', "x")),
                *expected,
                "row {index}, {reason}"
            );
        }
        assert!(meaning("bare_lf").contains("well-formed"));
    }
}
