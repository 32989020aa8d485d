//! Durations and sizes as an operator writes them.

use std::time::Duration;

const DURATION_UNITS: [(&str, f64); 5] = [
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
    ("d", 86_400.0),
];

const SIZE_UNITS: [(&str, f64); 10] = [
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
    ("TiB", 1_099_511_627_776.0),
    ("KB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("TB", 1e12),
    ("kB", 1e3),
    ("B", 1.0),
];

/// The longest duration that a flag takes: 10 years, so that sums with a clock reading never overflow.
const DURATION_SECONDS_MAX: f64 = 10.0 * 365.0 * 86_400.0;
/// The largest size that a flag takes: 2^53 bytes, above which a fraction of a unit would be inexact.
const SIZE_BYTES_MAX: f64 = 9_007_199_254_740_992.0;

/// Reads `500ms`, `10s`, `1.5m`, `1h`, `2d`.
///
/// # Errors
/// A sentence that says what was expected: no unit, unknown unit, not a number, negative, or longer than 10 years.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let seconds = parse(
        text,
        &DURATION_UNITS,
        "a unit: ms, s, m, h or d, such as 500ms or 10s",
    )?;
    if seconds > DURATION_SECONDS_MAX {
        return Err("longer than 10 years".into());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Reads `64KiB`, `256MiB`, `1GiB`, `5MB`, `100B`; the units with an `i` are powers of 1024, the others of 1000.
///
/// # Errors
/// A sentence that says what was expected: no unit, unknown unit, not a number, negative, or above 2^53 bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let bytes = parse(
        text,
        &SIZE_UNITS,
        "a unit: B, KiB, MiB, GiB (or KB, MB, GB), such as 256MiB",
    )?;
    if bytes > SIZE_BYTES_MAX {
        return Err("larger than 8 PiB".into());
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 0 ..= 2^53, checked
    Ok(bytes.round() as u64)
}

fn parse(text: &str, units: &[(&str, f64)], expected: &str) -> Result<f64, String> {
    let text = text.trim();
    if text == "0" {
        return Ok(0.0);
    }
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = (&text[..split], text[split..].trim_start());
    if number.is_empty() {
        return Err(format!("expected a number with {expected}"));
    }
    let number: f64 = number
        .parse()
        .map_err(|_| format!("'{number}' is not a number"))?;
    let (_, factor) = units.iter().find(|(name, _)| *name == unit).ok_or_else(|| {
        if unit.is_empty() {
            format!("needs {expected}")
        } else {
            format!("unknown unit '{unit}'; use {expected}")
        }
    })?;
    Ok(number * factor)
}

/// A size as a person reads it: `256 MiB`, `1.5 GiB`, `100 B`.
pub fn show_size(bytes: u64) -> String {
    const STEPS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    #[allow(clippy::cast_precision_loss)] // for display
    let mut value = bytes as f64;
    let mut step = 0;
    while value >= 1024.0 && step + 1 < STEPS.len() {
        value /= 1024.0;
        step += 1;
    }
    if value.fract() < 0.05 {
        format!("{value:.0} {}", STEPS[step])
    } else {
        format!("{value:.1} {}", STEPS[step])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_take_units() {
        for (text, millis) in [
            ("500ms", 500),
            ("10s", 10_000),
            ("1.5m", 90_000),
            ("1h", 3_600_000),
            ("2d", 172_800_000),
            ("0", 0),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["10", "", "s", "-1s", "1e3s", "5 fortnights", "1..5s", "99999d"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_take_units() {
        for (text, bytes) in [
            ("100B", 100),
            ("64KiB", 65_536),
            ("1.5MiB", 1_572_864),
            ("5MB", 5_000_000),
            ("1 GiB", 1 << 30),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["100", "64kb", "MiB", "-5MB", "99999999TiB", "0x10B"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_short() {
        assert_eq!(show_size(0), "0 B");
        assert_eq!(show_size(256 << 20), "256 MiB");
        assert_eq!(show_size(1536 << 20), "1.5 GiB");
    }
}
