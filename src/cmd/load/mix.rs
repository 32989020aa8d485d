//! Which request comes when: body sizes by weight, routes in turn, services round robin.
//!
//! Responsible for: reading `--size`, and for the n-th request's kind. The order is fixed and even (no dice), so two runs
//! of one command send the same requests. Not responsible for making bodies (`bodies.rs`).

use crate::config::units;

/// Longest cycle of sizes: the sum of the weights.
const WEIGHT_SUM_MAX: usize = 10_000;
/// Largest body, in bytes: what a Pyroscope server takes is 256 MiB; making one takes seconds.
const SIZE_MAX: u64 = 256 << 20;

/// What `--size` lists; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SizeMix {
    /// Body size in bytes and its weight, at least 1.
    pub parts: Vec<(usize, usize)>,
}

impl SizeMix {
    /// Reads `1KiB:8,16KiB:1`; a weight left out is 1.
    ///
    /// # Errors
    /// A sentence about the part that is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        for part in text.split(',') {
            let (size, weight) = part.split_once(':').unwrap_or((part, "1"));
            let size = units::parse_size(size)?;
            if size > SIZE_MAX {
                return Err(format!(
                    "'{part}': a body has at most {}",
                    units::show_size(SIZE_MAX)
                ));
            }
            let weight: usize = weight
                .trim()
                .parse()
                .map_err(|_| format!("'{weight}' is no weight"))?;
            if weight == 0 {
                return Err(format!("'{part}': a weight is at least 1"));
            }
            let size = usize::try_from(size).map_err(|_| format!("'{part}' is too large"))?;
            parts.push((size, weight));
        }
        if parts.iter().map(|(_, weight)| weight).sum::<usize>() > WEIGHT_SUM_MAX {
            return Err(format!("the weights add up to more than {WEIGHT_SUM_MAX}"));
        }
        Ok(Self { parts })
    }

    /// Indices into `parts`, each as often as its weight says, spread evenly: the part that is furthest behind its share
    /// comes next.
    pub fn cycle(&self) -> Vec<usize> {
        let total: usize = self.parts.iter().map(|(_, weight)| weight).sum();
        let mut credits = vec![0i64; self.parts.len()];
        let mut cycle = Vec::with_capacity(total);
        for _ in 0..total {
            for (credit, (_, weight)) in credits.iter_mut().zip(&self.parts) {
                *credit += *weight as i64;
            }
            let next = (0..credits.len()).max_by_key(|index| (credits[*index], std::cmp::Reverse(*index)));
            let next = next.unwrap_or_default();
            credits[next] -= total as i64;
            cycle.push(next);
        }
        cycle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixes_are_read() {
        assert_eq!(
            SizeMix::parse("1KiB:8,16KiB:1").unwrap().parts,
            [(1024, 8), (16384, 1)]
        );
        assert_eq!(SizeMix::parse("100B").unwrap().parts, [(100, 1)]);
        for (text, complaint) in [
            ("", "number"),
            ("1KiB:", "no weight"),
            ("1KiB:0", "at least 1"),
            ("1KiB:-1", "no weight"),
            ("1GiB", "at most 256 MiB"),
            ("1KiB:10001", "add up"),
            ("12", "unit"),
        ] {
            let error = SizeMix::parse(text).expect_err(text);
            assert!(error.contains(complaint), "{text}: {error}");
        }
    }

    #[test]
    fn a_cycle_is_even() {
        assert_eq!(SizeMix::parse("1KiB:3,2KiB:1").unwrap().cycle(), [0, 0, 1, 0]);
        let cycle = SizeMix::parse("1KiB:70,2KiB:20,3KiB:10").unwrap().cycle();
        for (part, count) in [(0, 70), (1, 20), (2, 10)] {
            assert_eq!(cycle.iter().filter(|index| **index == part).count(), count);
            assert_eq!(
                cycle[..10].iter().filter(|index| **index == part).count(),
                count / 10
            );
        }
    }
}
