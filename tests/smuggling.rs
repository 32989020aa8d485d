//! Request smuggling: a table of what attackers send, judged by the parser and by the real binary.
//!
//! Each row says where it comes from: the section that forbids it, the public name of the technique, or the test of another
//! project that has it (Smuggler: defparam/smuggler, `configs/exhaustive.py`; Http11Probe: MDA2AV/Http11Probe; `Name#1` is an
//! issue or a pull request of that project; Funky Chunks: w4ke.info, 2025). What is refused names its cause, what is taken
//! names what must arrive, byte for byte.
//!
//! The parser gets every row whole and in every cut. The binary gets every row over sockets, under both engines: whole, byte
//! by byte and in random pieces, alone and pipelined behind a good push, and always with a good push as a probe behind it.
//! A recording destination says what arrived: what was meant, once, and nothing else. Not responsible for the plain syntax
//! of heads and bodies, which is tested beside their code.

mod support;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};

use pyrotee::http::{ChunkLimits, ChunkedDecoder, Framing, HeadLimits, HeadReader, Piece, Progress};
use support::gateway::Gateway;
use support::peer::Peer;
use support::wire::name_of;
use support::{DEADLINE, post, under_both_engines};

under_both_engines!(
    whole,
    byte_by_byte,
    in_random_pieces,
    whole_behind_a_good_push,
    in_random_pieces_behind_a_good_push,
    one_odd_byte_beside_transfer_encoding,
);

/// One thing that a client sends, and what has to come of it.
struct Row {
    name: &'static str,
    source: &'static str,
    /// What is sent. `POST / ` stands for a push called after the row, `SMUGGLED` for a whole push of another name.
    input: &'static str,
    /// Status and body of each request that is answered before anything is refused; a body arrives with a 200.
    served: &'static [(u16, &'static str)],
    end: End,
}

/// How a connection goes on behind a row.
enum End {
    /// The next request on it is served.
    Open,
    /// It ends without another word.
    Closed,
    /// It ends with this status, for this cause.
    Refused(&'static str),
}

use End::{Closed, Open};

/// `name: source, what the client sends => status and label of the refusal`, perhaps `after` one request that was served.
macro_rules! refused {
    ($($name:ident: $source:expr, $input:expr => $expected:literal $(after $served:expr)?;)*) => {
        const REFUSED: &[Row] = &[$(Row {
            name: stringify!($name),
            source: $source,
            input: $input,
            served: &[$($served)?],
            end: End::Refused($expected),
        }),*];
        mod refused {
            $(#[test] fn $name() { super::parsed(super::REFUSED, stringify!($name)); })*
        }
    };
}

/// `name: source, what the client sends => what is served, how the connection goes on`.
macro_rules! served {
    ($($name:ident: $source:expr, $input:expr => $served:expr, $end:expr;)*) => {
        const SERVED: &[Row] = &[$(Row {
            name: stringify!($name),
            source: $source,
            input: $input,
            served: &$served,
            end: $end,
        }),*];
        mod served {
            $(#[test] fn $name() { super::parsed(super::SERVED, stringify!($name)); })*
        }
    };
}

refused! {
    cl_te: "CL.TE", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nSMUGGLED" => "400 length_and_transfer_encoding";
    te_cl: "TE.CL", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\nSMUGGLED" => "400 length_and_transfer_encoding";
    cl_zero_te: "CL.TE with length 0", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nSMUGGLED" => "400 length_and_transfer_encoding";
    cl_te_apart: "CL.TE with fields in between", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\nA: b\r\nC: d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nSMUGGLED" => "400 length_and_transfer_encoding";
    cl_te_lower_case: "CL.TE in lower case", "POST / HTTP/1.1\r\nHost: h\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nSMUGGLED" => "400 length_and_transfer_encoding";
    cl_te_unknown: "CL.TE with an obfuscated coding", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\nSMUGGLED" => "400 length_and_transfer_encoding";
    cl_cl_different: "RFC 9112 6.3, CL.CL", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n0\r\n\r\nSMUGGLED" => "400 content_length_repeated";
    cl_cl_equal: "RFC 9110 8.6", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 content_length_repeated";
    cl_cl_case: "CL.CL in two spellings", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\ncontent-LENGTH: 0\r\n\r\n0\r\n\r\nSMUGGLED" => "400 content_length_repeated";
    cl_list_equal: "RFC 9110 8.6", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5, 5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 content_length_list";
    cl_list_different: "RFC 9112 6.3", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5,6\r\n\r\n0\r\n\r\nSMUGGLED" => "400 content_length_list";
    cl_plus: "RFC 9110 8.6, 1*DIGIT", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 content_length_invalid";
    cl_minus: "RFC 9110 8.6, 1*DIGIT", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 content_length_invalid";
    cl_hex: "RFC 9110 8.6, 1*DIGIT", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0x5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 content_length_invalid";
    cl_fraction: "RFC 9110 8.6, 1*DIGIT", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5.0\r\n\r\n0\r\n\r\nSMUGGLED" => "400 content_length_invalid";
    cl_exponent: "RFC 9110 8.6, 1*DIGIT", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1e1\r\n\r\n0\r\n\r\nSMUGGLED" => "400 content_length_invalid";
    cl_space_inside: "RFC 9110 8.6, 1*DIGIT", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1 0\r\n\r\n0\r\n\r\nSMUGGLED" => "400 content_length_invalid";
    cl_underscore: "RFC 9110 8.6, Python's int()", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1_0\r\n\r\n0\r\n\r\nSMUGGLED" => "400 content_length_invalid";
    cl_semicolon: "RFC 9110 8.6, 1*DIGIT", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5;a\r\n\r\n0\r\n\r\nSMUGGLED" => "400 content_length_invalid";
    cl_quoted: "RFC 9110 8.6, 1*DIGIT", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: \"5\"\r\n\r\n0\r\n\r\nSMUGGLED" => "400 content_length_invalid";
    cl_wide_digit: "RFC 9110 8.6, Unicode digits", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: \u{ff15}\r\n\r\n0\r\n\r\nSMUGGLED" => "400 content_length_invalid";
    cl_empty: "RFC 9110 8.6, CL.0", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\r\n0\r\n\r\nSMUGGLED" => "400 content_length_empty";
    cl_blank: "RFC 9110 8.6, CL.0", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length:  \r\n\r\n0\r\n\r\nSMUGGLED" => "400 content_length_empty";
    cl_wraps_64_bits: "RFC 9110 8.6, integer overflow", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 18446744073709551621\r\n\r\n0\r\n\r\nSMUGGLED" => "400 content_length_overflow";
    cl_wraps_63_bits: "RFC 9110 8.6, integer overflow", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9223372036854775813\r\n\r\n0\r\n\r\nSMUGGLED" => "400 content_length_overflow";
    cl_vertical_tab: "RFC 9110 5.5", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: \x0b5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 control_byte";
    cl_tab: "tab beside a value", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length:\t5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 framing_whitespace";
    cl_space_before_colon: "RFC 9112 5.1", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length : 5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 whitespace_before_colon";
    cl_folded: "RFC 9112 5.2", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n 5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 content_length_empty";
    te_te: "TE.TE", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\nSMUGGLED" => "400 transfer_encoding_repeated";
    te_te_equal: "TE.TE", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nSMUGGLED" => "400 transfer_encoding_repeated";
    te_chunked_twice: "RFC 9112 6.1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\nSMUGGLED" => "400 transfer_encoding_chunked_misplaced";
    te_chunked_first: "RFC 9112 6.1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\nSMUGGLED" => "400 transfer_encoding_chunked_misplaced";
    te_chunked_then_identity: "TE.TE", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\nSMUGGLED" => "400 transfer_encoding_chunked_misplaced";
    te_identity: "RFC 7230 A.2", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\nSMUGGLED" => "400 transfer_encoding_identity";
    te_identity_chunked: "RFC 7230 A.2", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\nSMUGGLED" => "400 transfer_encoding_identity";
    te_gzip_chunked: "RFC 9112 6.1, WIRE.md 5.2", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\nSMUGGLED" => "501 transfer_encoding_unknown";
    te_xchunked: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\nSMUGGLED" => "501 transfer_encoding_unknown";
    te_cow: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: cow\r\n\r\n0\r\n\r\nSMUGGLED" => "501 transfer_encoding_unknown";
    te_empty: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\nSMUGGLED" => "400 transfer_encoding_malformed";
    te_comma_first: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: ,chunked\r\n\r\n0\r\n\r\nSMUGGLED" => "400 transfer_encoding_malformed";
    te_comma_last: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked,\r\n\r\n0\r\n\r\nSMUGGLED" => "400 transfer_encoding_malformed";
    te_quoted: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\nSMUGGLED" => "400 transfer_encoding_malformed";
    te_single_quoted: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: 'chunked'\r\n\r\n0\r\n\r\nSMUGGLED" => "501 transfer_encoding_unknown";
    te_parameter: "RFC 9112 7", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked;a=b\r\n\r\n0\r\n\r\nSMUGGLED" => "400 transfer_encoding_malformed";
    te_two_words: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked x\r\n\r\n0\r\n\r\nSMUGGLED" => "400 transfer_encoding_malformed";
    te_space_before_colon: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\nSMUGGLED" => "400 whitespace_before_colon";
    te_tab_before_colon: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\nSMUGGLED" => "400 whitespace_before_colon";
    te_tab: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\tchunked\r\n\r\n0\r\n\r\nSMUGGLED" => "400 framing_whitespace";
    te_tab_behind: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\t\r\n\r\n0\r\n\r\nSMUGGLED" => "400 framing_whitespace";
    te_vertical_tab: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\nSMUGGLED" => "400 control_byte";
    te_form_feed: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\x0c\r\n\r\n0\r\n\r\nSMUGGLED" => "400 control_byte";
    te_nul: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\0\r\n\r\n0\r\n\r\nSMUGGLED" => "400 control_byte";
    te_nul_in_name: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding\0: chunked\r\n\r\n0\r\n\r\nSMUGGLED" => "400 control_byte";
    te_delete: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\x7f\r\n\r\n0\r\n\r\nSMUGGLED" => "400 control_byte";
    te_space_first: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nSMUGGLED" => "400 header_folded";
    te_folded: "RFC 9112 5.2", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\nSMUGGLED" => "400 transfer_encoding_malformed";
    te_folded_into_other: "RFC 9112 5.2", "POST / HTTP/1.1\r\nHost: h\r\nA: b\r\n\tTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nSMUGGLED" => "400 header_folded";
    te_behind_bare_lf: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nA: b\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nSMUGGLED" => "400 bare_lf";
    te_behind_bare_cr: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nA: b\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nSMUGGLED" => "400 bare_cr";
    te_cr_before_colon: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding\r: chunked\r\n\r\n0\r\n\r\nSMUGGLED" => "400 bare_cr";
    te_cr_cr_lf: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\r\n\r\n0\r\n\r\nSMUGGLED" => "400 bare_cr";
    te_no_colon: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding chunked\r\n\r\n0\r\n\r\nSMUGGLED" => "400 header_colon_missing";
    te_name_two_words: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nFoo Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nSMUGGLED" => "400 header_name_invalid";
    te_name_beyond_ascii: "RFC 9110 5.6.2", "POST / HTTP/1.1\r\nHost: h\r\nTransfer\u{2010}Encoding: chunked\r\n\r\n0\r\n\r\nSMUGGLED" => "400 header_name_invalid";
    te_name_empty: "RFC 9110 5.1", "POST / HTTP/1.1\r\nHost: h\r\n: chunked\r\n\r\n0\r\n\r\nSMUGGLED" => "400 header_name_empty";
    te_http10: "RFC 9112 6.1", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nSMUGGLED" => "400 transfer_encoding_http10";
    bare_lf_head: "RFC 9112 2.2", "POST / HTTP/1.1\nHost: h\n\n" => "400 bare_lf";
    bare_lf_blank_line: "RFC 9112 2.2", "POST / HTTP/1.1\r\nHost: h\r\n\nSMUGGLED" => "400 bare_lf";
    bare_cr_blank_line: "RFC 9112 2.2", "POST / HTTP/1.1\r\nHost: h\r\n\rSMUGGLED HTTP/1.1\r\n" => "400 bare_cr";
    space_before_first_field: "RFC 9112 2.2", "POST / HTTP/1.1\r\n Host: h\r\nHost: h\r\n\r\n" => "400 whitespace_first";
    blank_line_with_space: "RFC 9112 2.2", "POST / HTTP/1.1\r\nHost: h\r\n \r\nSMUGGLED" => "400 header_folded";
    host_twice: "RFC 9112 3.2", "POST / HTTP/1.1\r\nHost: h\r\nHost: evil\r\n\r\n" => "400 host_repeated";
    host_hidden_by_space: "Host of Troubles", "POST / HTTP/1.1\r\nHost: h\r\nHost : evil\r\n\r\n" => "400 whitespace_before_colon";
    host_missing: "RFC 9112 3.2", "POST / HTTP/1.1\r\nX-Host: h\r\n\r\n" => "400 host_missing";
    request_in_the_request_line: "RFC 9112 3", "GET / HTTP/1.1 SMUGGLED" => "400 request_line_spaces";
    version_09: "HTTP/0.9 downgrade", "GET /\r\nHost: h\r\n\r\n" => "400 version_missing";
    version_tab: "RFC 9112 3, lenient white space", "GET /\tHTTP/1.1\r\nHost: h\r\n\r\n" => "400 control_byte";
    http2_preface: "RFC 9113 3.4", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" => "301 http2_in_cleartext";
    user_in_absolute_target: "RFC 9110 4.2.4", "GET http://h@evil/ HTTP/1.1\r\nHost: h\r\n\r\n" => "400 target_authority";
    backslash_in_authority: "URL parser confusion", "GET http://h\\evil/ HTTP/1.1\r\nHost: h\r\n\r\n" => "400 target_authority";
    expect_obfuscated: "PortSwigger, HTTP/1.1 Must Die (0.CL by Expect)", "POST / HTTP/1.1\r\nHost: h\r\nExpect: y 100-continue\r\nContent-Length: 5\r\n\r\n0\r\n\r\nSMUGGLED" => "417 expect_unknown";
    second_request_is_judged_too: "CL.0 with a pipelined request", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhelloPOST / HTTP/1.1\r\nFoo: b\r\nContent-Length: 2\r\n\r\nhi" => "400 host_missing" after (200, "hello");
    body_of_a_get_is_skipped: "CL.0 on GET", "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nPOSTGET / HTTP/2.0\r\n" => "505 version_unsupported" after (405, "");
    chunk_size_0x: "RFC 9112 7.1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\nSMUGGLED" => "400 chunk_size_invalid";
    chunk_size_plus: "RFC 9112 7.1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\nSMUGGLED" => "400 chunk_size_invalid";
    chunk_size_minus: "RFC 9112 7.1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n-0\r\n\r\n" => "400 chunk_size_invalid";
    chunk_size_empty: "RFC 9112 7.1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\nSMUGGLED" => "400 chunk_size_invalid";
    chunk_size_space_before: "RFC 9112 7.1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n 5\r\nhello\r\n0\r\n\r\nSMUGGLED" => "400 chunk_size_invalid";
    chunk_size_space_behind: "RFC 9112 7.1.1, BWS", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\nSMUGGLED" => "400 chunk_size_invalid";
    chunk_size_wraps: "RFC 9112 7.1, integer overflow", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\nSMUGGLED" => "400 chunk_size_invalid";
    chunk_size_underscore: "RFC 9112 7.1, Python's int()", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0_5\r\nhello\r\n0\r\n\r\nSMUGGLED" => "400 chunk_size_invalid";
    chunk_size_then_garbage: "RFC 9112 7.1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5xyz\r\nhello\r\n0\r\n\r\nSMUGGLED" => "400 chunk_size_invalid";
    chunk_size_bare_lf: "Go CVE-2025-22871, RFC 9112 2.2", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\nSMUGGLED" => "400 bare_lf";
    chunk_size_bare_cr: "RFC 9112 2.2, bare CR", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\rXhello\r\n0\r\n\r\nSMUGGLED" => "400 bare_cr";
    chunk_term_ext: "Funky Chunks TERM.EXT, Kestrel CVE-2025-55315, fasthttp#1899", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2;\nxx\r\n4c\r\n0\r\n\r\n" => "400 bare_lf";
    chunk_ext_term: "Funky Chunks EXT.TERM", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2;\rxx\r\n0\r\n\r\n" => "400 bare_cr";
    chunk_ext_cr_cr_lf: "Funky Chunks EXT.TERM with CR CR LF", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2;a\r\r\nxx\r\n0\r\n\r\n" => "400 bare_cr";
    chunk_ext_nul: "RFC 9112 7.1.1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2;a\0\r\nxx\r\n0\r\n\r\n" => "400 control_byte";
    chunk_spill_term: "Funky Chunks SPILL.TERM", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nAAAAAXX0\r\n\r\nSMUGGLED" => "400 chunk_data_end_missing";
    chunk_term_spill: "Funky Chunks TERM.SPILL, LF only", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nAAAAA\n0\r\n\r\n" => "400 chunk_data_end_missing";
    chunk_data_cr_only: "Funky Chunks, CR only", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nAAAAA\r0\r\n\r\n" => "400 chunk_data_end_missing";
    chunk_data_no_end: "Funky Chunks ONE.TWO", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nAAAAA0\r\n\r\n" => "400 chunk_data_end_missing";
    chunk_size_too_small: "RFC 9112 7.1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\nSMUGGLED" => "400 chunk_data_end_missing";
    chunk_end_bare_lf: "RFC 9112 7.1.2, bare LF", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\nSMUGGLED" => "400 bare_lf";
    chunk_end_both_bare_lf: "RFC 9112 7.1, bare LF", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\n\nSMUGGLED" => "400 bare_lf";
    chunk_end_bare_cr: "RFC 9112 7.1.2, bare CR", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\rSMUGGLED" => "400 bare_cr";
    chunk_end_missing: "RFC 9112 7.1.2, a request read as trailers", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nSMUGGLED" => "400 whitespace_before_colon";
    trailer_bare_lf: "TR.MRG, bare LF in trailers", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\nSMUGGLED" => "400 bare_lf";
    trailer_folded: "RFC 9112 5.2", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n SMUGGLED\r\n\r\n" => "400 header_folded";
    trailer_space_before_colon: "RFC 9112 5.1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA : b\r\n\r\n" => "400 whitespace_before_colon";
    trailer_nul: "RFC 9110 5.5", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: \0\r\n\r\n" => "400 control_byte";
    trailers_frame_nothing: "RFC 9110 6.5.1, TR.MRG", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 60\r\nTransfer-Encoding: x\r\n\r\nGET / HTTP/3.0\r\n" => "505 version_unsupported" after (200, "");
    te_lf_wrapped: "Smuggler linewrapped1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\n chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 bare_lf";
    te_cow_first: "Smuggler cowComma", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: cow, chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nSMUGGLED" => "501 transfer_encoding_unknown";
    te_cow_last: "Smuggler commaCow", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, cow\r\nContent-Length: 5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 transfer_encoding_chunked_misplaced";
    te_nested: "Smuggler nested", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: cow chunked bar\r\nContent-Length: 5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 transfer_encoding_malformed";
    te_chunk: "Smuggler lazygrep", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunk\r\nContent-Length: 5\r\n\r\n0\r\n\r\nSMUGGLED" => "501 transfer_encoding_unknown";
    te_cr_in_name: "Smuggler 0dspam", "POST / HTTP/1.1\r\nHost: h\r\nTransfer\r-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 bare_cr";
    te_name_with_space: "Smuggler spacejoin1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 header_name_invalid";
    te_value_beyond_ascii: "Smuggler accentCH", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: ch\u{f9}nked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 transfer_encoding_malformed";
    te_no_break_space: "Smuggler midspace-a0", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\u{a0}chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 transfer_encoding_malformed";
    te_name_accent: "Smuggler accentTE", "POST / HTTP/1.1\r\nHost: h\r\nTransf\u{e9}r-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 header_name_invalid";
    te_cow_then_chunked: "Smuggler revdualchunk", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: cow\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nSMUGGLED" => "501 transfer_encoding_unknown";
    te_behind_cr_in_value: "Smuggler x-rout", "POST / HTTP/1.1\r\nHost: h\r\nX:X\rTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 bare_cr";
    te_behind_lf_in_value: "Smuggler x-nout", "POST / HTTP/1.1\r\nHost: h\r\nX:X\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 bare_lf";
    te_crlf_before_value: "SMUGGLEtest, fold without white space", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: \r\nchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 transfer_encoding_malformed";
    cl_te_and_close: "Http11Probe CLTE-CONN-CLOSE", "POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 length_and_transfer_encoding";
    te_named_in_connection: "PortSwigger, hop-by-hop abuse", "POST / HTTP/1.1\r\nHost: h\r\nConnection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 length_and_transfer_encoding";
    cl_named_in_connection: "PortSwigger, hop-by-hop abuse", "POST / HTTP/1.1\r\nHost: h\r\nConnection: Content-Length\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 length_and_transfer_encoding";
    te_tab_comma: "Envoy#15244, tabs around codings", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked,\tidentity\r\nContent-Length: 5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 framing_whitespace";
    te_upgrade: "h2c smuggling beside CL.TE", "POST / HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 length_and_transfer_encoding";
    te_http10_keep_alive: "RFC 9112 6.1, Http11Probe TE-HTTP10", "POST / HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 transfer_encoding_http10";
    cl_list_three: "Http11Probe CL-COMMA-TRIPLE", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5, 5, 5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 content_length_list";
    cl_minus_zero: "Http11Probe CL-NEGATIVE-ZERO", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -0\r\n\r\n0\r\n\r\nSMUGGLED" => "400 content_length_invalid";
    cl_octal: "Http11Probe CL-OCTAL", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0o5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 content_length_invalid";
    cl_nul: "RFC 9110 5.5", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\0\r\n\r\n0\r\n\r\nSMUGGLED" => "400 control_byte";
    cl_no_break_space: "RFC 9110 8.6, Unicode white space", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: \u{a0}5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 content_length_invalid";
    cl_tab_behind: "Envoy#15244", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\t\r\n\r\n0\r\n\r\nSMUGGLED" => "400 framing_whitespace";
    cl_wrapped_bare_lf: "Smuggler linewrapped1, for lengths", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length:\n 5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 bare_lf";
    cl_value_on_next_line: "Netty#9866", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length:\r\n6\r\n\r\n0\r\n\r\nSMUGGLED" => "400 content_length_empty";
    cl_cl_third: "CL.CL with a good pair first", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nA: b\r\nContent-Length: 005\r\n\r\n0\r\n\r\nSMUGGLED" => "400 content_length_repeated";
    cl_name_with_nul: "RFC 9110 5.1", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length\0: 5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 control_byte";
    cl_bare_cr_field: "Http11Probe BARE-CR-HEADER-VALUE", "POST / HTTP/1.1\r\nHost: h\r\nX: a\rContent-Length: 0\r\nContent-Length: 5\r\n\r\n0\r\n\r\nSMUGGLED" => "400 bare_cr";
    chunk_ext_control: "Http11Probe CHUNK-EXT-CTRL", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;a=\x01\r\nhello\r\n0\r\n\r\nSMUGGLED" => "400 control_byte";
    chunk_ext_lf_before_crlf: "Go CVE-2025-22871, Funky Chunks TERM.EXT", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;\n\r\nhello\r\n0\r\n\r\nSMUGGLED" => "400 bare_lf";
    chunk_size_tab_before_ext: "llhttp, white space before extensions", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\t;a\r\nhello\r\n0\r\n\r\nSMUGGLED" => "400 chunk_size_invalid";
    chunk_size_17_digits: "integer overflow with leading zeros", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n00000000000000005\r\nhello\r\n0\r\n\r\nSMUGGLED" => "400 chunk_size_invalid";
    chunk_size_all_ones: "integer overflow, minus one", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nhello\r\n0\r\n\r\nSMUGGLED" => "400 chunk_size_invalid";
    chunk_size_decimal_point: "RFC 9112 7.1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5.0\r\nhello\r\n0\r\n\r\nSMUGGLED" => "400 chunk_size_invalid";
    chunk_size_wide_digit: "RFC 9112 7.1, Unicode digits", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\u{ff15}\r\nhello\r\n0\r\n\r\nSMUGGLED" => "400 chunk_size_invalid";
    chunk_size_comma: "RFC 9112 7.1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5,5\r\nhello\r\n0\r\n\r\nSMUGGLED" => "400 chunk_size_invalid";
    chunk_size_nul: "RFC 9112 7.1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\0\r\nhello\r\n0\r\n\r\nSMUGGLED" => "400 chunk_size_invalid";
    chunk_size_cr_cr_lf: "llhttp, CR CR LF", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\r\nhello\r\n0\r\n\r\nSMUGGLED" => "400 bare_cr";
    chunk_size_lf_cr: "reversed line end", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\n\rhello\r\n0\r\n\r\nSMUGGLED" => "400 bare_lf";
    chunk_last_0x: "RFC 9112 7.1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0x0\r\n\r\nSMUGGLED" => "400 chunk_size_invalid";
    chunk_last_minus: "Http11Probe CHUNK-NEGATIVE", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\nSMUGGLED" => "400 chunk_size_invalid";
    chunk_end_other_bytes: "llhttp, two bytes taken for CR LF unread", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXY0\r\n\r\nSMUGGLED" => "400 chunk_data_end_missing";
    chunk_end_lf_cr: "reversed line end", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\n\r0\r\n\r\nSMUGGLED" => "400 chunk_data_end_missing";
    trailer_bare_cr: "Funky Chunks, CR in trailers", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\rContent-Length: 5\r\n\r\nSMUGGLED" => "400 bare_cr";
    trailer_no_colon: "RFC 9112 7.1.2", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nnonsense\r\n\r\nSMUGGLED" => "400 header_colon_missing";
    trailer_space_first: "RFC 9112 5.2", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n A: b\r\n\r\nSMUGGLED" => "400 header_folded";
    host_twice_equal: "RFC 9112 3.2", "POST / HTTP/1.1\r\nHost: h\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi" => "400 host_repeated";
    host_list: "Http11Probe MULTIPLE-HOST-COMMA", "POST / HTTP/1.1\r\nHost: h, evil\r\nContent-Length: 2\r\n\r\nhi" => "400 host_invalid";
    host_with_path: "RFC 9112 3.2", "POST / HTTP/1.1\r\nHost: h/evil\r\nContent-Length: 2\r\n\r\nhi" => "400 host_invalid";
    host_folded: "Host of Troubles", "POST / HTTP/1.1\r\nHost: h\r\n evil\r\nContent-Length: 2\r\n\r\nhi" => "400 header_folded";
    host_missing_in_absolute_form: "RFC 9112 3.2.2", "POST http://h/ingest HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi" => "400 host_missing";
    host_twice_in_absolute_form: "Host of Troubles", "POST http://h/ingest HTTP/1.1\r\nHost: h\r\nHost: evil\r\nContent-Length: 2\r\n\r\nhi" => "400 host_repeated";
    target_two_hosts: "URL parser confusion", "POST http://h,evil@x/ HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi" => "400 target_authority";
    connect: "RFC 9110 9.3.6", "CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\nSMUGGLED" => "400 target_form";
    version_09_push: "HTTP/0.9 downgrade", "POST /\r\n\r\nSMUGGLED" => "400 version_missing";
    version_lower_case: "RFC 9112 2.3", "POST / http/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhelloSMUGGLED" => "400 version_invalid";
    version_11_then_more: "RFC 9112 2.3", "POST / HTTP/1.10\r\nHost: h\r\nContent-Length: 5\r\n\r\nhelloSMUGGLED" => "400 version_invalid";
    version_vertical_tab: "RFC 9112 3", "POST / HTTP/1.1\x0b\r\nHost: h\r\nContent-Length: 5\r\n\r\nhelloSMUGGLED" => "400 control_byte";
    request_line_bare_cr: "RFC 9112 3", "POST /\rX: HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhelloSMUGGLED" => "400 bare_cr";
    request_line_lf_injected: "header injection by the target", "POST /\nHost: evil HTTP/1.1\r\nHost: h\r\n\r\nSMUGGLED" => "400 bare_lf";
    blank_lines_without_end: "RFC 9112 2.2", "\r\n\r\n\r\n\r\n\r\n\r\nSMUGGLED" => "400 leading_lines";
    nul_before_the_method: "RFC 9112 3", "\0POST / HTTP/1.1\r\nHost: h\r\n\r\nSMUGGLED" => "400 control_byte";
    expect_wrapped: "PortSwigger, HTTP/1.1 Must Die (0.CL by Expect)", "POST / HTTP/1.1\r\nHost: h\r\nExpect:\n 100-continue\r\nContent-Length: 5\r\n\r\nhelloSMUGGLED" => "400 bare_lf";
    expect_list: "PortSwigger, HTTP/1.1 Must Die (0.CL by Expect)", "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue, 100-continue\r\nContent-Length: 5\r\n\r\nhelloSMUGGLED" => "417 expect_unknown";
    expect_twice_other: "PortSwigger, HTTP/1.1 Must Die (0.CL by Expect)", "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nExpect: x\r\nContent-Length: 5\r\n\r\nhelloSMUGGLED" => "417 expect_unknown";
    expect_empty: "PortSwigger, HTTP/1.1 Must Die (0.CL by Expect)", "POST / HTTP/1.1\r\nHost: h\r\nExpect:\r\nContent-Length: 5\r\n\r\nhelloSMUGGLED" => "417 expect_unknown";
    preface_behind_an_upgrade: "h2c smuggling (Bishop Fox)", "POST / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: 5\r\n\r\nhelloPRI * HTTP/2.0\r\n\r\nSM\r\n\r\nSMUGGLED" => "301 http2_in_cleartext" after (200, "hello");
    smuggled_length_is_odd: "Http11Probe CLTE-SMUGGLED-GET-CL-PLUS", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhelloPOST / HTTP/1.1\r\nHost: h\r\nContent-Length: +2\r\n\r\nhi" => "400 content_length_invalid" after (200, "hello");
}

served! {
    plain: "the plain case, so that a table of refusals proves something", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello" => [(200, "hello")], Open;
    two_in_one_packet: "RFC 9112 9.3.2", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhelloPOST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\ntwo" => [(200, "hello"), (200, "two")], Open;
    body_looks_like_a_request: "CL.0, Http11Probe CL0-BODY-POISON", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 28\r\n\r\nPOST /ingest HTTP/1.1\r\nHost:" => [(200, "POST /ingest HTTP/1.1\r\nHost:")], Open;
    chunk_looks_like_a_request: "TE.0 (Bugcrowd 2024)", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1c\r\nPOST /ingest HTTP/1.1\r\nHost:\r\n0\r\n\r\n" => [(200, "POST /ingest HTTP/1.1\r\nHost:")], Open;
    te_any_case: "Smuggler sarcasm", "POST / HTTP/1.1\r\nHost: h\r\nTrAnSFer-EnCODinG: cHuNkeD\r\n\r\n5\r\nhello\r\n0\r\n\r\n" => [(200, "hello")], Open;
    te_spaces_around: "RFC 9112 5, Smuggler valueprefix1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:   chunked  \r\n\r\n5\r\nhello\r\n0\r\n\r\n" => [(200, "hello")], Open;
    te_with_underscore_is_another: "Smuggler underjoin1: CGI would take it for the real one", "POST / HTTP/1.1\r\nHost: h\r\nTransfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\nhello" => [(200, "hello")], Open;
    cl_with_underscore_is_another: "Http11Probe, CGI", "POST / HTTP/1.1\r\nHost: h\r\nContent_Length: 99\r\nContent-Length: 5\r\n\r\nhello" => [(200, "hello")], Open;
    content_encoding_frames_nothing: "Smuggler contentEnc", "POST / HTTP/1.1\r\nHost: h\r\nContent-Encoding: chunked\r\nContent-Length: 5\r\n\r\nhello" => [(200, "hello")], Open;
    te_is_no_transfer_encoding: "RFC 9110 10.1.4", "POST / HTTP/1.1\r\nHost: h\r\nTE: chunked, trailers\r\nConnection: TE\r\nContent-Length: 5\r\n\r\nhello" => [(200, "hello")], Open;
    cl_leading_zeros_are_decimal: "Http11Probe CL-LEADING-ZEROS-OCTAL", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 010\r\n\r\n0123456789" => [(200, "0123456789")], Open;
    cl_named_in_connection_stays: "PortSwigger, hop-by-hop abuse", "POST / HTTP/1.1\r\nHost: h\r\nConnection: Content-Length\r\nContent-Length: 5\r\n\r\nhello" => [(200, "hello")], Open;
    chunk_sizes_any_case_and_zeros: "RFC 9112 7.1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n00A\r\n0123456789\r\na\r\nabcdefghij\r\n000\r\n\r\n" => [(200, "0123456789abcdefghij")], Open;
    chunk_ext_empty: "Http11Probe CHUNK-BARE-SEMICOLON", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;\r\nhello\r\n0;\r\n\r\n" => [(200, "hello")], Open;
    chunk_ext_quoted: "RFC 9112 7.1.1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;a=\";0;\"\r\nhello\r\n0\r\n\r\n" => [(200, "hello")], Open;
    chunk_ext_no_token: "Http11Probe CHUNK-EXT-INVALID-TOKEN", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;[bad\r\nhello\r\n0\r\n\r\n" => [(200, "hello")], Open;
    trailer_length_is_thrown_away: "RFC 9110 6.5.1, Http11Probe TRAILER-*", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nContent-Length: 60\r\n\r\n" => [(200, "hello")], Open;
    trailer_coding_is_thrown_away: "RFC 9110 6.5.1, Http11Probe TRAILER-*", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nTransfer-Encoding: x\r\n\r\n" => [(200, "hello")], Open;
    trailer_host_is_thrown_away: "RFC 9110 6.5.1, Http11Probe TRAILER-*", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nHost: evil\r\n\r\n" => [(200, "hello")], Open;
    trailer_type_is_thrown_away: "RFC 9110 6.5.1, Http11Probe TRAILER-*", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nContent-Type: text/evil\r\n\r\n" => [(200, "hello")], Open;
    trailer_close_is_thrown_away: "RFC 9110 6.5.1, Http11Probe TRAILER-*", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nConnection: close\r\n\r\n" => [(200, "hello")], Open;
    trailer_expect_is_thrown_away: "RFC 9110 6.5.1, Http11Probe TRAILER-*", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nExpect: x\r\n\r\n" => [(200, "hello")], Open;
    absolute_form_beats_host: "RFC 9112 3.2.2, Http11Probe ABSOLUTE-URI-HOST-MISMATCH", "POST http://evil/ HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello" => [(200, "hello")], Open;
    crlf_behind_a_body: "RFC 9112 2.2", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello\r\nPOST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\ntwo" => [(200, "hello"), (200, "two")], Open;
    nothing_behind_close_is_served: "RFC 9112 9.6", "POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhelloSMUGGLED" => [(200, "hello")], Closed;
    nothing_behind_http10_is_served: "RFC 9112 9.3", "POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\nhelloSMUGGLED" => [(200, "hello")], Closed;
    http10_keep_alive: "RFC 9112 9.3", "POST / HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhelloPOST / HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\ntwo" => [(200, "hello"), (200, "two")], Open;
    keep_alive_and_close_is_close: "RFC 9112 9.3", "POST / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, close\r\nContent-Length: 5\r\n\r\nhelloSMUGGLED" => [(200, "hello")], Closed;
    body_of_get_is_no_request: "CL.0 on GET, Http11Probe GET-CL-BODY-DESYNC", "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 28\r\n\r\nPOST /ingest HTTP/1.1\r\nHost:" => [(405, "")], Open;
    body_of_head_is_no_request: "Http11Probe HEAD-CL-BODY", "HEAD / HTTP/1.1\r\nHost: h\r\nContent-Length: 28\r\n\r\nPOST /ingest HTTP/1.1\r\nHost:" => [(405, "")], Open;
    body_of_options_is_no_request: "Http11Probe OPTIONS-CL-BODY-DESYNC", "OPTIONS / HTTP/1.1\r\nHost: h\r\nContent-Length: 28\r\n\r\nPOST /ingest HTTP/1.1\r\nHost:" => [(405, "")], Open;
    chunked_get_ends_the_connection: "TE.0 on GET", "GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nSMUGGLED" => [(405, "")], Closed;
    no_method_override: "CL.0 by X-HTTP-Method-Override", "GET / HTTP/1.1\r\nHost: h\r\nX-HTTP-Method-Override: POST\r\nContent-Length: 5\r\n\r\nhello" => [(405, "")], Open;
    upgrade_h2c_is_ignored: "h2c smuggling (Bishop Fox), RFC 9110 7.8", "POST / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: 5\r\n\r\nhello" => [(200, "hello")], Open;
    upgrade_websocket_is_ignored: "websocket smuggling (0ang3el)", "POST / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 777\r\nContent-Length: 5\r\n\r\nhello" => [(200, "hello")], Open;
    upgrade_tls_is_ignored: "RFC 2817", "POST / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: TLS/1.0\r\nContent-Length: 5\r\n\r\nhello" => [(200, "hello")], Open;
    expect_without_waiting: "RFC 9110 10.1.1", "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello" => [(200, "hello")], Open;
    expect_without_a_body: "PortSwigger, HTTP/1.1 Must Die (0.CL by Expect)", "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n" => [(200, "")], Open;
}

/// The parser's verdict on a row, whole and in every cut.
fn parsed(rows: &[Row], name: &str) {
    let row = rows
        .iter()
        .find(|row| row.name == name)
        .expect("it is in the table");
    let input = row.bytes();
    let text = input.escape_ascii();
    let whole = Connection::default().serve(&input, &[]);
    match row.end {
        End::Refused(cause) => assert_eq!(whole.refusal.as_deref(), Some(cause), "{}: {text}", row.source),
        Open | Closed => assert_eq!(whole.refusal, None, "{}: {text}", row.source),
    }
    let every_byte: Vec<usize> = (0..input.len()).collect();
    assert_eq!(
        Connection::default().serve(&input, &every_byte),
        whole,
        "byte by byte: {text}"
    );
    for cut in 0..input.len() {
        assert_eq!(
            Connection::default().serve(&input, &[cut]),
            whole,
            "cut at {cut}: {text}"
        );
    }
}

impl Row {
    /// What goes over the wire.
    fn bytes(&self) -> Vec<u8> {
        let smuggled = push("smuggled", "sneaky");
        let smuggled = String::from_utf8(smuggled).expect("it is text");
        let target = format!(" /ingest?name={} ", self.name);
        let absolute = format!("http://evil/ingest?name={} ", self.name);
        let input = self.input.replace("SMUGGLED", &smuggled);
        input
            .replace(" / ", &target)
            .replace("http://evil/ ", &absolute)
            .into_bytes()
    }

    /// What the client is told, in order, and what arrives: names and bodies.
    fn expected(&self, before: bool) -> (Vec<u16>, Vec<(String, Vec<u8>)>) {
        // The label that a profile without a service gets (WIRE.md 2.3).
        let name = |suffix: &str| format!("{0}{suffix}{{service_name={0}{suffix}}}", self.name);
        let mut statuses = Vec::new();
        let mut arriving = Vec::new();
        if before {
            statuses.push(200);
            arriving.push((name(".before"), b"before".to_vec()));
        }
        for (status, body) in self.served {
            statuses.push(*status);
            if *status == 200 {
                arriving.push((name(""), body.as_bytes().to_vec()));
            }
        }
        match self.end {
            Open => {
                statuses.push(200);
                arriving.push((name(".probe"), b"probe".to_vec()));
            }
            Closed => {}
            End::Refused(cause) => statuses.push(cause[..3].parse().expect("a status")),
        }
        (statuses, arriving)
    }
}

/// A good push with this name and body.
fn push(name: &str, body: &str) -> Vec<u8> {
    post(&format!("/ingest?name={name}"), &[], body.as_bytes())
}

fn whole(engine: &str) {
    over_the_wire(engine, false, |bytes| vec![bytes.len()]);
}

fn byte_by_byte(engine: &str) {
    over_the_wire(engine, false, |bytes| (1..=bytes.len()).collect());
}

fn in_random_pieces(engine: &str) {
    over_the_wire(engine, false, random_cuts(7));
}

fn whole_behind_a_good_push(engine: &str) {
    over_the_wire(engine, true, |bytes| vec![bytes.len()]);
}

fn in_random_pieces_behind_a_good_push(engine: &str) {
    over_the_wire(engine, true, random_cuts(8));
}

/// Ends of pieces of 1 to 24 bytes, the same in every run.
fn random_cuts(seed: u64) -> impl FnMut(&[u8]) -> Vec<usize> {
    let mut random = fastrand::Rng::with_seed(seed);
    move |bytes| {
        let mut cuts = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            at = (at + random.usize(1..=24)).min(bytes.len());
            cuts.push(at);
        }
        cuts
    }
}

/// One connection that sends a row in pieces.
struct Sender {
    stream: TcpStream,
    bytes: Vec<u8>,
    /// Ends of the pieces that are still to be sent, the last one first.
    cuts: Vec<usize>,
    sent: usize,
}

impl Sender {
    fn new(gateway: &Gateway, bytes: Vec<u8>, mut cuts: Vec<usize>) -> Self {
        let stream = TcpStream::connect(gateway.address).expect("the gateway listens");
        stream.set_nodelay(true).expect("a TCP socket");
        stream.set_read_timeout(Some(DEADLINE)).expect("not zero");
        cuts.reverse();
        Self {
            stream,
            bytes,
            cuts,
            sent: 0,
        }
    }

    /// Sends the next piece. Returns whether there was one.
    fn send(&mut self) -> bool {
        let Some(end) = self.cuts.pop() else { return false };
        let piece = &self.bytes[self.sent..end];
        self.sent = end;
        // Whoever was refused and lingers too long is reset: what it was told is still there to be read.
        if self.stream.write_all(piece).is_err() {
            self.cuts.clear();
        }
        true
    }

    /// Says that it has finished and reads all that it was told.
    fn answers(mut self) -> Vec<u8> {
        let _refused_already = self.stream.shutdown(Shutdown::Write);
        let mut told = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = self.stream.read(&mut buffer) {
            told.extend_from_slice(&buffer[..count]);
        }
        told
    }
}

/// The final statuses among what a client was told; no text of ours has a version, a blank and three digits.
fn statuses(told: &[u8]) -> Vec<u16> {
    let lines = memchr::memmem::find_iter(told, b"HTTP/1.1 ");
    let statuses = lines.filter_map(|at| std::str::from_utf8(told.get(at + 9..at + 12)?).ok()?.parse().ok());
    statuses.filter(|status| *status >= 200).collect()
}

/// Every row on a connection of its own, all at once, piece by piece in turns so that a piece is read before the next one
/// comes. `cut` says where pieces end.
fn over_the_wire(engine: &str, before: bool, mut cut: impl FnMut(&[u8]) -> Vec<usize>) {
    let peer = Peer::start();
    let gateway = Gateway::before(engine, &[&peer], &["--inflight", "4", "--cores", "2"]);
    let rows: Vec<&Row> = REFUSED.iter().chain(SERVED).collect();
    let mut senders: Vec<Sender> = Vec::new();
    for row in &rows {
        let mut bytes = Vec::new();
        if before {
            bytes.extend(push(&format!("{}.before", row.name), "before"));
        }
        bytes.extend(row.bytes());
        bytes.extend(push(&format!("{}.probe", row.name), "probe"));
        let cuts = cut(&bytes);
        senders.push(Sender::new(&gateway, bytes, cuts));
    }
    loop {
        let sent = senders
            .iter_mut()
            .filter_map(|sender| sender.send().then_some(()));
        if sent.count() == 0 {
            break;
        }
    }
    let (mut meant, mut wrong) = (Vec::new(), Vec::new());
    for (row, sender) in rows.iter().zip(senders) {
        let told = sender.answers();
        let (expected, arriving) = row.expected(before);
        if statuses(&told) != expected {
            let (told, name, source) = (told.escape_ascii(), row.name, row.source);
            wrong.push(format!("{name} ({source}): {expected:?} were meant: {told}"));
        }
        meant.extend(arriving);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    compare(gateway, &peer, meant);
}

/// All that reached the destination is what was meant, once.
fn compare(gateway: Gateway, peer: &Peer, mut meant: Vec<(String, Vec<u8>)>) {
    let farewell = &gateway.farewell()["a"];
    assert_eq!(farewell.accepted(), meant.len() as u64, "{farewell:?}");
    let requests = peer.take(meant.len());
    let mut arrived: Vec<_> = requests
        .into_iter()
        .map(|request| (name_of(request.query()), request.body))
        .collect();
    meant.sort();
    arrived.sort();
    for (arrived, meant) in arrived.iter().zip(&meant) {
        assert_eq!(arrived, meant, "another request than was meant");
    }
}

/// Smuggler's exhaustive list: every control byte, and every byte that no text has, before and behind the name and the value
/// of `Transfer-Encoding`, beside a length. Each is refused, whatever it is called.
fn one_odd_byte_beside_transfer_encoding(engine: &str) {
    let peer = Peer::start();
    let gateway = Gateway::before(engine, &[&peer], &[]);
    let odd = (1..=0x1f).chain(0x7f..=0xff);
    for byte in odd {
        let mut senders = Vec::new();
        for (front, back) in [
            ("", "Transfer-Encoding: chunked"),
            ("Transfer-Encoding", ": chunked"),
            ("Transfer-Encoding:", "chunked"),
            ("Transfer-Encoding: chunked", ""),
        ] {
            let mut bytes = b"POST /ingest?name=outer HTTP/1.1\r\nHost: h\r\n".to_vec();
            bytes.extend(front.as_bytes());
            bytes.push(byte);
            bytes.extend(back.as_bytes());
            bytes.extend(b"\r\nContent-Length: 5\r\n\r\n0\r\n\r\n");
            bytes.extend(push("smuggled", "sneaky"));
            let cuts = vec![bytes.len()];
            senders.push((front, Sender::new(&gateway, bytes, cuts)));
        }
        for (front, mut sender) in senders {
            sender.send();
            let told = sender.answers();
            assert!(
                matches!(statuses(&told)[..], [400 | 501]),
                "{byte:#x} behind {front:?}: {}",
                told.escape_ascii()
            );
        }
    }
    compare(gateway, &peer, Vec::new());
}

/// What a connection came to.
#[derive(Debug, PartialEq)]
struct Served {
    /// Requests whose heads were accepted, with the bytes of their bodies.
    requests: Vec<(String, Vec<u8>)>,
    /// Status and label, if the client was refused.
    refusal: Option<String>,
}

/// A connection without a socket, the way `inbound` uses the readers.
struct Connection {
    reader: HeadReader,
    body: Body,
    at: usize,
    served: Served,
}

/// What is awaited.
enum Body {
    /// Nothing: the next head is.
    Between,
    /// So many bytes.
    Length(u64),
    /// What the decoder says.
    Chunked(ChunkedDecoder),
}

impl Default for Connection {
    fn default() -> Self {
        Connection {
            reader: HeadReader::new(HeadLimits::default()),
            body: Body::Between,
            at: 0,
            served: Served {
                requests: Vec::new(),
                refusal: None,
            },
        }
    }
}

impl Connection {
    /// Reads `input`, of which the bytes up to each of `cuts` and then all arrive.
    fn serve(mut self, input: &[u8], cuts: &[usize]) -> Served {
        for &end in cuts.iter().chain([&input.len()]) {
            if let Err(refusal) = self.receive(&input[..end]) {
                self.served.refusal = Some(refusal);
                break;
            }
        }
        self.served
    }

    /// Goes as far as `input`, all that has arrived, allows.
    fn receive(&mut self, input: &[u8]) -> Result<(), String> {
        loop {
            let rest = &input[self.at..];
            match &mut self.body {
                Body::Between => {
                    let head = self.reader.read(rest);
                    let head = head.map_err(|error| format!("{} {}", error.status(), error.label()))?;
                    let Progress::Complete(head) = head else {
                        return Ok(());
                    };
                    let path = head.target.path.of(rest).escape_ascii().to_string();
                    self.served.requests.push((path, Vec::new()));
                    self.at += head.bytes;
                    self.body = match head.framing {
                        Framing::Length(length) => Body::Length(length),
                        Framing::Chunked => Body::Chunked(ChunkedDecoder::new(ChunkLimits::default())),
                    };
                }
                Body::Length(0) => self.body = Body::Between,
                Body::Length(_) if rest.is_empty() => return Ok(()),
                Body::Length(length) => {
                    let taken = rest.len().min(usize::try_from(*length).unwrap_or(usize::MAX));
                    *length -= taken as u64;
                    self.take(taken, &rest[..taken]);
                }
                Body::Chunked(decoder) => {
                    let piece = decoder.next(rest);
                    match piece.map_err(|error| format!("{} {}", error.status(), error.label()))? {
                        Piece::Data(range) => self.take(range.end, &rest[range]),
                        Piece::Starved => {
                            self.at = input.len();
                            return Ok(());
                        }
                        Piece::End(bytes) => {
                            self.at += bytes;
                            self.body = Body::Between;
                        }
                    }
                }
            }
        }
    }

    fn take(&mut self, bytes: usize, body: &[u8]) {
        self.at += bytes;
        if let Some((_, taken)) = self.served.requests.last_mut() {
            taken.extend_from_slice(body);
        }
    }
}
