//! The status page: one document, made from the templates beside this file.
//!
//! [`Shown`] is everything on the page that changes, written out for a person. The server fills the templates with it, and
//! `/-/status` carries it so that the page's script puts the very same texts in the same places once a second; without
//! JavaScript the page is complete and reloads itself.
//!
//! In the templates:
//!
//! | mark | becomes |
//! |---|---|
//! | `{{key}}` | a text that never changes, escaped |
//! | `[[key]]` | a text that does, in an element the script finds again |
//! | `{{bar:key}}`, `{{curve:key}}`, `{{state:key}}`, `{{table:key}}` | the width of a bar, a path, a state, a table |
//! | `{{!key}}` | HTML, CSS or JavaScript of ours, as it is |
//!
//! In `destination.html` a key that begins with a dot belongs to the destination.

mod shown;

use axum::http::HeaderValue;

use super::show::escape;
use super::snapshot::Snapshot;
pub use shown::Shown;

const PAGE: &str = include_str!("page.html");
const DESTINATION: &str = include_str!("destination.html");
const CSS: &str = include_str!("page.css");
const JS: &str = include_str!("page.js");

/// A page ready to be sent.
#[derive(Debug)]
pub struct Page {
    /// The document.
    pub html: String,
    /// Allows the document's own style and script by their nonce, and nothing else.
    pub content_security_policy: HeaderValue,
}

/// Makes the page.
pub fn render(snapshot: &Snapshot) -> Page {
    let shown = Shown::new(snapshot);
    let nonce = uuid::Uuid::new_v4().simple().to_string();
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let html = fill(PAGE, "", &shown, &|key| match key {
        "title" => escape(&shown.title),
        "version" => escape(snapshot.version),
        "engine" => escape(&snapshot.engine),
        "engine_reason" => escape(&snapshot.engine_reason),
        "nonce" => nonce.clone(),
        "!css" => CSS.into(),
        "!js" => JS.into(),
        "!destinations" => destinations(snapshot, &shown),
        _ => unknown(key),
    });
    Page {
        html,
        content_security_policy: HeaderValue::from_str(&policy)
            .unwrap_or(HeaderValue::from_static("default-src 'none'")),
    }
}

fn destinations(snapshot: &Snapshot, shown: &Shown) -> String {
    let card = |destination: &super::snapshot::Destination| {
        let id = shown::destination_id(destination);
        fill(DESTINATION, &id, shown, &|key| match key {
            "id" => escape(&id),
            "name" => escape(&destination.name),
            "kind" => destination.kind.into(),
            _ => unknown(key),
        })
    };
    snapshot.destinations.iter().map(card).collect()
}

/// Replaces the marks of `template`; keys that begin with a dot get `prefix` in front. `fixed` knows the rest.
fn fill(template: &str, prefix: &str, shown: &Shown, fixed: &dyn Fn(&str) -> String) -> String {
    let mut out = String::with_capacity(template.len() * 2);
    let mut rest = template;
    while let Some(start) = rest.find(['{', '[']) {
        let (before, mark) = rest.split_at(start);
        out.push_str(before);
        let close = if mark.starts_with("{{") { "}}" } else { "]]" };
        let body = mark.strip_prefix("{{").or_else(|| mark.strip_prefix("[["));
        match body.and_then(|body| body.split_once(close)) {
            Some((key, behind)) => {
                out.push_str(&replacement(mark.starts_with("[["), key, prefix, shown, fixed));
                rest = behind;
            }
            None => {
                out.push_str(&mark[..1]);
                rest = &mark[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

fn replacement(
    changes: bool,
    key: &str,
    prefix: &str,
    shown: &Shown,
    fixed: &dyn Fn(&str) -> String,
) -> String {
    let full = |key: &str| match key {
        "." => prefix.to_owned(),
        key if key.starts_with('.') => format!("{prefix}{key}"),
        key => key.to_owned(),
    };
    if changes {
        let key = full(key);
        let text = shown
            .texts
            .get(&key)
            .map_or_else(|| unknown(&key), |text| escape(text));
        return format!("<span data-text=\"{key}\">{text}</span>");
    }
    let Some((kind, key)) = key.split_once(':') else {
        return fixed(key);
    };
    let key = full(key);
    let value = match kind {
        "bar" => shown
            .bars
            .get(&key)
            .map(|width| format!("data-bar=\"{key}\" width=\"{width}\"")),
        "curve" => shown
            .curves
            .get(&key)
            .map(|path| format!("data-curve=\"{key}\" d=\"{path}\"")),
        "state" => shown.states.get(&key).map(|state| (*state).to_owned()),
        "table" => shown.rows.get(key.as_str()).map(|rows| table(&key, rows)),
        _ => None,
    };
    value.unwrap_or_else(|| unknown(&key))
}

/// A table. The script makes its later rows like the first ones here: the first cell is the row's header, and class and
/// label of a cell are those of its column.
fn table(key: &str, rows: &shown::Rows) -> String {
    let class = |column: &shown::Column| if column.is_number { "n" } else { "" };
    let head = |column: &shown::Column| {
        let (class, title) = (class(column), escape(column.title));
        format!("<th scope=\"col\" class=\"{class}\">{title}</th>")
    };
    let cell = |(index, (column, text)): (usize, (&shown::Column, &String))| {
        let (open, close) = if index == 0 {
            ("th scope=\"row\"", "th")
        } else {
            ("td", "td")
        };
        let (class, label, text) = (class(column), escape(column.title), escape(text));
        format!("<{open} class=\"{class}\" data-label=\"{label}\">{text}</{close}>")
    };
    let row = |cells: &Vec<String>| {
        let cells = rows.columns.iter().zip(cells).enumerate().map(cell);
        format!("<tr>{}</tr>", cells.collect::<String>())
    };
    format!(
        "<table><thead><tr>{}</tr></thead><tbody data-rows=\"{key}\">{}</tbody></table>",
        rows.columns.iter().map(head).collect::<String>(),
        rows.cells.iter().map(row).collect::<String>(),
    )
}

/// A mark that nothing fills: seen by a test, and on the page rather than hidden.
fn unknown(key: &str) -> String {
    format!("(no {key})")
}
