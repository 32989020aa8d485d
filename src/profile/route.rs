//! The data port's routes (WIRE.md 1.1). Not responsible for queries, bodies or answers.

use std::borrow::Cow;

use crate::profile::query::{percent, unpercent};

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// `POST /ingest`, or its alias `POST /pyroscope/ingest`.
    Ingest,
    /// `POST /push.v1.PusherService/Push`.
    Push,
}

/// What a request line's method and path lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Routed {
    /// A handler.
    Route(Route),
    /// Passed through to a destination that has such a service: the procedure, and the clean path to ask it with.
    Debuginfo(Procedure, String),
    /// 405 with an empty body and `Allow: POST`, as connect-go answers.
    PostOnly,
    /// 404 with the text `404 page not found`.
    NotFound,
    /// 405 with an empty body and no `Allow`.
    MethodNotAllowed,
    /// 301 to this cleaned, encoded path, at most three times as long as the path plus one byte; the caller
    /// appends the query.
    Redirect(String),
    /// 400: a bad percent-escape or a control character, which Go refuses before routing.
    Malformed,
}

/// What debuginfo is asked for (WIRE.md section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Procedure {
    /// Unary.
    ShouldInitiateUpload,
    /// `Upload/ID`: a plain POST whose body is the file.
    Upload,
    /// Unary.
    UploadFinished,
}

impl Procedure {
    /// Every procedure, in the order of its index, and its name.
    pub const ALL: [(Self, &'static str); 3] = [
        (Self::ShouldInitiateUpload, "ShouldInitiateUpload"),
        (Self::Upload, "Upload"),
        (Self::UploadFinished, "UploadFinished"),
    ];
}

/// All procedures of the debuginfo service.
const DEBUGINFO_SERVICE: &[u8] = b"/debuginfo.v1alpha1.DebuginfoService/";

/// `/ingest`.
pub const INGEST: &[u8] = b"/ingest";
/// The alias that a Pyroscope server also serves.
pub const INGEST_ALIAS: &[u8] = b"/pyroscope/ingest";
/// The Push procedure.
pub const PUSH: &[u8] = b"/push.v1.PusherService/Push";
/// All procedures of the Push service: any method but POST is 405 under it.
const PUSH_SERVICE: &[u8] = b"/push.v1.PusherService/";

/// Routes a request by its raw path, without query.
pub fn route(method_is_post: bool, path: &[u8]) -> Routed {
    if method_is_post {
        match path {
            INGEST | INGEST_ALIAS => return Routed::Route(Route::Ingest),
            PUSH => return Routed::Route(Route::Push),
            _ => {}
        }
    }
    let Some(decoded) = unescape_path(path) else {
        return Routed::Malformed;
    };
    if *decoded == *b"*" {
        return Routed::NotFound;
    }
    let clean = clean_path(&decoded);
    if *clean != *decoded {
        return Routed::Redirect(escape_path(&clean));
    }
    let route = match &*decoded {
        INGEST | INGEST_ALIAS => Route::Ingest,
        PUSH => Route::Push,
        other if other.starts_with(PUSH_SERVICE) && !method_is_post => return Routed::MethodNotAllowed,
        other if other.starts_with(DEBUGINFO_SERVICE) => return debuginfo(method_is_post, other),
        _ => return Routed::NotFound,
    };
    if method_is_post {
        Routed::Route(route)
    } else {
        Routed::MethodNotAllowed
    }
}

/// Routes a clean path below the debuginfo service.
fn debuginfo(method_is_post: bool, path: &[u8]) -> Routed {
    let upload = |rest: &[u8]| {
        rest.strip_prefix(b"Upload/")
            .is_some_and(|id| !id.is_empty() && !id.contains(&b'/'))
    };
    let (procedure, refusal) = match &path[DEBUGINFO_SERVICE.len()..] {
        b"ShouldInitiateUpload" => (Procedure::ShouldInitiateUpload, Routed::PostOnly),
        b"UploadFinished" => (Procedure::UploadFinished, Routed::PostOnly),
        rest if upload(rest) => (Procedure::Upload, Routed::MethodNotAllowed),
        _ => return Routed::NotFound,
    };
    if method_is_post {
        Routed::Debuginfo(procedure, escape_path(path))
    } else {
        refusal
    }
}

/// Percent-decodes a path (`+` stays). `None` on a bad escape or a control character.
fn unescape_path(path: &[u8]) -> Option<Cow<'_, [u8]>> {
    if path.iter().any(u8::is_ascii_control) {
        return None;
    }
    let Some(first) = memchr::memchr(b'%', path) else {
        return Some(Cow::Borrowed(path));
    };
    let mut decoded = path[..first].to_vec();
    let mut rest = &path[first..];
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'%' {
            decoded.push(unpercent(tail)?);
            rest = &tail[2..];
        } else {
            decoded.push(byte);
            rest = tail;
        }
    }
    Some(Cow::Owned(decoded))
}

/// Resolves `.`, `..` and repeated slashes; keeps a trailing slash; the result starts with a slash.
fn clean_path(path: &[u8]) -> Vec<u8> {
    let mut clean = Vec::with_capacity(path.len() + 1);
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => clean.truncate(clean.iter().rposition(|&b| b == b'/').unwrap_or(0)),
            part => {
                clean.push(b'/');
                clean.extend_from_slice(part);
            }
        }
    }
    if clean.is_empty() || path.ends_with(b"/") {
        clean.push(b'/');
    }
    clean
}

/// Encodes a path as Go's `URL.String` does.
fn escape_path(path: &[u8]) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&b);
    let mut out = String::with_capacity(path.len());
    for &byte in path {
        if plain(byte) {
            out.push(char::from(byte));
        } else {
            out.extend(percent(byte).map(char::from));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_1_to_9() {
        let redirect = |to: &str| Routed::Redirect(to.to_owned());
        let ingest = Routed::Route(Route::Ingest);
        let push = Routed::Route(Route::Push);
        let debuginfo = |procedure, path: &str| {
            Routed::Debuginfo(procedure, format!("/debuginfo.v1alpha1.DebuginfoService/{path}"))
        };
        let cases = [
            ("1 ingest", true, "/ingest", ingest.clone()),
            ("alias", true, "/pyroscope/ingest", ingest.clone()),
            ("push", true, "/push.v1.PusherService/Push", push.clone()),
            ("OPTIONS *", false, "*", Routed::NotFound),
            ("2 other method", false, "/ingest", Routed::MethodNotAllowed),
            (
                "2 other method on the alias",
                false,
                "/pyroscope/ingest",
                Routed::MethodNotAllowed,
            ),
            (
                "3 other method on push",
                false,
                "/push.v1.PusherService/Push",
                Routed::MethodNotAllowed,
            ),
            (
                "3 anywhere in the service",
                false,
                "/push.v1.PusherService/x/y",
                Routed::MethodNotAllowed,
            ),
            ("4 unknown", true, "/", Routed::NotFound),
            ("4 empty", true, "", redirect("/")),
            ("4 longer", true, "/ingestx", Routed::NotFound),
            ("4 other case", true, "/INGEST", Routed::NotFound),
            ("5 trailing slash", true, "/ingest/", Routed::NotFound),
            ("5 trailing slash, GET", false, "/ingest/", Routed::NotFound),
            ("6 double slash", true, "//ingest", redirect("/ingest")),
            ("6 dot", true, "/./ingest", redirect("/ingest")),
            ("6 dot dot", true, "/x/../ingest", redirect("/ingest")),
            ("6 above the root", true, "/../../ingest", redirect("/ingest")),
            (
                "6 keeps a trailing slash",
                true,
                "//ingest//",
                redirect("/ingest/"),
            ),
            ("6 dot at the end", true, "/ingest/.", redirect("/ingest")),
            ("6 any method", false, "//ingest", redirect("/ingest")),
            ("6 unknown paths too", true, "//x", redirect("/x")),
            (
                "6 encoded again",
                true,
                "//a%20b%3fc%25é;d",
                redirect("/a%20b%3Fc%25%C3%A9;d"),
            ),
            ("6 encoded slash", true, "/%2Fingest", redirect("/ingest")),
            ("7 escaped letter", true, "/ing%65st", ingest),
            ("7 escaped push", true, "/push%2ev1.PusherService%2FPush", push),
            ("7 escaped, GET", false, "/ing%65st", Routed::MethodNotAllowed),
            ("plus is no space", true, "/in+gest", Routed::NotFound),
            (
                "8 other procedure",
                true,
                "/push.v1.PusherService/Pull",
                Routed::NotFound,
            ),
            ("8 the prefix", true, "/push.v1.PusherService/", Routed::NotFound),
            (
                "8 without its slash",
                false,
                "/push.v1.PusherService",
                Routed::NotFound,
            ),
            (
                "140 unary",
                true,
                "/debuginfo.v1alpha1.DebuginfoService/UploadFinished",
                debuginfo(Procedure::UploadFinished, "UploadFinished"),
            ),
            (
                "141 upload",
                true,
                "/debuginfo.v1alpha1.DebuginfoService/Upload/a%20b",
                debuginfo(Procedure::Upload, "Upload/a%20b"),
            ),
            (
                "141 upload of nothing",
                true,
                "/debuginfo.v1alpha1.DebuginfoService/Upload/",
                Routed::NotFound,
            ),
            (
                "141 too deep",
                true,
                "/debuginfo.v1alpha1.DebuginfoService/Upload/a/b",
                Routed::NotFound,
            ),
            (
                "142 unary",
                false,
                "/debuginfo.v1alpha1.DebuginfoService/ShouldInitiateUpload",
                Routed::PostOnly,
            ),
            (
                "142 upload",
                false,
                "/debuginfo.v1alpha1.DebuginfoService/Upload/a",
                Routed::MethodNotAllowed,
            ),
            (
                "142 unknown",
                false,
                "/debuginfo.v1alpha1.DebuginfoService/List",
                Routed::NotFound,
            ),
            ("9 metrics", true, "/metrics", Routed::NotFound),
            ("bad escape", true, "/ing%6", Routed::Malformed),
            ("bad digits", true, "/%zz", Routed::Malformed),
            ("control character", true, "/in\x01gest", Routed::Malformed),
            ("escaped control character", true, "/in%01gest", Routed::NotFound),
        ];
        for (name, post, path, expected) in cases {
            assert_eq!(route(post, path.as_bytes()), expected, "{name}");
        }
    }

    #[test]
    fn redirects_end() {
        for path in ["//a//b/../c/./", "/..//..", "///", "/a/b/../../..", "//%2e%2e/x"] {
            let Routed::Redirect(clean) = route(true, path.as_bytes()) else {
                panic!("{path} is not clean")
            };
            assert_eq!(
                route(true, clean.as_bytes()),
                Routed::NotFound,
                "{path} -> {clean}"
            );
            assert!(!clean.starts_with("//"), "never another host: {clean}");
        }
    }
}
