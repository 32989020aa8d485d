//! Rows 120 to 122 of WIRE.md section 9: how destinations are told who we are, and secrets that rotate.

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::gateway::{Engine, Gateway, INGEST, assert_empty, under_both_engines};
use super::push::good;
use super::scripted::{Act, Scripted, answer, connect_error, plain_answer};
use super::support::{get, run};

under_both_engines!(
    row_120_each_way_to_authorize,
    row_121_secret_files_rotate,
    row_121_a_401_has_the_file_read_again,
    row_121_a_bad_file_changes_nothing,
    row_121_a_bad_file_at_start_is_named,
    row_122_two_ways_to_authorize_are_an_error,
);

/// A gateway whose only destination is `a` with these options.
fn gateway(engine: Engine, a: &Scripted, options: &str, flags: &[&str]) -> Gateway {
    let to = format!("a={},{options}", a.url());
    Gateway::start(engine, &[&["--to", &to], flags].concat())
}

fn row_120_each_way_to_authorize(engine: Engine) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    fs::write(&file, " fr0m-file\n").unwrap();
    let file = file.display();
    let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
    for (options, expected) in [
        (
            "basic-auth.username=us er,basic-auth.password=p:ä=".into(),
            basic("us er:p:ä="),
        ),
        (
            format!("basic-auth.username=u,basic-auth.password-file={file}"),
            basic("u:fr0m-file"),
        ),
        ("basic-auth.username=u".into(), basic("u:")),
        ("bearer-token=t0ken".into(), "Bearer t0ken".into()),
        (format!("bearer-token-file={file}"), "Bearer fr0m-file".into()),
        ("authorization.credentials=c".into(), "Bearer c".into()),
        (
            "authorization.type=Token,authorization.credentials=c d".into(),
            "Token c d".into(),
        ),
        (
            format!("authorization.type=ApiKey,authorization.credentials-file={file}"),
            "ApiKey fr0m-file".into(),
        ),
        ("header.Authorization=Own way".into(), "Own way".into()),
        (format!("header-file.Authorization={file}"), "fr0m-file".into()),
    ] {
        let a = Scripted::healthy();
        let gateway = gateway(engine, &a, &options, &[]);
        assert_empty(
            &gateway.post(INGEST, &[("Authorization", "client's")], b"body"),
            200,
        );
        assert_eq!(gateway.push(&good()).status, 200);
        for request in a.wait_for(2) {
            assert_eq!(
                request.value("authorization").as_ref(),
                Some(&expected),
                "{options}"
            );
        }
        assert!(!gateway.log().contains("fr0m-file"), "{}", gateway.log());
    }
    let a = Scripted::healthy();
    let gateway = gateway(engine, &a, &format!("header-file.X-Scope-OrgID={file}"), &[]);
    assert_empty(&gateway.post(INGEST, &[], b"body"), 200);
    assert_eq!(a.only().value("x-scope-orgid").as_deref(), Some("fr0m-file"));
}

fn row_121_secret_files_rotate(engine: Engine) {
    let folder = tempfile::tempdir().unwrap();
    let (file, next) = (folder.path().join("token"), folder.path().join("next"));
    fs::write(&file, "one").unwrap();
    let a = Scripted::healthy();
    let gateway = gateway(engine, &a, &format!("bearer-token-file={}", file.display()), &[]);
    assert_empty(&gateway.post(INGEST, &[], b"body"), 200);
    // Renamed into place, of the same length: as Kubernetes and most tools do it.
    fs::write(&next, "two").unwrap();
    fs::rename(&next, &file).unwrap();
    gateway.log_line("secret file has changed");
    assert_empty(&gateway.post(INGEST, &[], b"body"), 200);
    let sent: Vec<_> = a
        .wait_for(2)
        .iter()
        .map(|request| request.value("authorization"))
        .collect();
    assert_eq!(sent, [Some("Bearer one".into()), Some("Bearer two".into())]);
}

fn row_121_a_401_has_the_file_read_again(engine: Engine) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    fs::write(&file, "old").unwrap();
    let rotating = file.clone();
    // Rotates its token at the very moment that the old one comes, and takes no old one from then on.
    let a = Scripted::following(move |turn, request| {
        let is_push = request.path().ends_with("/Push");
        let token = request.value("authorization").unwrap_or_default();
        if turn == 0 || turn == 2 {
            fs::write(&rotating, format!("new-{turn}")).unwrap();
        }
        let bytes = match (
            token
                == fs::read_to_string(&rotating)
                    .map(|new| format!("Bearer {new}"))
                    .unwrap(),
            is_push,
        ) {
            (true, _) => plain_answer(request, 200),
            (false, true) => connect_error(401, "unauthenticated"),
            (false, false) => answer(401, &[], b"no"),
        };
        vec![Act::Send(bytes)]
    });
    let gateway = gateway(engine, &a, &format!("bearer-token-file={}", file.display()), &[]);
    assert_empty(&gateway.post(INGEST, &[], b"body"), 200);
    assert_eq!(gateway.push(&good()).status, 200);
    let sent: Vec<_> = a
        .received()
        .iter()
        .map(|request| request.value("authorization").unwrap())
        .collect();
    assert_eq!(
        sent,
        ["Bearer old", "Bearer new-0", "Bearer new-0", "Bearer new-2"]
    );
    // A 401 to the newest secret is the last word.
    let refusing = Scripted::answering(&[401]);
    let gateway = self::gateway(
        engine,
        &refusing,
        &format!("bearer-token-file={}", file.display()),
        &[],
    );
    assert_eq!(gateway.post(INGEST, &[], b"body").status, 401);
    assert_eq!(refusing.received().len(), 1);
}

fn row_121_a_bad_file_changes_nothing(engine: Engine) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    fs::write(&file, "g00d").unwrap();
    let a = Scripted::healthy();
    let options = format!(
        "basic-auth.username=u,basic-auth.password-file={}",
        file.display()
    );
    let gateway = gateway(engine, &a, &options, &["--admin", "127.0.0.1:0"]);
    let admin = gateway.log_line("admin port address=").trim().parse().unwrap();
    let failing = || {
        let text = get(admin, "/metrics").text();
        let line = text
            .lines()
            .find(|line| line.starts_with("pyrotee_destination_secrets_failing{"));
        line.and_then(|line| line.split(' ').nth(1)).map(str::to_owned)
    };
    assert_eq!(failing().as_deref(), Some("0"));
    fs::write(&file, "b\0d\nb").unwrap();
    let told = gateway.log_line("secret file is no good");
    assert!(told.contains("basic-auth.password-file"), "{told}");
    assert_eq!(failing().as_deref(), Some("1"));
    let status = get(admin, "/-/status").text();
    assert!(status.contains("stays in use"), "the page says so: {status}");
    assert_empty(&gateway.post(INGEST, &[], b"body"), 200);
    let expected = format!("Basic {}", STANDARD.encode("u:g00d"));
    assert_eq!(a.only().value("authorization"), Some(expected));
    fs::write(&file, "g00d").unwrap();
    gateway.log_line("secret file is good again");
    assert_eq!(failing().as_deref(), Some("0"));
    let shown = gateway.log() + &status + &get(admin, "/-/config").text();
    assert!(!shown.contains("g00d"), "{shown}");
}

fn row_121_a_bad_file_at_start_is_named(_: Engine) {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty-one");
    fs::write(&empty, "\n").unwrap();
    let missing = folder.path().join("missing-one");
    for (file, option, says) in [
        (&missing, "bearer-token-file", "cannot be read"),
        (&missing, "header-file.X-Key", "cannot be read"),
        (&empty, "authorization.credentials-file", "is empty"),
    ] {
        let to = format!("a=http://127.0.0.1:1,{option}={}", file.display());
        let ended = run(&["run", "--listen", "127.0.0.1:0", "--admin", "off", "--to", &to]);
        assert!(!ended.status.success(), "{to}");
        for part in [file.to_str().unwrap(), "--to a", says] {
            assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
        }
    }
}

fn row_122_two_ways_to_authorize_are_an_error(_: Engine) {
    for (to, says) in [
        (
            "http://u:s3cret@h,header.Authorization=s3cret",
            "a user in the URL and header.Authorization",
        ),
        (
            "http://u:s3cret@h,bearer-token=s3cret",
            "a user in the URL and bearer-token",
        ),
        (
            "http://h,bearer-token=s3cret,bearer-token-file=/f",
            "bearer-token and bearer-token-file",
        ),
        (
            "http://h,basic-auth.username=s3cret,authorization.credentials=s3cret",
            "basic-auth and authorization",
        ),
        (
            "http://h,header-file.Authorization=/f,bearer-token=s3cret",
            "header.Authorization and bearer-token",
        ),
        (
            "http://h,authorization.type=basic,authorization.credentials=s3cret",
            "cannot be Basic",
        ),
    ] {
        for command in ["run", "check"] {
            let ended = run(&[command, "--to", to]);
            assert_eq!(ended.status.code(), Some(64), "{to}");
            let told = ended.stdout + &ended.stderr;
            assert!(told.contains(says) && !told.contains("s3cret"), "{to}: {told}");
        }
    }
}
