//! Numbers as a person reads them in a terminal. Sizes are `config::units`.

use std::time::Duration;

/// `7`, `1,234`, `12,345,678`.
pub fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A latency: `85 us`, `1.25 ms`, `2.50 s`.
pub fn latency(latency: Duration) -> String {
    let micros = latency.as_secs_f64() * 1e6;
    match micros {
        ..1_000.0 => format!("{micros:.0} us"),
        ..1_000_000.0 => format!("{:.2} ms", micros / 1e3),
        _ => format!("{:.2} s", micros / 1e6),
    }
}

/// A duration as it is written on the command line, in its largest whole unit: `500ms`, `90s`, `1h`.
pub fn duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let whole = |unit: u128| millis > 0 && millis.is_multiple_of(unit);
    match millis {
        _ if whole(86_400_000) => format!("{}d", millis / 86_400_000),
        _ if whole(3_600_000) => format!("{}h", millis / 3_600_000),
        _ if whole(60_000) => format!("{}m", millis / 60_000),
        _ if whole(1_000) => format!("{}s", millis / 1_000),
        _ => format!("{millis}ms"),
    }
}

/// `one profile`, `2 profiles`: for a noun whose plural ends in `s`.
pub fn several(number: u64, noun: &str) -> String {
    match number {
        1 => format!("one {noun}"),
        _ => format!("{} {noun}s", count(number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (12_345_678, "12,345,678"),
        ] {
            assert_eq!(count(number), text);
        }
        assert_eq!(
            [several(0, "cat"), several(1, "cat"), several(2, "cat")],
            ["0 cats", "one cat", "2 cats"]
        );
    }

    #[test]
    fn times_are_short() {
        let latencies = [85, 1_250, 2_500_000].map(|micros| latency(Duration::from_micros(micros)));
        assert_eq!(latencies, ["85 us", "1.25 ms", "2.50 s"]);
        let durations = [0, 500, 1_500, 90_000, 120_000, 3_600_000, 172_800_000]
            .map(|millis| duration(Duration::from_millis(millis)));
        assert_eq!(durations, ["0ms", "500ms", "1500ms", "90s", "2m", "1h", "2d"]);
    }
}
