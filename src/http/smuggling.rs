//! Request smuggling: a table of what attackers send, and that each is refused with the expected cause.
//!
//! Responsible for: reading whole connections (heads, bodies and what follows) with the readers of this
//! folder, in every cut. Not responsible for: the plain syntax of heads and bodies, which is tested beside
//! their code. Each row says where it comes from: the section that forbids it, or the public name of the
//! technique.

use super::{ChunkLimits, ChunkedDecoder, Framing, HeadLimits, HeadReader, Piece, Progress};

/// `name: source, what the client sends => status and label of the refusal`.
macro_rules! refused {
    ($($name:ident: $source:expr, $input:expr => $expected:expr;)*) => {$(
        #[test]
        fn $name() {
            let input: &[u8] = $input.as_bytes();
            let text = input.escape_ascii();
            let whole = Connection::default().serve(input, &[]);
            assert_eq!(whole.refusal.as_deref(), Some($expected), "{}: {text}", $source);
            let every_byte: Vec<usize> = (0..input.len()).collect();
            assert_eq!(Connection::default().serve(input, &every_byte), whole, "byte by byte: {text}");
            for cut in 0..input.len() {
                assert_eq!(Connection::default().serve(input, &[cut]), whole, "cut at {cut}: {text}");
            }
        }
    )*};
}

refused! {
    cl_te: "CL.TE", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 length_and_transfer_encoding";
    te_cl: "TE.CL", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 length_and_transfer_encoding";
    cl_zero_te: "CL.TE with length 0", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 length_and_transfer_encoding";
    cl_te_apart: "CL.TE with fields in between", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\nA: b\r\nC: d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 length_and_transfer_encoding";
    cl_te_lower_case: "CL.TE in lower case", "POST / HTTP/1.1\r\nHost: h\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 length_and_transfer_encoding";
    cl_te_unknown: "CL.TE with an obfuscated coding", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 length_and_transfer_encoding";
    cl_cl_different: "RFC 9112 6.3, CL.CL", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 content_length_repeated";
    cl_cl_equal: "RFC 9110 8.6", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 content_length_repeated";
    cl_cl_case: "CL.CL in two spellings", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\ncontent-LENGTH: 0\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 content_length_repeated";
    cl_list_equal: "RFC 9110 8.6", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5, 5\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 content_length_list";
    cl_list_different: "RFC 9112 6.3", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5,6\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 content_length_list";
    cl_plus: "RFC 9110 8.6, 1*DIGIT", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +5\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 content_length_invalid";
    cl_minus: "RFC 9110 8.6, 1*DIGIT", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -5\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 content_length_invalid";
    cl_hex: "RFC 9110 8.6, 1*DIGIT", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0x5\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 content_length_invalid";
    cl_fraction: "RFC 9110 8.6, 1*DIGIT", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5.0\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 content_length_invalid";
    cl_exponent: "RFC 9110 8.6, 1*DIGIT", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1e1\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 content_length_invalid";
    cl_space_inside: "RFC 9110 8.6, 1*DIGIT", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1 0\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 content_length_invalid";
    cl_underscore: "RFC 9110 8.6, Python's int()", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1_0\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 content_length_invalid";
    cl_semicolon: "RFC 9110 8.6, 1*DIGIT", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5;a\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 content_length_invalid";
    cl_quoted: "RFC 9110 8.6, 1*DIGIT", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: \"5\"\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 content_length_invalid";
    cl_wide_digit: "RFC 9110 8.6, Unicode digits", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: \u{ff15}\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 content_length_invalid";
    cl_empty: "RFC 9110 8.6, CL.0", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 content_length_empty";
    cl_blank: "RFC 9110 8.6, CL.0", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length:  \r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 content_length_empty";
    cl_wraps_64_bits: "RFC 9110 8.6, integer overflow", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 18446744073709551621\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 content_length_overflow";
    cl_wraps_63_bits: "RFC 9110 8.6, integer overflow", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9223372036854775813\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 content_length_overflow";
    cl_vertical_tab: "RFC 9110 5.5", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: \x0b5\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 control_byte";
    cl_tab: "tab beside a value", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length:\t5\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 framing_whitespace";
    cl_space_before_colon: "RFC 9112 5.1", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length : 5\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 whitespace_before_colon";
    cl_folded: "RFC 9112 5.2", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n 5\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 content_length_empty";
    te_te: "TE.TE", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 transfer_encoding_repeated";
    te_te_equal: "TE.TE", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 transfer_encoding_repeated";
    te_chunked_twice: "RFC 9112 6.1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 transfer_encoding_chunked_misplaced";
    te_chunked_first: "RFC 9112 6.1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 transfer_encoding_chunked_misplaced";
    te_chunked_then_identity: "TE.TE", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 transfer_encoding_chunked_misplaced";
    te_identity: "RFC 7230 A.2", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 transfer_encoding_identity";
    te_identity_chunked: "RFC 7230 A.2", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 transfer_encoding_identity";
    te_gzip_chunked: "RFC 9112 6.1, WIRE.md 5.2", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "501 transfer_encoding_unknown";
    te_xchunked: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "501 transfer_encoding_unknown";
    te_cow: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: cow\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "501 transfer_encoding_unknown";
    te_empty: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 transfer_encoding_malformed";
    te_comma_first: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: ,chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 transfer_encoding_malformed";
    te_comma_last: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked,\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 transfer_encoding_malformed";
    te_quoted: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 transfer_encoding_malformed";
    te_single_quoted: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: 'chunked'\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "501 transfer_encoding_unknown";
    te_parameter: "RFC 9112 7", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked;a=b\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 transfer_encoding_malformed";
    te_two_words: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked x\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 transfer_encoding_malformed";
    te_space_before_colon: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 whitespace_before_colon";
    te_tab_before_colon: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 whitespace_before_colon";
    te_tab: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\tchunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 framing_whitespace";
    te_tab_behind: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\t\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 framing_whitespace";
    te_vertical_tab: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 control_byte";
    te_form_feed: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\x0c\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 control_byte";
    te_nul: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\0\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 control_byte";
    te_nul_in_name: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding\0: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 control_byte";
    te_delete: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\x7f\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 control_byte";
    te_space_first: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 header_folded";
    te_folded: "RFC 9112 5.2", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 transfer_encoding_malformed";
    te_folded_into_other: "RFC 9112 5.2", "POST / HTTP/1.1\r\nHost: h\r\nA: b\r\n\tTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 header_folded";
    te_behind_bare_lf: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nA: b\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 bare_lf";
    te_behind_bare_cr: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nA: b\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 bare_cr";
    te_cr_before_colon: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding\r: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 bare_cr";
    te_cr_cr_lf: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 bare_cr";
    te_no_colon: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 header_colon_missing";
    te_name_two_words: "PortSwigger, HTTP Desync Attacks", "POST / HTTP/1.1\r\nHost: h\r\nFoo Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 header_name_invalid";
    te_name_beyond_ascii: "RFC 9110 5.6.2", "POST / HTTP/1.1\r\nHost: h\r\nTransfer\u{2010}Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 header_name_invalid";
    te_name_empty: "RFC 9110 5.1", "POST / HTTP/1.1\r\nHost: h\r\n: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 header_name_empty";
    te_http10: "RFC 9112 6.1", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 transfer_encoding_http10";
    bare_lf_head: "RFC 9112 2.2", "POST / HTTP/1.1\nHost: h\n\n" => "400 bare_lf";
    bare_lf_blank_line: "RFC 9112 2.2", "POST / HTTP/1.1\r\nHost: h\r\n\nGET /smuggled" => "400 bare_lf";
    bare_cr_blank_line: "RFC 9112 2.2", "POST / HTTP/1.1\r\nHost: h\r\n\rGET /smuggled HTTP/1.1\r\n" => "400 bare_cr";
    space_before_first_field: "RFC 9112 2.2", "POST / HTTP/1.1\r\n Host: h\r\nHost: h\r\n\r\n" => "400 whitespace_first";
    blank_line_with_space: "RFC 9112 2.2", "POST / HTTP/1.1\r\nHost: h\r\n \r\nGET /smuggled" => "400 header_folded";
    host_twice: "RFC 9112 3.2", "POST / HTTP/1.1\r\nHost: h\r\nHost: evil\r\n\r\n" => "400 host_repeated";
    host_hidden_by_space: "Host of Troubles", "POST / HTTP/1.1\r\nHost: h\r\nHost : evil\r\n\r\n" => "400 whitespace_before_colon";
    host_missing: "RFC 9112 3.2", "POST / HTTP/1.1\r\nX-Host: h\r\n\r\n" => "400 host_missing";
    request_in_the_request_line: "RFC 9112 3", "GET / HTTP/1.1 GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 request_line_spaces";
    version_09: "HTTP/0.9 downgrade", "GET /\r\nHost: h\r\n\r\n" => "400 version_missing";
    version_tab: "RFC 9112 3, lenient white space", "GET /\tHTTP/1.1\r\nHost: h\r\n\r\n" => "400 control_byte";
    http2_preface: "RFC 9113 3.4", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" => "505 version_unsupported";
    user_in_absolute_target: "RFC 9110 4.2.4", "GET http://h@evil/ HTTP/1.1\r\nHost: h\r\n\r\n" => "400 target_authority";
    backslash_in_authority: "URL parser confusion", "GET http://h\\evil/ HTTP/1.1\r\nHost: h\r\n\r\n" => "400 target_authority";
    expect_obfuscated: "PortSwigger, HTTP/1.1 Must Die (0.CL by Expect)", "POST / HTTP/1.1\r\nHost: h\r\nExpect: y 100-continue\r\nContent-Length: 5\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "417 expect_unknown";
    second_request_is_judged_too: "CL.0 with a pipelined request", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhelloGET /smuggled HTTP/1.1\r\nFoo: b\r\n\r\n" => "400 host_missing";
    body_of_a_get_is_skipped: "CL.0 on GET", "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nPOSTGET / HTTP/2.0\r\n" => "505 version_unsupported";
    chunk_size_0x: "RFC 9112 7.1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 chunk_size_invalid";
    chunk_size_plus: "RFC 9112 7.1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 chunk_size_invalid";
    chunk_size_minus: "RFC 9112 7.1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n-0\r\n\r\n" => "400 chunk_size_invalid";
    chunk_size_empty: "RFC 9112 7.1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 chunk_size_invalid";
    chunk_size_space_before: "RFC 9112 7.1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n 5\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 chunk_size_invalid";
    chunk_size_space_behind: "RFC 9112 7.1.1, BWS", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 chunk_size_invalid";
    chunk_size_wraps: "RFC 9112 7.1, integer overflow", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 chunk_size_invalid";
    chunk_size_underscore: "RFC 9112 7.1, Python's int()", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0_5\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 chunk_size_invalid";
    chunk_size_then_garbage: "RFC 9112 7.1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5xyz\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 chunk_size_invalid";
    chunk_size_bare_lf: "RFC 9112 2.2, bare LF", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 bare_lf";
    chunk_size_bare_cr: "RFC 9112 2.2, bare CR", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\rXhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 bare_cr";
    chunk_term_ext: "Funky Chunks TERM.EXT", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2;\nxx\r\n4c\r\n0\r\n\r\n" => "400 bare_lf";
    chunk_ext_term: "Funky Chunks EXT.TERM", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2;\rxx\r\n0\r\n\r\n" => "400 bare_cr";
    chunk_ext_cr_cr_lf: "Funky Chunks EXT.TERM with CR CR LF", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2;a\r\r\nxx\r\n0\r\n\r\n" => "400 bare_cr";
    chunk_ext_nul: "RFC 9112 7.1.1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2;a\0\r\nxx\r\n0\r\n\r\n" => "400 control_byte";
    chunk_spill_term: "Funky Chunks SPILL.TERM", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nAAAAAXX0\r\n\r\nGET /smuggled" => "400 chunk_data_end_missing";
    chunk_term_spill: "Funky Chunks TERM.SPILL, LF only", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nAAAAA\n0\r\n\r\n" => "400 chunk_data_end_missing";
    chunk_data_cr_only: "Funky Chunks, CR only", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nAAAAA\r0\r\n\r\n" => "400 chunk_data_end_missing";
    chunk_data_no_end: "Funky Chunks ONE.TWO", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nAAAAA0\r\n\r\n" => "400 chunk_data_end_missing";
    chunk_size_too_small: "RFC 9112 7.1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 chunk_data_end_missing";
    chunk_end_bare_lf: "RFC 9112 7.1.2, bare LF", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\nGET /smuggled" => "400 bare_lf";
    chunk_end_both_bare_lf: "RFC 9112 7.1, bare LF", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\n\nGET /smuggled" => "400 bare_lf";
    chunk_end_bare_cr: "RFC 9112 7.1.2, bare CR", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\rGET /smuggled" => "400 bare_cr";
    chunk_end_missing: "RFC 9112 7.1.2, a request read as trailers", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" => "400 whitespace_before_colon";
    trailer_bare_lf: "TR.MRG, bare LF in trailers", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\nGET /smuggled HTTP/1.1\r\n\r\n" => "400 bare_lf";
    trailer_folded: "RFC 9112 5.2", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n GET /smuggled\r\n\r\n" => "400 header_folded";
    trailer_space_before_colon: "RFC 9112 5.1", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA : b\r\n\r\n" => "400 whitespace_before_colon";
    trailer_nul: "RFC 9110 5.5", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: \0\r\n\r\n" => "400 control_byte";
    trailers_frame_nothing: "RFC 9110 6.5.1, TR.MRG", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 60\r\nTransfer-Encoding: x\r\n\r\nGET / HTTP/3.0\r\n" => "505 version_unsupported";
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
