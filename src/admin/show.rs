//! Numbers as a person reads them on the page, and HTML escaping.

use std::time::Duration;

use crate::config::units::show_size;

/// Between a number and its unit: they stay on one line.
const JOIN: char = '\u{a0}';

/// `0 B`, `1.5 GiB`, `256 MiB`.
pub fn size(bytes: u64) -> String {
    joined(&show_size(bytes).replace(".0 ", " "))
}

fn joined(text: &str) -> String {
    text.replace(' ', &JOIN.to_string())
}

/// `0`, `7`, `1 234`, `1 234 567`, `12.3 M`, `7.0 G`.
#[allow(clippy::cast_precision_loss)] // for display
pub fn count(count: u64) -> String {
    match count {
        0..10_000_000 => grouped(count),
        10_000_000..1_000_000_000 => format!("{:.1} M", count as f64 / 1e6),
        _ => format!("{:.1} G", count as f64 / 1e9),
    }
}

/// In groups of three, with a space between them that is narrow and does not break.
fn grouped(count: u64) -> String {
    match count / 1_000 {
        0 => count.to_string(),
        thousands => format!("{}\u{202f}{:03}", grouped(thousands), count % 1_000),
    }
}

/// Per second: `0`, `0.4`, `12.5`, `1 234`.
pub fn rate(per_second: f64) -> String {
    if per_second <= 0.0 {
        "0".into()
    } else if per_second < 0.1 {
        "< 0.1".into()
    } else if per_second < 100.0 {
        format!("{per_second:.1}")
    } else {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 100 and above, and saturating
        count(per_second.round() as u64)
    }
}

/// The two largest units: `0 s`, `45 s`, `3 min 12 s`, `2 h 5 min`, `4 d 1 h`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    joined(&match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min {} s", seconds % 60),
        3600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    })
}

/// How long ago: `just now`, `45 s ago`.
pub fn ago(passed: Duration) -> String {
    if passed < Duration::from_secs(2) {
        "just now".into()
    } else {
        format!("{} ago", duration(passed))
    }
}

/// A short span: `5 ms`, `2.5 s`.
pub fn span(seconds: f64) -> String {
    if seconds < 1.0 {
        format!("{}{JOIN}ms", (seconds * 1e4).round() / 10.0)
    } else {
        format!("{}{JOIN}s", (seconds * 10.0).round() / 10.0)
    }
}

/// Text that HTML reads as text, in an element or in a quoted attribute.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let counts = [0, 999, 1_000, 12_034, 1_250_006, 12_340_000, 7_000_000_000].map(count);
        assert_eq!(
            counts,
            [
                "0",
                "999",
                "1\u{202f}000",
                "12\u{202f}034",
                "1\u{202f}250\u{202f}006",
                "12.3 M",
                "7.0 G"
            ]
        );
        let rates = [0.0, 0.01, 0.42, 99.94, 1234.4].map(rate);
        assert_eq!(rates, ["0", "< 0.1", "0.4", "99.9", "1\u{202f}234"]);
        let durations =
            [0, 59, 192, 7_500, 349_200].map(|s| duration(Duration::from_secs(s)).replace(JOIN, " "));
        assert_eq!(durations, ["0 s", "59 s", "3 min 12 s", "2 h 5 min", "4 d 1 h"]);
        assert_eq!(
            [0.005, 0.25, 1.0, 2.5].map(|s| span(s).replace(JOIN, " ")),
            ["5 ms", "250 ms", "1 s", "2.5 s"]
        );
    }

    #[test]
    fn sizes_stay_on_one_line() {
        assert_eq!(size((256 << 20) - 1), "256\u{a0}MiB");
        assert_eq!(size(1536 << 20), "1.5\u{a0}GiB");
    }

    #[test]
    fn html_is_text() {
        assert_eq!(escape("<b a='\"'>&"), "&lt;b a=&#39;&quot;&#39;&gt;&amp;");
    }
}
