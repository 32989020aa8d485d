//! What files of the archive are called. Pure: no clock, no disk.
//!
//! ```text
//! <service>/<YYYY-MM-DD>/<HHMMSS.mmm>Z_<type>_<CRC-32 of the file, 8 hex digits>.<ext>
//! index-<YYYY-MM-DD>.jsonl
//! ```

use std::fmt;

/// Longest folder name made from a service name, in bytes. NAME_MAX is 255 on every Linux file system in use.
const SERVICE_BYTES_MAX: usize = 100;
/// Longest profile type in a file name, in bytes.
const TYPE_BYTES_MAX: usize = 60;
/// What the index files begin with; no service may have a folder called so.
const INDEX_PREFIX: &str = "index-";
/// The folder for profiles whose service cannot be told.
pub const NO_SERVICE: &str = "unknown_service";

/// A moment in UTC, as a calendar shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Civil {
    year: u64,
    month: u64,
    day: u64,
    millis_of_day: u64,
}

impl Civil {
    /// From milliseconds since the unix epoch. Leap seconds are not counted, as everywhere in unix time.
    pub fn from_unix_ms(unix_ms: u64) -> Self {
        let (days, millis_of_day) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
        // Years are counted from 1 March, so that the leap day ends its year; day 0 is 1 March of year 0.
        let day_number = days + 719_468;
        let (era, day_of_era) = (day_number / 146_097, day_number % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 {
            march_month + 3
        } else {
            march_month - 9
        };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        Self {
            year,
            month,
            day,
            millis_of_day,
        }
    }

    /// `YYYY-MM-DD`.
    pub fn date(self) -> String {
        format!("{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }

    /// `HHMMSS.mmm`.
    pub fn time(self) -> String {
        let [hours, minutes, seconds, millis] = self.clock();
        format!("{hours:02}{minutes:02}{seconds:02}.{millis:03}")
    }

    fn clock(self) -> [u64; 4] {
        let millis = self.millis_of_day;
        [
            millis / 3_600_000,
            millis / 60_000 % 60,
            millis / 1_000 % 60,
            millis % 1_000,
        ]
    }
}

impl fmt::Display for Civil {
    /// RFC 3339 with milliseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [hours, minutes, seconds, millis] = self.clock();
        write!(
            f,
            "{}T{hours:02}:{minutes:02}:{seconds:02}.{millis:03}Z",
            self.date()
        )
    }
}

/// The folder of a service: one path component that is never hidden, never `..`, never an index file, at most 100 bytes
/// long, and different for different services. Case is kept; where a file system folds it, two services may share a
/// folder, and the index tells them apart.
pub fn service_folder(service: &str) -> String {
    if service.is_empty() {
        return NO_SERVICE.into();
    }
    let mut folder = component(service, SERVICE_BYTES_MAX - 9);
    if folder.starts_with(INDEX_PREFIX) {
        folder.insert(0, '_');
        folder.truncate(SERVICE_BYTES_MAX - 9);
    }
    if folder != service {
        folder.push_str(&format!("-{:08x}", crc32(service.as_bytes())));
    }
    folder
}

/// The name of a profile's file without CRC and extension.
pub fn file_prefix(at: Civil, kind: &str) -> String {
    let kind = component(kind, TYPE_BYTES_MAX);
    format!("{}Z_{kind}", at.time())
}

/// The index file of a day.
pub fn index_file(at: Civil) -> String {
    format!("{INDEX_PREFIX}{}.jsonl", at.date())
}

/// `text` as a part of a file name: ASCII letters, digits, `.`, `-` and `_` stay, all else becomes `_`; no leading dot or
/// dash, at most `bytes_max` long, never empty.
pub fn component(text: &str, bytes_max: usize) -> String {
    let mut safe: String = text
        .chars()
        .take(bytes_max)
        .map(|c| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_' => c,
            _ => '_',
        })
        .collect();
    if safe.is_empty() || safe.starts_with(['.', '-']) {
        safe.insert(0, '_');
        safe.truncate(bytes_max);
    }
    safe
}

/// CRC-32 (ISO 3309), as `crc32` and gzip print it.
pub fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (unix_ms, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_795_366_767_042, "2026-11-22T16:59:27.042Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (4_107_456_000_000, "2100-02-28T00:00:00.000Z"),
        ] {
            assert_eq!(Civil::from_unix_ms(unix_ms).to_string(), expected);
        }
        assert_eq!(Civil::from_unix_ms(1_795_366_767_042).time(), "165927.042");
    }

    /// The calendar counted on day by day, by the rule as people say it.
    #[test]
    fn days_follow_each_other() {
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for number in 0..400 * 365 {
            let civil = Civil::from_unix_ms(number * 86_400_000);
            assert_eq!((civil.year, civil.month, civil.day), (year, month, day));
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 => 28 + u64::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > length {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
    }

    #[test]
    fn the_end_of_time_has_a_name_too() {
        assert!(Civil::from_unix_ms(u64::MAX).to_string().ends_with('Z'));
    }

    #[test]
    fn plain_services_keep_their_name() {
        for service in ["shop.web", "a", "App_1-x", "9app"] {
            assert_eq!(service_folder(service), service);
        }
        assert_eq!(service_folder(""), NO_SERVICE);
    }

    #[test]
    fn hostile_services_stay_one_harmless_component() {
        let long = "x".repeat(5_000);
        let hostile = [
            ".",
            "..",
            "...",
            "../../etc/passwd",
            "/etc",
            "a/b",
            "a\\b",
            "a\0b",
            "-rf",
            ".hidden",
            ".partial-1",
            "index-2026-11-22.jsonl",
            "con\n",
            "föö",
            "föo",
            "%2e%2e",
            " ",
            "\u{202e}gpj",
            &long,
            &"é".repeat(300),
        ];
        let mut folders = std::collections::BTreeSet::new();
        for service in hostile {
            let folder = service_folder(service);
            assert!(folder.len() <= SERVICE_BYTES_MAX, "{folder}");
            assert!(
                !folder.starts_with(['.', '-']) && !folder.starts_with(INDEX_PREFIX),
                "{folder}"
            );
            assert!(
                folder
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)),
                "{folder}"
            );
            assert!(folders.insert(folder), "{service:?} shares a folder");
        }
    }

    #[test]
    fn file_names_fit() {
        let at = Civil::from_unix_ms(u64::MAX);
        let name = file_prefix(at, &"../".repeat(1_000));
        assert!(name.len() < 100 && !name.contains('/'), "{name}");
    }
}
