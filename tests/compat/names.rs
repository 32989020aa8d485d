//! Row 37 of WIRE.md section 9: the 72 vectors of WIRE.md 2.5, each sent and compared at the destination.

use super::gateway::{Engine, Gateway, percent, under_both_engines};
use super::scripted::Scripted;

under_both_engines!(row_037_the_72_name_vectors);

/// What a destination gets, or that the client gets a 400 (500 in Alloy, rows 34 and 35 (D)).
enum Outcome {
    Name(&'static str),
    Refused,
}

use Outcome::{Name, Refused};

#[rustfmt::skip] // a table: one vector on one line
const VECTORS: [(u32, &[u8], Outcome); 72] = [
    (1, b"foo", Name("foo{service_name=foo}")),
    (2, b"foo{}", Name("foo{service_name=foo}")),
    (3, b"foo{", Name("foo{service_name=foo}")),
    (4, b"foo{}}", Name("foo{service_name=foo}")),
    (5, b"foo{bar=1,baz=2}", Name("foo{bar=1,baz=2,service_name=foo}")),
    (6, b"foo{baz=1,bar=2}", Name("foo{bar=2,baz=1,service_name=foo}")),
    (7, b" foo { bar = 1 , baz = 2 } ", Name("foo{bar=1,baz=2,service_name=foo}")),
    (8, b"my.awesome.app.cpu{env=staging,region=us-west-1}", Name("my.awesome.app.cpu{env=staging,region=us-west-1,service_name=my.awesome.app.cpu}")),
    (9, b"app/sub-1.2_x{}", Name("app/sub-1.2_x{service_name=app/sub-1.2_x}")),
    (10, b"a-b{}", Name("a-b{service_name=a-b}")),
    (11, b"9app{}", Name("9app{service_name=9app}")),
    (12, b"", Refused),
    (13, b"{}", Refused),
    (14, b"{a=1}", Refused),
    (15, b"   {a=1}", Refused),
    (16, b"foo bar{}", Refused),
    (17, b"foo:bar{}", Refused),
    (18, b"foo,bar", Refused),
    (19, b"foo=bar", Refused),
    (20, b"foo}{}", Refused),
    (21, "föö{}".as_bytes(), Refused),
    (22, b"foo\tbar", Refused),
    (23, b"\tfoo\n{a=1}", Name("foo{a=1,service_name=foo}")),
    (24, b"foo{a=1,b=2", Name("foo{a=1,service_name=foo}")),
    (25, b"foo{a=1", Name("foo{service_name=foo}")),
    (26, b"foo{a", Name("foo{service_name=foo}")),
    (27, b"foo{a}", Name("foo{service_name=foo}")),
    (28, b"foo{a,b=1}", Refused),
    (29, b"foo{a=x,y}", Name("foo{a=x,service_name=foo}")),
    (30, b"foo{a=x,y,b=1}", Refused),
    (31, b"foo{=1}", Refused),
    (32, b"foo{ =1}", Refused),
    (33, b"foo{a=}", Name("foo{service_name=foo}")),
    (34, b"foo{a=,b=2}", Name("foo{b=2,service_name=foo}")),
    (35, b"foo{,a=1}", Refused),
    (36, b"foo{a=1,}", Name("foo{a=1,service_name=foo}")),
    (37, b"foo{a=1,,b=2}", Refused),
    (38, b"foo{a=1}b=2}", Name("foo{a=1,b=2,service_name=foo}")),
    (39, b"foo{a=1},b=2}", Refused),
    (40, b"foo{a=1}{b=2}", Refused),
    (41, b"foo{a=1}bar", Name("foo{a=1,service_name=foo}")),
    (42, b"foo{}a=1}", Name("foo{service_name=foo}")),
    (43, b"foo{a=b=c}", Name("foo{a=b=c,service_name=foo}")),
    (44, b"foo{a={}", Name("foo{a={,service_name=foo}")),
    (45, b"foo{a={x,b=2}", Name("foo{a={x,b=2,service_name=foo}")),
    (46, b"foo{a=1,a=2}", Name("foo{a=2,service_name=foo}")),
    (47, b"foo{a=1,a=}", Name("foo{service_name=foo}")),
    (48, b"foo{a-b=1}", Refused),
    (49, b"foo{a/b=1}", Refused),
    (50, b"foo{a.b=1}", Name("foo{a.b=1,service_name=foo}")),
    (51, b"foo{1a=1}", Name("foo{1a=1,service_name=foo}")),
    (52, b"foo{a b=1}", Refused),
    (53, "foo{é=1}".as_bytes(), Refused),
    (54, "foo{a=é}".as_bytes(), Name("foo{a=é,service_name=foo}")),
    (55, b"foo{a=\"q\"}", Name("foo{a=\"q\",service_name=foo}")),
    (56, b"foo{a=b c}", Name("foo{a=b c,service_name=foo}")),
    (57, "foo{a=\u{a0}x\u{2003}}".as_bytes(), Name("foo{a=x,service_name=foo}")),
    (58, b"foo{__name__=bar}", Name("bar{service_name=bar}")),
    (59, b"foo{__name__=bar baz}", Name("bar baz{service_name=bar baz}")),
    (60, b"foo{__name__=}", Refused),
    (61, b"foo{service_name=svc}", Name("svc{app_name=foo,service_name=svc}")),
    (62, b"foo{service_name=svc,app_name=mine}", Name("svc{app_name=foo,service_name=svc}")),
    (63, b"foo{service_name=}", Name("foo{app_name=foo}")),
    (64, b"foo{app_name=mine}", Name("foo{app_name=mine,service_name=foo}")),
    (65, b"foo{__session_id__=abc}", Name("foo{__session_id__=abc,service_name=foo}")),
    (66, b"foo{a=\xff}", Name("foo{a=\u{fffd},service_name=foo}")),
    (67, b"foo\xff", Refused),
    (68, b"foo{A=1,a=2,_=3,B=4}", Name("foo{A=1,B=4,_=3,a=2,service_name=foo}")),
    (69, b"foo{a=1;b=2}", Name("foo{a=1;b=2,service_name=foo}")),
    // 70 is sent unescaped below: the raw `;` is what it is about.
    (71, b"foo{a=1,b}", Name("foo{a=1,service_name=foo}")),
    (71, b"foo{a=1,b,}", Name("foo{a=1,service_name=foo}")),
    (72, b"foo{a=1,b,c=3}", Refused),
];

fn row_037_the_72_name_vectors(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let mut client = gateway.client();
    let mut forwarded = 0;
    for (number, name, outcome) in &VECTORS {
        let target = format!("/ingest?name={}", percent(name));
        let answer = client.post(&target, &[], b"x").unwrap();
        let input = String::from_utf8_lossy(name);
        match outcome {
            Refused => assert_eq!(answer.status, 400, "vector {number}: {input}: {answer:?}"),
            Name(expected) => {
                assert_eq!(answer.status, 200, "vector {number}: {input}: {answer:?}");
                forwarded += 1;
                assert_eq!(a.newest(forwarded).name(), *expected, "vector {number}: {input}");
            }
        }
        if *number == 56 {
            let query = a.newest(forwarded).query();
            assert_eq!(
                query, "name=foo%7Ba%3Db+c%2Cservice_name%3Dfoo%7D",
                "vector 56: a space is a plus"
            );
        }
    }
    let answer = client.post("/ingest?name=foo{a=1;b=2}", &[], b"x").unwrap();
    assert_eq!(
        answer.status, 400,
        "vector 70: a raw semicolon makes the parameter disappear"
    );
    assert_eq!(a.received().len(), forwarded, "nothing else is sent");
}
