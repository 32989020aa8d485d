//! `pyrotee spool`: what waits on disk, for people. Looks at it, proves it whole, shows, sends or deletes it.
//!
//! `ls`, `verify` and `cat` take no lock and change nothing, so they may run beside a gateway; what they tell may be
//! outdated then. `drain` and `drop` change the spool: they take its lock, and refuse while a gateway has it.
//!
//! Exit codes: 0 done and all is well, 1 damage was found, something is left, or it could not be done, 64 a mistake in the
//! command. Not responsible for the files (`spool`); sending is in `drain.rs`.

mod drain;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::run::EXIT_USAGE;
use super::show;
use crate::config::units::show_size;
use crate::profile::route::Route;
use crate::runtime::clock;
use crate::spool::{
    Damage, DestinationFolder, Meta, RealDisk, Seen, Summary, What, delete, destinations, read_record,
    summary, walk,
};

/// The arguments of `pyrotee spool`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The folder that `pyrotee run --spool` was given.
    #[arg(long, env = "PYROTEE_SPOOL", value_name = "DIR", global = true)]
    spool: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// List what waits for each destination.
    Ls(Ls),
    /// Read everything and look at every checksum; exit code 1 if something is damaged.
    Verify(Verify),
    /// Write one record to stdout as the HTTP request that it was, passed-on headers included.
    Cat(Cat),
    /// Send what waits for a destination, and mark what was accepted as done. No gateway may be running on the spool.
    Drain(drain::Args),
    /// Delete everything that waits for a destination. No gateway may be running on the spool.
    Drop(Drop),
}

#[derive(Clone, Debug, clap::Args)]
struct Ls {
    /// Only this destination.
    #[arg(long, value_name = "NAME")]
    destination: Option<String>,
    /// List each record, also those that are done and not yet deleted.
    #[arg(long)]
    records: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, clap::Args)]
struct Verify {
    /// Only this destination.
    #[arg(long, value_name = "NAME")]
    destination: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, clap::Args)]
struct Cat {
    /// The destination; not needed if there is only one.
    #[arg(long, value_name = "NAME")]
    destination: Option<String>,
    /// The record, as `pyrotee spool ls --records` names it.
    #[arg(long, value_name = "ID", value_parser = parse_record)]
    record: (u64, u32),
}

#[derive(Clone, Debug, clap::Args)]
struct Drop {
    /// The destination; not needed if there is only one.
    #[arg(long, value_name = "NAME")]
    destination: Option<String>,
    /// Really delete it.
    #[arg(long)]
    yes: bool,
}

/// Does what was asked.
///
/// # Errors
/// When the spool cannot be read, or changed, or is in use.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Some(spool) = &args.spool else {
        eprintln!("error: no spool given; add --spool DIR, the folder that 'pyrotee run --spool' was given");
        return Ok(ExitCode::from(EXIT_USAGE));
    };
    let result = match &args.command {
        Command::Ls(ls) if ls.records => list_records(spool, ls),
        Command::Ls(ls) => list(spool, ls),
        Command::Verify(verify) => self::verify(spool, verify),
        Command::Cat(cat) => self::cat(spool, cat),
        Command::Drain(drain) => drain::run(spool, drain),
        Command::Drop(drop) => drop_all(spool, drop),
    };
    result.or_else(|error| match error.downcast_ref::<io::Error>() {
        // Who reads our output has seen enough: `pyrotee spool ls --records | head`.
        Some(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        _ => Err(error),
    })
}

/// What `ls` says of one destination.
#[derive(Debug, Serialize)]
struct Row {
    destination: String,
    records: u64,
    profiles: u64,
    bytes: u64,
    oldest_unix_ms: Option<u64>,
    segments: u64,
    segment_bytes: u64,
    done: u64,
    damaged: u64,
}

fn list(spool: &Path, ls: &Ls) -> anyhow::Result<ExitCode> {
    let rows: Vec<Row> = folders(spool, ls.destination.as_deref())?
        .into_iter()
        .map(|folder| Ok(row(folder.destination.clone(), &summed_up(&folder, false)?)))
        .collect::<anyhow::Result<_>>()?;
    let text = if ls.json {
        format!("{:#}\n", serde_json::json!({ "destinations": rows }))
    } else {
        table(&rows)
    };
    io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn row(destination: String, summary: &Summary) -> Row {
    Row {
        destination,
        records: summary.left.parcels,
        profiles: summary.left.profiles,
        bytes: summary.left.bytes,
        oldest_unix_ms: summary.oldest_unix_ms,
        segments: summary.segments,
        segment_bytes: summary.segment_bytes,
        done: summary.done,
        damaged: summary.damages.list.len() as u64 + summary.damages.more,
    }
}

fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.destination.chars().count()).max();
    let width = width.unwrap_or(0).max("destination".len());
    let mut text = format!(
        "{:width$}  {:>12}  {:>12}  {:>10}  {:>8}  {:>8}  {:>10}\n",
        "destination", "records", "profiles", "bytes", "oldest", "segments", "on disk"
    );
    for row in rows {
        text += &format!(
            "{:width$}  {:>12}  {:>12}  {:>10}  {:>8}  {:>8}  {:>10}\n",
            row.destination,
            show::count(row.records),
            show::count(row.profiles),
            show_size(row.bytes),
            row.oldest_unix_ms.map_or("-".into(), age),
            show::count(row.segments),
            show_size(row.segment_bytes),
        );
    }
    for row in rows.iter().filter(|row| row.damaged > 0) {
        let places = show::several(row.damaged, "damaged place");
        text += &format!("{}: {places}; see pyrotee spool verify\n", row.destination);
    }
    text
}

/// What `ls --records` says of one record.
#[derive(Debug, Serialize)]
struct RecordRow {
    destination: String,
    record: String,
    done: bool,
    route: &'static str,
    accepted_unix_ms: u64,
    profiles: u32,
    bytes: u64,
}

/// Line by line, because there may be millions.
fn list_records(spool: &Path, ls: &Ls) -> anyhow::Result<ExitCode> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    for folder in folders(spool, ls.destination.as_deref())? {
        let told = walk(&RealDisk::existing(&folder.folder), false, &mut |_, seen| {
            let Seen::Record { meta, is_done } = seen else {
                return Ok(());
            };
            let row = RecordRow {
                destination: folder.destination.clone(),
                record: meta.id.to_string(),
                done: is_done,
                route: path(meta.route),
                accepted_unix_ms: meta.accepted_unix_ms,
                profiles: meta.profiles,
                bytes: meta.body_bytes,
            };
            if ls.json {
                serde_json::to_writer(&mut out, &row)?;
                return writeln!(out);
            }
            writeln!(
                out,
                "{}  {:>14}  {:7}  {:>8} ago  {:>6} profiles  {:>10}  {}",
                row.destination,
                row.record,
                if is_done { "done" } else { "waiting" },
                age(row.accepted_unix_ms),
                row.profiles,
                show_size(row.bytes),
                row.route,
            )
        });
        told.with_context(|| cannot_read(&folder))?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// What `verify` says of one destination.
#[derive(Debug, Serialize)]
struct Proof {
    destination: String,
    good: bool,
    segments: u64,
    waiting: u64,
    done: u64,
    lost: u64,
    damages: Vec<Spot>,
    more_damages: u64,
}

#[derive(Debug, Serialize)]
struct Spot {
    file: String,
    offset: u64,
    bytes: u64,
    lost: u64,
    what: String,
}

fn verify(spool: &Path, verify: &Verify) -> anyhow::Result<ExitCode> {
    let proofs: Vec<Proof> = folders(spool, verify.destination.as_deref())?
        .iter()
        .map(|folder| Ok(proof(folder.destination.clone(), &settled(folder)?)))
        .collect::<anyhow::Result<_>>()?;
    let is_good = proofs.iter().all(|proof| proof.good);
    let text = if verify.json {
        format!(
            "{:#}\n",
            serde_json::json!({ "good": is_good, "destinations": proofs })
        )
    } else {
        proofs.iter().map(proof_text).collect()
    };
    io::stdout().write_all(text.as_bytes())?;
    Ok(if is_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The whole of a destination, read again while a gateway seems to be in the middle of writing its last record.
fn settled(folder: &DestinationFolder) -> anyhow::Result<Summary> {
    let mut found = summed_up(folder, true)?;
    for _ in 0..LOOKS_AGAIN {
        let is_torn = |damage: &Damage| damage.what == What::Tail;
        if !found.damages.list.last().is_some_and(is_torn) {
            break;
        }
        std::thread::sleep(LOOK_AGAIN_AFTER);
        found = summed_up(folder, true)?;
    }
    Ok(found)
}

/// A record is written in one call, which takes milliseconds.
const LOOKS_AGAIN: usize = 5;
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(50);

fn proof(destination: String, found: &Summary) -> Proof {
    let spot = |damage: &Damage| Spot {
        file: damage.file.clone(),
        offset: damage.offset,
        bytes: damage.bytes,
        lost: damage.records,
        what: damage.what.to_string(),
    };
    Proof {
        destination,
        good: found.damages.is_empty(),
        segments: found.segments,
        waiting: found.left.parcels,
        done: found.done,
        lost: found.damages.lost.parcels,
        damages: found.damages.list.iter().map(spot).collect(),
        more_damages: found.damages.more,
    }
}

fn proof_text(proof: &Proof) -> String {
    let mut text = format!(
        "{}: {}, {} good and waiting, {} done, {} lost\n",
        proof.destination,
        show::several(proof.segments, "segment"),
        show::several(proof.waiting, "record"),
        show::count(proof.done),
        show::count(proof.lost),
    );
    for spot in &proof.damages {
        let Spot {
            file,
            offset,
            bytes,
            lost,
            what,
        } = spot;
        text += &format!("  {file}, {bytes} bytes from {offset} on: {what}; records lost: {lost}\n");
    }
    if proof.more_damages > 0 {
        text += &format!("  and {} more\n", show::count(proof.more_damages));
    }
    text
}

fn cat(spool: &Path, cat: &Cat) -> anyhow::Result<ExitCode> {
    let folder = the_folder(spool, cat.destination.as_deref())?;
    let disk = RealDisk::existing(&folder.folder);
    let mut found = None;
    walk(&disk, false, &mut |file, seen| {
        if let (Seen::Record { meta, .. }, Some(file)) = (seen, file)
            && (meta.id.segment, meta.id.index) == cat.record
        {
            found = Some((meta, read_record(&disk, file, &meta)?));
        }
        Ok(())
    })
    .with_context(|| cannot_read(&folder))?;
    let (segment, index) = cat.record;
    match found {
        None => {
            bail!("no record {segment}-{index} (any more); 'pyrotee spool ls --records' lists what there is")
        }
        Some((_, None)) => bail!("record {segment}-{index} is damaged: its checksum is wrong"),
        Some((meta, Some(payload))) => write_request(&meta, &payload)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// As it came, but for the hops' own header lines, which nobody keeps.
fn write_request(meta: &Meta, payload: &[u8]) -> io::Result<()> {
    let (query, rest) = payload.split_at(meta.query_bytes as usize);
    let (fields, body) = rest.split_at(meta.fields_bytes as usize);
    let mut out = io::BufWriter::new(io::stdout().lock());
    write!(out, "POST {}", path(meta.route))?;
    if !query.is_empty() {
        out.write_all(b"?")?;
        out.write_all(query)?;
    }
    out.write_all(b" HTTP/1.1\r\nHost: localhost\r\n")?;
    out.write_all(fields)?;
    write!(out, "Content-Length: {}\r\n\r\n", body.len())?;
    out.write_all(body)?;
    out.flush()
}

fn drop_all(spool: &Path, drop: &Drop) -> anyhow::Result<ExitCode> {
    let folder = the_folder(spool, drop.destination.as_deref())?;
    let name = &folder.destination;
    let _lock = crate::spool::lock(spool)?;
    let found = summed_up(&folder, false)?;
    let what = format!(
        "{} with {} ({}) for '{name}'",
        show::several(found.left.parcels, "record"),
        show::several(found.left.profiles, "profile"),
        show_size(found.left.bytes),
    );
    if !drop.yes {
        eprintln!("error: this would delete {what} for good; add --yes if that is what you want");
        return Ok(ExitCode::from(EXIT_USAGE));
    }
    delete(&folder).with_context(|| format!("cannot delete what is spooled for '{name}'"))?;
    println!("deleted {what}");
    Ok(ExitCode::SUCCESS)
}

/// The folders of all delete, destinations, or of one.
fn folders(spool: &Path, destination: Option<&str>) -> anyhow::Result<Vec<DestinationFolder>> {
    let shown = spool.display();
    if !spool.is_dir() {
        bail!("{shown} is no folder; --spool wants the one that 'pyrotee run --spool' was given");
    }
    let mut found = destinations(spool).with_context(|| format!("cannot list {shown}"))?;
    if let Some(wanted) = destination {
        let names = names(&found);
        found.retain(|folder| folder.destination == wanted);
        if found.is_empty() {
            bail!("nothing is spooled for '{wanted}'; there is: {names}");
        }
    }
    Ok(found)
}

/// The folder of one destination, which need not be named if there is only one.
fn the_folder(spool: &Path, destination: Option<&str>) -> anyhow::Result<DestinationFolder> {
    let mut found = folders(spool, destination)?;
    match (found.pop(), found.is_empty()) {
        (Some(folder), true) => Ok(folder),
        (None, _) => bail!("nothing is spooled in {}", spool.display()),
        (Some(last), false) => {
            found.push(last);
            bail!(
                "which destination? add --destination NAME; there is: {}",
                names(&found)
            )
        }
    }
}

fn names(folders: &[DestinationFolder]) -> String {
    let names: Vec<&str> = folders.iter().map(|folder| folder.destination.as_str()).collect();
    match names.is_empty() {
        true => "nothing".to_owned(),
        false => names.join(", "),
    }
}

fn summed_up(folder: &DestinationFolder, bodies: bool) -> anyhow::Result<Summary> {
    summary(&RealDisk::existing(&folder.folder), bodies).with_context(|| cannot_read(folder))
}

fn cannot_read(folder: &DestinationFolder) -> String {
    format!("cannot read the spool of '{}'", folder.destination)
}

fn path(route: Route) -> &'static str {
    match route {
        Route::Ingest => "/ingest",
        Route::Push => "/push.v1.PusherService/Push",
    }
}

/// How long ago, in one whole unit.
fn age(unix_ms: u64) -> String {
    let seconds = clock::unix_now().as_secs().saturating_sub(unix_ms / 1000);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn parse_record(text: &str) -> Result<(u64, u32), String> {
    let parts = text.split_once('-');
    let numbers = parts.and_then(|(segment, index)| Some((segment.parse().ok()?, index.parse().ok()?)));
    numbers.ok_or_else(|| "is no record; it looks like 12-345, see 'pyrotee spool ls --records'".into())
}
