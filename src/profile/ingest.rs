//! `/ingest`: the client's query becomes the destination's query (WIRE.md 1.6 step 5, 2.3 to 2.6). Bodies
//! are not looked at here; they pass through byte for byte.

use std::cell::RefCell;

use thiserror::Error;

use crate::profile::connect::Code;
use crate::profile::labels::{LabelLimits, LabelRules, LabelSet, NAME, NameError, label_name_allowed};
use crate::profile::query::{Query, escape};
use crate::profile::relabel::{Fate, Outgrown};

thread_local! {
    /// One parsed query per core, reused: a rewrite of a usual query allocates nothing.
    static SCRATCH: RefCell<Query> = RefCell::default();
}

/// Why an `/ingest` is refused. Every one is the client's fault: HTTP 400 (WIRE.md 9, rows 34 and 35 (D)).
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum IngestError {
    /// No `name` parameter, or an empty one.
    #[error("name: service name is required")]
    NameMissing,
    /// A `name` outside the grammar or beyond a limit; the text is the grammar's.
    #[error("name: {0}")]
    NameMalformed(NameError),
    /// Nothing is left of the labels, e.g. `foo{__name__=}` (WIRE.md 2.5, vector 60).
    #[error("name: no labels left")]
    LabelsEmpty,
    /// A relabel rule made a label that a `name` cannot hold: it has no escaping (WIRE.md Q9).
    #[error(
        "name: a relabel rule of this gateway made of {label:?} what cannot be sent here; tell its operator"
    )]
    Unsendable {
        /// The label, shortened to 128 bytes.
        label: String,
    },
}

/// What a query became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rewritten {
    /// The outgoing query was written.
    Written,
    /// A relabel rule drops the profile: nothing was written, and that is no failure (WIRE.md 9, row 135).
    Dropped,
}

impl IngestError {
    /// The text for the client. At most a few hundred bytes: client text in it is cut.
    pub fn message(&self) -> String {
        self.to_string()
    }

    /// The HTTP status: 400.
    pub fn status(&self) -> u16 {
        Code::InvalidArgument.http_status()
    }

    /// The metric label.
    pub fn reason(&self) -> &'static str {
        match self {
            IngestError::NameMissing => "name_missing",
            IngestError::NameMalformed(
                NameError::ValueTooLong(_) | NameError::NameTooLong(_) | NameError::TooMany(_),
            ) => "labels_too_large",
            IngestError::NameMalformed(_) => "name_malformed",
            IngestError::LabelsEmpty => "labels_empty",
            IngestError::Unsendable { .. } => "relabel_unsendable",
        }
    }
}

/// Appends the outgoing query (without `?`) for the client's `query` (without `?`) to `out`: all parameters
/// re-encoded and sorted by key, the first `name` parsed, put through the label rules and emitted once.
///
/// On an error, and when a rule drops the profile, `out` is as it was. `out` gains at most three times the query plus the labels that rules add.
pub fn rewrite_query(
    query: &[u8],
    rules: &LabelRules,
    limits: &LabelLimits,
    out: &mut Vec<u8>,
) -> Result<Rewritten, IngestError> {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.parse(query);
        let rewritten = rewrite(scratch, rules, limits, out);
        scratch.clear();
        rewritten
    })
}

fn rewrite(
    query: &mut Query,
    rules: &LabelRules,
    limits: &LabelLimits,
    out: &mut Vec<u8>,
) -> Result<Rewritten, IngestError> {
    query.sort();
    let name = query
        .first(b"name")
        .filter(|name| !name.is_empty())
        .ok_or(IngestError::NameMissing)?;
    let Some(labels) = outgoing_labels(name, rules, limits)? else {
        return Ok(Rewritten::Dropped);
    };
    let start = out.len();
    let mut name_written = false;
    for (key, value) in query.pairs() {
        let is_name = key == b"name";
        if is_name && name_written {
            continue;
        }
        if out.len() > start {
            out.push(b'&');
        }
        escape(key, out);
        out.push(b'=');
        if is_name {
            labels.normalised(|piece| escape(piece, out));
            name_written = true;
        } else {
            escape(value, out);
        }
    }
    Ok(Rewritten::Written)
}

/// The labels a destination gets for a client's decoded `name`; `None` where a relabel rule drops the profile.
fn outgoing_labels<'a>(
    name: &'a [u8],
    rules: &'a LabelRules,
    limits: &LabelLimits,
) -> Result<Option<LabelSet<'a>>, IngestError> {
    let mut labels = LabelSet::parse(name, limits).map_err(IngestError::NameMalformed)?;
    labels.ensure_service_name();
    labels.drop_empty();
    if labels.as_slice().is_empty() {
        return Err(IngestError::LabelsEmpty);
    }
    if !rules.relabel().is_empty() {
        let fate = rules.relabel().apply(&mut labels, limits);
        if fate.map_err(|outgrown| too_large(outgrown, limits))? == Fate::Dropped {
            return Ok(None);
        }
    }
    labels.ensure_name_matches_service();
    if !rules.relabel().is_empty() {
        check_sendable(&labels)?;
    }
    labels.apply_external(rules);
    Ok(Some(labels))
}

fn too_large(outgrown: Outgrown, limits: &LabelLimits) -> IngestError {
    IngestError::NameMalformed(match outgrown {
        Outgrown::Name => NameError::NameTooLong(limits.name_bytes_max),
        Outgrown::Value => NameError::ValueTooLong(limits.value_bytes_max),
        Outgrown::Count => NameError::TooMany(limits.count_max),
    })
}

/// What a client sends cannot end a value early; what a rule writes could, and another label would begin behind it.
fn check_sendable(labels: &LabelSet<'_>) -> Result<(), IngestError> {
    let unsendable = labels.as_slice().iter().find(|label| match &*label.name {
        NAME => label.value.contains(&b'{'),
        name => !label_name_allowed(name) || label.value.iter().any(|b| matches!(b, b',' | b'}')),
    });
    match unsendable {
        Some(label) => {
            let name = String::from_utf8_lossy(&label.name);
            Err(IngestError::Unsendable {
                label: name.chars().take(128).collect(),
            })
        }
        None => Ok(()),
    }
}

/// What an `/ingest` query says about its profile (WIRE.md 1.2), as sent. `None` where the parameter is
/// absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IngestDescription {
    /// The app name, i.e. `__name__`; empty if `name` is missing or malformed.
    pub app_name: String,
    /// All other labels, sorted by name.
    pub labels: Vec<(String, String)>,
    /// `format`.
    pub format: Option<String>,
    /// `from`, unparsed.
    pub from: Option<String>,
    /// `until`, unparsed.
    pub until: Option<String>,
    /// `spyName`.
    pub spy_name: Option<String>,
    /// `units`.
    pub units: Option<String>,
    /// `aggregationType`.
    pub aggregation_type: Option<String>,
    /// `sampleRate`, unparsed.
    pub sample_rate: Option<String>,
}

/// Describes a query. For the file archive and tests, not for the hot path. Never fails: what cannot be
/// read is absent.
pub fn describe(query: &[u8]) -> IngestDescription {
    let mut parsed = Query::default();
    parsed.parse(query);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let first = |key: &[u8]| parsed.first(key).map(text);
    let limits = LabelLimits::default();
    let labels = parsed
        .first(b"name")
        .and_then(|name| LabelSet::parse(name, &limits).ok())
        .unwrap_or_default();
    IngestDescription {
        app_name: labels.get(NAME).map(|name| text(name)).unwrap_or_default(),
        labels: labels
            .as_slice()
            .iter()
            .filter(|label| &*label.name != NAME)
            .map(|label| (text(&label.name), text(&label.value)))
            .collect(),
        format: first(b"format"),
        from: first(b"from"),
        until: first(b"until"),
        spy_name: first(b"spyName"),
        units: first(b"units"),
        aggregation_type: first(b"aggregationType"),
        sample_rate: first(b"sampleRate"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::query::Query;

    fn rewritten(query: &[u8], external: &[(&str, &str)]) -> Result<String, IngestError> {
        let owned = external
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let rules = LabelRules::new(owned).expect("valid external labels");
        let mut out = b"kept?".to_vec();
        let result = rewrite_query(query, &rules, &LabelLimits::default(), &mut out);
        let out = String::from_utf8(out).expect("a query is ASCII");
        let gained = out.strip_prefix("kept?").expect("what was there stays");
        assert!(
            result.is_ok() || gained.is_empty(),
            "nothing is written on an error"
        );
        result.map(|rewritten| {
            assert_eq!(rewritten, Rewritten::Written);
            gained.to_owned()
        })
    }

    /// The `name` a destination gets for a decoded `name`.
    fn sent(name: &[u8], external: &[(&str, &str)]) -> Result<String, IngestError> {
        let mut query = b"name=".to_vec();
        escape(name, &mut query);
        let out = rewritten(&query, external)?;
        let mut parsed = Query::default();
        parsed.parse(out.as_bytes());
        assert_eq!(parsed.pairs().count(), 1, "one name and nothing else");
        let name = parsed.first(b"name").expect("a name").to_vec();
        Ok(String::from_utf8(name).expect("a name is UTF-8"))
    }

    /// The last column of WIRE.md 2.5 (row 37). `Err` rows are 400 instead of Alloy's 500 (rows 34, 35 (D)).
    #[test]
    fn vectors_of_wire_2_5_are_sent() {
        let foo = Some("foo{service_name=foo}");
        let foo_a1 = Some("foo{a=1,service_name=foo}");
        let cases: Vec<(u8, &[u8], Option<&str>)> = vec![
            (1, b"foo", foo),
            (2, b"foo{}", foo),
            (3, b"foo{", foo),
            (4, b"foo{}}", foo),
            (5, b"foo{bar=1,baz=2}", Some("foo{bar=1,baz=2,service_name=foo}")),
            (6, b"foo{baz=1,bar=2}", Some("foo{bar=2,baz=1,service_name=foo}")),
            (
                7,
                b" foo { bar = 1 , baz = 2 } ",
                Some("foo{bar=1,baz=2,service_name=foo}"),
            ),
            (
                8,
                b"my.awesome.app.cpu{env=staging,region=us-west-1}",
                Some("my.awesome.app.cpu{env=staging,region=us-west-1,service_name=my.awesome.app.cpu}"),
            ),
            (
                9,
                b"app/sub-1.2_x{}",
                Some("app/sub-1.2_x{service_name=app/sub-1.2_x}"),
            ),
            (10, b"a-b{}", Some("a-b{service_name=a-b}")),
            (11, b"9app{}", Some("9app{service_name=9app}")),
            (12, b"", None),
            (13, b"{}", None),
            (14, b"{a=1}", None),
            (15, b"   {a=1}", None),
            (16, b"foo bar{}", None),
            (17, b"foo:bar{}", None),
            (18, b"foo,bar", None),
            (19, b"foo=bar", None),
            (20, b"foo}{}", None),
            (21, "föö{}".as_bytes(), None),
            (22, b"foo\tbar", None),
            (23, b"\tfoo\n{a=1}", foo_a1),
            (24, b"foo{a=1,b=2", foo_a1),
            (25, b"foo{a=1", foo),
            (26, b"foo{a", foo),
            (27, b"foo{a}", foo),
            (28, b"foo{a,b=1}", None),
            (29, b"foo{a=x,y}", Some("foo{a=x,service_name=foo}")),
            (30, b"foo{a=x,y,b=1}", None),
            (31, b"foo{=1}", None),
            (32, b"foo{ =1}", None),
            (33, b"foo{a=}", foo),
            (34, b"foo{a=,b=2}", Some("foo{b=2,service_name=foo}")),
            (35, b"foo{,a=1}", None),
            (36, b"foo{a=1,}", foo_a1),
            (37, b"foo{a=1,,b=2}", None),
            (38, b"foo{a=1}b=2}", Some("foo{a=1,b=2,service_name=foo}")),
            (39, b"foo{a=1},b=2}", None),
            (40, b"foo{a=1}{b=2}", None),
            (41, b"foo{a=1}bar", foo_a1),
            (42, b"foo{}a=1}", foo),
            (43, b"foo{a=b=c}", Some("foo{a=b=c,service_name=foo}")),
            (44, b"foo{a={}", Some("foo{a={,service_name=foo}")),
            (45, b"foo{a={x,b=2}", Some("foo{a={x,b=2,service_name=foo}")),
            (46, b"foo{a=1,a=2}", Some("foo{a=2,service_name=foo}")),
            (47, b"foo{a=1,a=}", foo),
            (48, b"foo{a-b=1}", None),
            (49, b"foo{a/b=1}", None),
            (50, b"foo{a.b=1}", Some("foo{a.b=1,service_name=foo}")),
            (51, b"foo{1a=1}", Some("foo{1a=1,service_name=foo}")),
            (52, b"foo{a b=1}", None),
            (53, "foo{é=1}".as_bytes(), None),
            (54, "foo{a=é}".as_bytes(), Some("foo{a=é,service_name=foo}")),
            (55, b"foo{a=\"q\"}", Some("foo{a=\"q\",service_name=foo}")),
            (56, b"foo{a=b c}", Some("foo{a=b c,service_name=foo}")),
            (
                57,
                "foo{a=\u{a0}x\u{2003}}".as_bytes(),
                Some("foo{a=x,service_name=foo}"),
            ),
            (58, b"foo{__name__=bar}", Some("bar{service_name=bar}")),
            (
                59,
                b"foo{__name__=bar baz}",
                Some("bar baz{service_name=bar baz}"),
            ),
            (60, b"foo{__name__=}", None),
            (
                61,
                b"foo{service_name=svc}",
                Some("svc{app_name=foo,service_name=svc}"),
            ),
            (
                62,
                b"foo{service_name=svc,app_name=mine}",
                Some("svc{app_name=foo,service_name=svc}"),
            ),
            (63, b"foo{service_name=}", Some("foo{app_name=foo}")),
            (
                64,
                b"foo{app_name=mine}",
                Some("foo{app_name=mine,service_name=foo}"),
            ),
            (
                65,
                b"foo{__session_id__=abc}",
                Some("foo{__session_id__=abc,service_name=foo}"),
            ),
            (66, b"foo{a=\xff}", Some("foo{a=\u{fffd},service_name=foo}")),
            (67, b"foo\xff", None),
            (
                68,
                b"foo{A=1,a=2,_=3,B=4}",
                Some("foo{A=1,B=4,_=3,a=2,service_name=foo}"),
            ),
            (69, b"foo{a=1;b=2}", Some("foo{a=1;b=2,service_name=foo}")),
            (71, b"foo{a=1,b}", foo_a1),
            (71, b"foo{a=1,b,}", foo_a1),
            (72, b"foo{a=1,b,c=3}", None),
        ];
        for (number, name, expected) in cases {
            let result = sent(name, &[]);
            assert_eq!(result.as_deref().ok(), expected, "vector {number}: {result:?}");
        }
        assert_eq!(
            rewritten(b"name=foo{a=1;b=2}", &[]),
            Err(IngestError::NameMissing),
            "vector 70"
        );
        assert_eq!(
            rewritten(b"name=foo{a=b+c}", &[]).as_deref(),
            Ok("name=foo%7Ba%3Db+c%2Cservice_name%3Dfoo%7D")
        );
        assert_eq!(
            sent(b"foo{__name__=}", &[]),
            Err(IngestError::LabelsEmpty),
            "vector 60"
        );
    }

    #[test]
    fn queries_of_wire_2_6() {
        let cases: &[(&str, &str, &str)] = &[
            (
                "the example",
                "until=2&from=1&name=app{z=1}&a=3&a=1&format=pprof",
                "a=3&a=1&format=pprof&from=1&name=app%7Bservice_name%3Dapp%2Cz%3D1%7D&until=2",
            ),
            (
                "28 first name wins",
                "name=foo&z=1&name=bar",
                "name=foo%7Bservice_name%3Dfoo%7D&z=1",
            ),
            (
                "28 escaped name is name",
                "n%61me=foo&name=bar",
                "name=foo%7Bservice_name%3Dfoo%7D",
            ),
            (
                "26 values intact",
                "name=a&x=%2B+~%7e",
                "name=a%7Bservice_name%3Da%7D&x=%2B+~~",
            ),
            (
                "30 bad escape elsewhere",
                "name=a&x=%&y=1",
                "name=a%7Bservice_name%3Da%7D&y=1",
            ),
        ];
        for (name, query, expected) in cases {
            assert_eq!(
                rewritten(query.as_bytes(), &[]).as_deref(),
                Ok(*expected),
                "{name}"
            );
        }
        for query in [
            "",
            "a=1",
            "name",
            "name=",
            "name=&name=foo",
            "name=%zz",
            "Name=foo",
        ] {
            assert_eq!(
                rewritten(query.as_bytes(), &[]),
                Err(IngestError::NameMissing),
                "{query}"
            );
        }
        let many = format!("name=foo{}", "&a=1".repeat(10_000));
        assert_eq!(rewritten(many.as_bytes(), &[]), Err(IngestError::NameMissing));
    }

    #[test]
    fn external_labels_of_rows_42_and_43() {
        type Pairs = &'static [(&'static str, &'static str)];
        let cases: &[(&str, &str, Pairs, &str)] = &[
            (
                "42 override",
                "foo{env=dev}",
                &[("env", "prod")],
                "foo{env=prod,service_name=foo}",
            ),
            (
                "42 add",
                "foo{b=1}",
                &[("a", "x"), ("z", "y")],
                "foo{a=x,b=1,service_name=foo,z=y}",
            ),
            (
                "42 empty removes",
                "foo{env=dev}",
                &[("env", "")],
                "foo{service_name=foo}",
            ),
            (
                "43 __name__",
                "foo",
                &[("__name__", "bar")],
                "bar{service_name=foo}",
            ),
            (
                "__name__ removed",
                "foo",
                &[("__name__", "")],
                "{service_name=foo}",
            ),
            (
                "service_name does not move the name",
                "foo",
                &[("service_name", "s")],
                "foo{service_name=s}",
            ),
        ];
        for (case, name, external, expected) in cases {
            assert_eq!(
                sent(name.as_bytes(), external).as_deref(),
                Ok(*expected),
                "{case}"
            );
        }
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let error = |query: &str| rewritten(query.as_bytes(), &[]).expect_err("refused");
        assert_eq!(error("a=1").message(), "name: service name is required");
        assert_eq!(
            error("name=a:b").message(),
            "name: invalid service name: a:b: character is not allowed: ':'"
        );
        assert_eq!(error("name=a{=1}").message(), "name: label name is required");
        assert_eq!(
            (error("a=1").status(), error("a=1").reason()),
            (400, "name_missing")
        );
        assert_eq!(error("name=a:b").reason(), "name_malformed");
        let long = error(&format!("name=a{{b={}}}", "x".repeat(65_537)));
        assert_eq!((long.status(), long.reason()), (400, "labels_too_large"));
        assert!(
            rewritten(format!("name=a{{b={}}}", "x".repeat(3000)).as_bytes(), &[]).is_ok(),
            "above 2048 passes"
        );
    }

    #[test]
    fn describe_reads_a_query() {
        let query =
            b"name=shop.web{b=2,a=1}&format=jfr&from=1&until=2&spyName=x%2Fy&units=bytes&sampleRate=17&z=1";
        let expected = IngestDescription {
            app_name: "shop.web".into(),
            labels: vec![("a".into(), "1".into()), ("b".into(), "2".into())],
            format: Some("jfr".into()),
            from: Some("1".into()),
            until: Some("2".into()),
            spy_name: Some("x/y".into()),
            units: Some("bytes".into()),
            aggregation_type: None,
            sample_rate: Some("17".into()),
        };
        assert_eq!(describe(query), expected);
        assert_eq!(describe(b"name=a:b"), IngestDescription::default());
        assert_eq!(describe(b""), IngestDescription::default());
    }

    /// `name`s under one rule that replaces: what is sent, or the reason it is not.
    #[test]
    fn relabel_rules_see_service_name_and_cannot_inject() {
        use crate::profile::relabel::{Relabel, RuleSpec};
        let outcome = |name: &str, source: &str, target: &str, replacement: &str| {
            let spec = RuleSpec {
                source_labels: vec![source.into()],
                target_label: target.into(),
                replacement: replacement.into(),
                ..RuleSpec::default()
            };
            let rules = LabelRules::new(vec![("a".into(), "external".into())]).expect("good");
            let rules = rules.with_relabel(Relabel::new(&[spec]).expect("a good rule"));
            let mut out = Vec::new();
            let query = format!("name={name}");
            match rewrite_query(query.as_bytes(), &rules, &LabelLimits::default(), &mut out) {
                Ok(_) => {
                    let mut parsed = Query::default();
                    parsed.parse(&out);
                    String::from_utf8(parsed.first(b"name").expect("a name").to_vec()).expect("UTF-8")
                }
                Err(error) => error.reason().to_owned(),
            }
        };
        for (case, got, expected) in [
            (
                "138: service_name is there already",
                outcome("app", "service_name", "from", "$1"),
                "app{a=external,from=app,service_name=app}",
            ),
            (
                "external labels come after",
                outcome("app", "x", "a", "rule"),
                "app{a=external,service_name=app}",
            ),
            (
                "__name__ is overwritten by service_name",
                outcome("app", "x", "__name__", "other"),
                "app{a=external,service_name=app}",
            ),
            (
                "service_name becomes the name",
                outcome("app", "x", "service_name", "other"),
                "other{a=external,service_name=other}",
            ),
            (
                "a comma would begin a label",
                outcome("app", "x", "b", "1,c=2"),
                "relabel_unsendable",
            ),
            (
                "a brace would end them",
                outcome("app", "x", "b", "1}"),
                "relabel_unsendable",
            ),
            (
                "a brace would begin them",
                outcome("app", "x", "service_name", "a{b"),
                "relabel_unsendable",
            ),
            (
                "a sign of equality is a character",
                outcome("app", "x", "b", "1=2"),
                "app{a=external,b=1=2,service_name=app}",
            ),
        ] {
            assert_eq!(got, expected, "{case}");
        }
    }
}
