//! Row 124 of WIRE.md section 9: proxies, and which destinations are asked through one.

use super::gateway::{Engine, Gateway, INGEST, PUSH, assert_empty, under_both_engines};
use super::push::good;
use super::scripted::{Act, Scripted, answer, plain_answer};
use super::support::run;

under_both_engines!(
    row_124_requests_go_through_the_proxy,
    row_124_a_proxy_of_the_environment_is_ignored,
    row_124_a_proxy_of_the_environment_can_be_asked_for,
    row_124_no_proxy_leaves_out,
    row_124_redirects_go_through_it_too,
    row_124_a_proxy_that_refuses_us,
    row_124_bad_proxies_are_an_error,
);

/// A name that nobody but a proxy could resolve (RFC 6761 section 6.4).
const FAR: &str = "pyroscope.invalid:4040";

fn row_124_requests_go_through_the_proxy(engine: Engine) {
    let proxy = Scripted::healthy();
    let to = format!(
        "a=http://us:er@{FAR}/base/,proxy-url=http://pr%20oxy:s3cret@{},proxy-connect-header.X-Tunnel=only",
        proxy.address
    );
    let gateway = Gateway::start(engine, &["--to", &to]);
    assert_empty(&gateway.post(INGEST, &[], b"body"), 200);
    assert_eq!(gateway.push(&good()).status, 200);
    let received = proxy.wait_for(2);
    assert_eq!(received[0].path(), format!("http://{FAR}/base/ingest"));
    assert_eq!(received[1].target(), format!("http://{FAR}/base{PUSH}"));
    for request in &received {
        assert_eq!(request.value("host").as_deref(), Some(FAR));
        let proxy = request.value("proxy-authorization");
        assert_eq!(proxy.as_deref(), Some("Basic cHIgb3h5OnMzY3JldA=="));
        assert_eq!(request.value("authorization").as_deref(), Some("Basic dXM6ZXI="));
        assert_eq!(request.value("x-tunnel"), None, "for a CONNECT only");
    }
    assert_eq!(received[0].body, b"body");
    assert_eq!(received[0].connection, received[1].connection, "kept alive");
    let log = gateway.log();
    assert!(!log.contains("s3cret") && !log.contains("cHIgb3h5"), "{log}");
}

/// A destination that is no loopback address, as far as proxies are concerned, and yet on this machine.
fn near(a: &Scripted) -> String {
    format!("a=http://0.0.0.0:{}", a.address.port())
}

fn row_124_a_proxy_of_the_environment_is_ignored(engine: Engine) {
    let (a, proxy) = (Scripted::healthy(), Scripted::healthy());
    let url = proxy.url();
    let variables = [("HTTP_PROXY", &*url), ("http_proxy", &url), ("ALL_PROXY", &url)];
    let gateway = Gateway::start_with(engine, &["--to", &near(&a)], &variables);
    assert_empty(&gateway.post(INGEST, &[], b"body"), 200);
    assert!(a.only().target().starts_with("/ingest?"));
    assert_eq!(proxy.connections(), 0);
}

fn row_124_a_proxy_of_the_environment_can_be_asked_for(engine: Engine) {
    for (no_proxy, is_proxied) in [
        ("", true),
        ("example.com,0.0.0.1", true),
        ("example.com,0.0.0.0", false),
    ] {
        let (a, proxy) = (Scripted::healthy(), Scripted::healthy());
        let url = proxy.url();
        let variables = [("HTTP_PROXY", ""), ("http_proxy", &*url), ("NO_PROXY", no_proxy)];
        let to = format!("{},proxy-from-environment=true", near(&a));
        let gateway = Gateway::start_with(engine, &["--to", &to], &variables);
        assert_empty(&gateway.post(INGEST, &[], b"body"), 200);
        assert_eq!(
            (a.received().len(), proxy.received().len()),
            if is_proxied { (0, 1) } else { (1, 0) },
            "{no_proxy}"
        );
    }
}

fn row_124_no_proxy_leaves_out(engine: Engine) {
    // With a list, this machine needs no proxy; without one, it does (Go's httpproxy, prometheus/common).
    for (options, is_proxied) in [(",no-proxy=example.com", false), ("", true)] {
        let (a, proxy) = (Scripted::healthy(), Scripted::healthy());
        let to = format!("a={},proxy-url={}{options}", a.url(), proxy.url());
        let gateway = Gateway::start(engine, &["--to", &to]);
        assert_empty(&gateway.post(INGEST, &[], b"body"), 200);
        assert_eq!(
            (a.received().len(), proxy.received().len()),
            if is_proxied { (0, 1) } else { (1, 0) },
            "{options}"
        );
    }
}

fn row_124_redirects_go_through_it_too(engine: Engine) {
    let proxy = Scripted::following(|turn, request| {
        let away = [("Location", "http://else.invalid/there?name=b")];
        vec![Act::Send(match turn {
            0 => answer(307, &away, b""),
            _ => plain_answer(request, 200),
        })]
    });
    let to = format!("a=http://us:er@{FAR},proxy-url={}", proxy.url());
    let gateway = Gateway::start(engine, &["--to", &to]);
    assert_empty(&gateway.post(INGEST, &[], b"body"), 200);
    let received = proxy.wait_for(2);
    assert_eq!(received[1].target(), "http://else.invalid/there?name=b");
    assert_eq!(received[1].value("host").as_deref(), Some("else.invalid"));
    assert_eq!(received[1].value("authorization"), None, "not for another host");
    assert_eq!(received[1].body, b"body");
}

fn row_124_a_proxy_that_refuses_us(engine: Engine) {
    let proxy = Scripted::answering(&[407]);
    let to = format!("a=http://{FAR},proxy-url={}", proxy.url());
    let gateway = Gateway::start(engine, &["--to", &to]);
    assert_eq!(gateway.post(INGEST, &[], b"body").status, 407);
    assert_eq!(proxy.received().len(), 1, "the same again cannot help");
}

fn row_124_bad_proxies_are_an_error(_: Engine) {
    for (options, says) in [
        ("proxy-url=socks5://s3cret@h:1", "only http://"),
        ("no-proxy=a", "needs proxy-url"),
        ("proxy-url=http://h:1,proxy-from-environment=true", "keep one"),
        ("proxy-from-environment=true,no-proxy=a", "NO_PROXY"),
        ("proxy-connect-header.X-A=s3cret", "needs proxy-url"),
        ("proxy-url=http://u:s3cret@h:1,bogus=1", "unknown"),
    ] {
        let ended = run(&["run", "--to", &format!("http://h,{options}")]);
        assert_eq!(ended.status.code(), Some(64), "{options}");
        assert!(
            ended.stderr.contains(says) && !ended.stderr.contains("s3cret"),
            "{options}: {}",
            ended.stderr
        );
    }
}
