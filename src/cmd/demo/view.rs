//! How the demo looks while it runs: a few lines that are drawn again and again, or one line per second where there is no
//! terminal.
//!
//! Not responsible for the numbers.

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{AWAY, Act, NAMES};
use crate::cmd::show;
use crate::config::units::show_size;
use crate::runtime::engine::Verdict;

/// Lines of the live view.
const LINES: usize = 7;
/// Width of the bar of time.
const BAR_WIDTH: usize = 30;
/// Points of a queue's curve: two per second.
const CURVE_POINTS: usize = 30;
/// Pictures of a level, from empty to full.
const LEVELS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// All that can be seen at one moment.
pub struct Moment<'a> {
    /// Since the first push was due.
    pub elapsed: Duration,
    /// How long profiles are pushed.
    pub total: Duration,
    /// Where in the play we are.
    pub act: Act,
    /// Where we were in the last span.
    pub span_act: Act,
    /// Whether there has been an outage.
    pub away: bool,
    /// Whether profiles are still pushed.
    pub pushing: bool,
    /// Answered with a 2xx in the last span.
    pub pushes_per_second: f64,
    /// Answered with a 2xx in all.
    pub answered: u64,
    /// Answered otherwise, or not at all.
    pub failed: u64,
    /// Client latency in the last span.
    pub p50: Duration,
    /// Client latency in the last span.
    pub p99: Duration,
    /// The destinations.
    pub rows: [Row<'a>; 2],
}

/// One destination at one moment.
pub struct Row<'a> {
    /// Its name.
    pub name: &'static str,
    /// Whether it has been told not to answer.
    pub stopped: bool,
    /// In the last span.
    pub delivered_per_second: f64,
    /// In all.
    pub delivered: u64,
    /// Profiles queued or in flight.
    pub waiting: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// What waited before, oldest first.
    pub curve: &'a [u64],
}

/// Where it is shown.
pub struct View {
    to_stderr: bool,
    live: Option<(MultiProgress, Vec<ProgressBar>)>,
    colours: bool,
    /// The second that was last told, without a terminal.
    told: Option<u64>,
}

impl View {
    /// A live view on a terminal, unless `plain`; lines elsewhere. `to_stderr` leaves stdout alone.
    pub fn new(plain: bool, to_stderr: bool) -> Self {
        let terminal = if to_stderr {
            std::io::stderr().is_terminal()
        } else {
            std::io::stdout().is_terminal()
        };
        let live = (terminal && !plain).then(|| {
            let target = if to_stderr {
                ProgressDrawTarget::stderr()
            } else {
                ProgressDrawTarget::stdout()
            };
            (MultiProgress::with_draw_target(target), Vec::new())
        });
        Self {
            to_stderr,
            live,
            // The wish of https://no-color.org: set and not empty.
            colours: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
            told: None,
        }
    }

    /// Text that stays.
    pub fn say(&self, text: &str) {
        // Nobody may be there to read it; the play goes on, and its exit code tells the end.
        let _ = if self.to_stderr {
            writeln!(std::io::stderr(), "{text}")
        } else {
            writeln!(std::io::stdout(), "{text}")
        };
    }

    /// Draws the moment anew, or tells it if the last one told is a second old.
    pub fn show(&mut self, moment: &Moment<'_>) {
        let Some((multi, bars)) = &mut self.live else {
            let second = moment.elapsed.as_secs();
            if self.told.replace(second) != Some(second) {
                self.say(&moment.to_line());
            }
            return;
        };
        if bars.is_empty() {
            // The template has no part that could be wrong.
            let style =
                ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
            *bars = (0..LINES)
                .map(|_| multi.add(ProgressBar::new_spinner().with_style(style.clone())))
                .collect();
        }
        for (bar, line) in bars.iter().zip(moment.to_lines(self.colours)) {
            bar.set_message(line);
        }
    }

    /// Leaves the last picture standing.
    pub fn end(&mut self) {
        if let Some((_, bars)) = self.live.take() {
            bars.iter().for_each(ProgressBar::abandon);
            self.say("");
        }
    }
}

/// What is said before anything moves.
pub fn opening(verdict: &Verdict, admin: SocketAddr) -> String {
    format!(
        "pyrotee demo: a gateway, two destinations ({} and {}) and a stream of profiles, all in this process.\n\
         Half way through, {} stops answering for a while. Engine: {}.\n\
         Status page while it runs: http://{admin}/\n",
        NAMES[0], NAMES[1], NAMES[AWAY], verdict.engine
    )
}

impl Moment<'_> {
    /// One line for a log.
    fn to_line(&self) -> String {
        let mut line = format!(
            "{:>3} s  {:<9}  {:>6} pushes/s, p50 {}, p99 {}",
            self.elapsed.as_secs(),
            self.state(),
            rate(self.pushes_per_second),
            show::latency(self.p50),
            show::latency(self.p99)
        );
        for row in &self.rows {
            line += &format!(
                "  |  {} {}/s, {} waiting",
                row.name,
                rate(row.delivered_per_second),
                show::count(row.waiting)
            );
        }
        if self.failed > 0 {
            line += &format!("  |  {} failed", show::count(self.failed));
        }
        line
    }

    fn state(&self) -> String {
        let name = NAMES[AWAY];
        match self.span_act {
            Act::AllWell => "all well".into(),
            Act::Away => format!("{name} away"),
            Act::Back if !self.away => "ending".into(),
            Act::Back => format!("{name} back"),
        }
    }

    /// The live view.
    fn to_lines(&self, colours: bool) -> [String; LINES] {
        let paint = |code: &str, text: String| {
            if colours {
                format!("\x1b[{code}m{text}\x1b[0m")
            } else {
                text
            }
        };
        let highest = self.rows.iter().flat_map(|row| row.curve).copied().max();
        let highest = highest.unwrap_or(0);
        let row = |row: &Row<'_>| {
            let (state, colour) = match (
                row.stopped,
                row.waiting > row.delivered_per_second.max(100.0) as u64,
            ) {
                (true, _) => ("stopped", "31"),
                (false, true) => ("catching up", "33"),
                (false, false) => ("up", "32"),
            };
            format!(
                "  {}  {} {:>11} {:>10} {:>10}   {:<9} {}",
                row.name,
                paint(colour, format!("{state:<12}")),
                rate(row.delivered_per_second),
                show::count(row.delivered),
                show::count(row.waiting),
                show_size(row.waiting_bytes),
                paint("36", curve(row.curve, highest))
            )
        };
        let failed = match self.failed {
            0 => String::new(),
            failed => paint("31", format!(", {} failed", show::count(failed))),
        };
        [
            self.time_bar(),
            paint("1", self.what_happens()),
            String::new(),
            paint(
                "2",
                format!(
                    "{:>29} {:>10} {:>10}   {}",
                    "per second", "in all", "waiting", "bytes and curve of what waits"
                ),
            ),
            format!(
                "  {:<16}{:>11} {:>10}              answered in p50 {}, p99 {}{failed}",
                "clients push",
                rate(self.pushes_per_second),
                show::count(self.answered),
                paint("1", show::latency(self.p50)),
                paint("1", show::latency(self.p99))
            ),
            row(&self.rows[0]),
            row(&self.rows[1]),
        ]
    }

    fn time_bar(&self) -> String {
        let share = (self.elapsed.as_secs_f64() / self.total.as_secs_f64()).min(1.0);
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss
        )] // 0..=BAR_WIDTH
        let full = (share * BAR_WIDTH as f64) as usize;
        format!(
            "[{}{}] {} of {} s",
            "█".repeat(full),
            "░".repeat(BAR_WIDTH - full),
            self.elapsed.min(self.total).as_secs(),
            self.total.as_secs()
        )
    }

    fn what_happens(&self) -> String {
        let [other, name] = NAMES;
        match self.act {
            _ if !self.pushing => "All profiles are pushed; what still waits is being delivered.".into(),
            Act::AllWell => "All is well: each profile goes to both.".into(),
            Act::Away => format!(
                "{name} has stopped answering. Clients and {other} do not notice; profiles for {name} wait in its queue."
            ),
            Act::Back => format!("{name} is back: its queue drains, while new profiles go on."),
        }
    }
}

fn rate(per_second: f64) -> String {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // not negative, and saturating
    show::count(per_second.round() as u64)
}

/// The last points as levels, `highest` as a full one.
fn curve(points: &[u64], highest: u64) -> String {
    let highest = highest.max(1);
    let shown = &points[points.len().saturating_sub(CURVE_POINTS)..];
    let level = |point: &u64| {
        let full = LEVELS.len() as u64 - 1;
        // Anything that waits can be seen.
        usize::try_from((point * full).div_ceil(highest))
            .map_or(' ', |level| LEVELS[level.min(LEVELS.len() - 1)])
    };
    shown.iter().map(level).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn away(curve: &[u64]) -> Moment<'_> {
        let row = |name, stopped| Row {
            name,
            stopped,
            delivered_per_second: if stopped { 0.0 } else { 1000.0 },
            delivered: 7012,
            waiting: if stopped { 2011 } else { 2 },
            waiting_bytes: 9 << 20,
            curve,
        };
        Moment {
            elapsed: Duration::from_millis(7_100),
            total: Duration::from_secs(15),
            act: Act::Away,
            span_act: Act::Away,
            away: true,
            pushing: true,
            pushes_per_second: 1000.4,
            answered: 7100,
            failed: 0,
            p50: Duration::from_micros(180),
            p99: Duration::from_micros(650),
            rows: [row("a", false), row("b", true)],
        }
    }

    #[test]
    fn a_moment_fits_a_line() {
        assert_eq!(
            away(&[]).to_line(),
            "  7 s  b away      1,000 pushes/s, p50 180 us, p99 650 us  |  a 1,000/s, 2 waiting  |  b 0/s, 2,011 waiting"
        );
    }

    #[test]
    fn a_moment_is_drawn_and_colours_change_no_letter() {
        let curve = [0, 1, 1000, 2011];
        let moment = away(&curve);
        let plain = moment.to_lines(false);
        assert!(plain[0].ends_with("7 of 15 s"), "{plain:#?}");
        assert!(plain[1].starts_with("b has stopped"), "{plain:#?}");
        assert!(
            plain[6].contains("stopped") && plain[6].ends_with(" ▁▄█"),
            "{plain:#?}"
        );
        let painted = moment.to_lines(true);
        for (plain, painted) in plain.iter().zip(&painted) {
            let mut bare = painted.clone();
            for code in ["0", "1", "2", "31", "32", "33", "36"] {
                bare = bare.replace(&format!("\x1b[{code}m"), "");
            }
            assert_eq!(&bare, plain);
        }
    }

    #[test]
    fn a_curve_shows_the_last_points() {
        let points: Vec<u64> = (0..100).collect();
        assert_eq!(curve(&points, 99).chars().count(), CURVE_POINTS);
        assert_eq!(curve(&[], 0), "");
        assert_eq!(curve(&[0, 1, 1000], 1000), " ▁█");
    }
}
