//! A configuration that is read again while profiles flow: destinations come, go, move and change, rules change, and no
//! push, connection or book notices more than it should. The real binary, under both engines.
//!
//! Bodies tell their numbers, so that what was answered is compared with what arrived, in full.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use clap::Parser as _;
use pyrotee::config::{AckPolicy, Flags, Plan};
use pyrotee::fanout::DropReason;
use pyrotee::runtime;
use pyrotee::runtime::engine::{EngineChoice, probe};
use rustix::process::Signal;
use support::gateway::Gateway;
use support::peer::{Absent, Held, Peer, Received, Reply};
use support::wire::name_of;
use support::{Answer, Client, DEADLINE, Process, Sink, eventually, get, run, under_both_engines};

under_both_engines!(
    row_139_destinations_come_go_and_move_under_load,
    the_same_where_a_core_only_writes,
    a_load_of_both_routes_does_not_notice,
    what_stays_notices_nothing,
    what_waits_goes_by_the_new_options,
    a_hung_destination_is_left_behind_at_once,
    what_is_refused_in_the_old_way_is_sent_in_the_new_one,
    what_is_removed_gets_what_waits_and_nothing_new,
    what_is_removed_and_takes_nothing_is_given_up,
    a_push_under_way_goes_by_what_it_began_with,
    what_leaves_may_come_back,
    what_comes_again_goes_on_with_its_books,
    clients_that_wait_get_their_answer,
    a_removed_destination_keeps_its_spool,
    a_removed_destination_loses_its_spool_where_that_is_asked_for,
    a_spool_that_may_not_be_left_keeps_its_destination,
    what_a_spool_holds_goes_by_the_new_options,
    limits_change_in_a_running_gateway,
    archives_come_move_and_go,
    labels_and_rules_change,
    what_cannot_be_taken_over_changes_nothing,
    a_new_destination_that_cannot_start_changes_nothing,
    signals_reload_and_end_nothing,
    a_signal_while_a_file_is_read_has_it_read_again,
    reloads_wait_for_each_other,
    a_hundred_reloads_leave_nothing_behind,
    a_stop_in_the_middle_of_a_departure_is_orderly,
);

/// A configuration file that changes.
struct Config {
    folder: tempfile::TempDir,
}

/// One endpoint: its name, its URL, and further lines.
#[derive(Clone, Debug, PartialEq, Eq)]
struct To<'a>(&'a str, String, &'a str);

impl Config {
    fn new(text: &str) -> Self {
        let config = Self {
            folder: tempfile::tempdir().expect("a folder for temporary files"),
        };
        config.write(text);
        config
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("config.alloy")
    }

    /// Replaces it as an orchestrator does: in one go.
    fn write(&self, text: &str) {
        let new = self.folder.path().join("new");
        std::fs::write(&new, text).expect("room");
        std::fs::rename(new, self.path()).expect("a folder of ours");
    }
}

/// A file with these endpoints.
fn to(endpoints: &[To<'_>]) -> String {
    with_receiver("", "", endpoints)
}

/// The same with lines in the receiver's `http` block and in front of the endpoints.
fn with_receiver(http: &str, write: &str, endpoints: &[To<'_>]) -> String {
    let mut text = format!(
        "pyroscope.receive_http \"in\" {{\nforward_to = [pyroscope.write.out.receiver]\nhttp {{\n{http}\n}}\n}}\n\
         pyroscope.write \"out\" {{\n{write}\n"
    );
    for To(name, url, more) in endpoints {
        let _ = writeln!(
            text,
            "endpoint {{\nname = \"{name}\"\nurl = \"{url}\"\n{more}\n}}"
        );
    }
    text + "}\n"
}

/// Retries that need no patience.
const QUICK: [&str; 6] = [
    "--min-backoff",
    "10ms",
    "--max-backoff",
    "100ms",
    "--admin",
    "127.0.0.1:0",
];

fn start(engine: &str, config: &Config, flags: &[&str]) -> Gateway {
    let path = config.path();
    let file = ["--config", path.to_str().expect("plain")];
    Gateway::start(engine, &[&file[..], &QUICK, flags].concat())
}

fn ask_reload(admin: SocketAddr) -> Answer {
    let answer = Client::connect(admin).post("/-/reload", &[], b"");
    answer.expect("an answer")
}

fn admin(gateway: &Gateway) -> SocketAddr {
    gateway.admin.expect("started with --admin")
}

/// Reads `text` again; it must be taken over. Returns what is said of it.
fn reload(gateway: &Gateway, config: &Config, text: &str) -> String {
    config.write(text);
    let answer = ask_reload(admin(gateway));
    assert_eq!(answer.status, 200, "{}\n{text}", answer.text());
    answer.text()
}

fn metric(gateway: &Gateway, name: &str, destination: &str) -> f64 {
    gateway.metric(&format!("{name}{{destination=\"{destination}\"}}"))
}

fn await_metric(gateway: &Gateway, name: &str, destination: &str, value: f64) {
    eventually(&format!("{name} of {destination} to be {value}"), || {
        (metric(gateway, name, destination) == value).then_some(())
    });
}

/// Whether anything is told of a destination.
fn is_told(gateway: &Gateway, destination: &str) -> bool {
    let text = get(admin(gateway), "/metrics").text();
    text.contains(&format!("\"{destination}\""))
}

fn await_gone(gateway: &Gateway, destination: &str) {
    eventually(&format!("{destination} to be gone"), || {
        (!is_told(gateway, destination)).then_some(())
    });
}

/// The books of a destination at rest.
fn assert_books_balance(gateway: &Gateway, destination: &str) {
    let text = get(admin(gateway), "/metrics").text();
    let sum = |name: &str| -> f64 {
        let lines = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
        let lines = lines.filter(|line| line.contains(&format!("destination=\"{destination}\"")));
        let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        values.sum()
    };
    for unit in ["parcels", "bytes"] {
        let of = |what: &str| sum(&format!("pyrotee_destination_{what}"));
        let accepted = of(&format!("accepted_{unit}_total"));
        let ended = of(&format!("delivered_{unit}_total")) + of(&format!("dropped_{unit}_total"));
        let held = of(&format!("held_{unit}"));
        assert_eq!(accepted, ended + held, "{unit} of {destination}");
    }
}

/// Waits until the spool of `a` has taken so many. Some of them are in memory again at once.
fn await_stored(gateway: &Gateway, parcels: u32) {
    eventually("the spool to take them", || {
        let stored = metric(gateway, "pyrotee_spool_stored_parcels_total", "a");
        (stored >= f64::from(parcels)).then_some(())
    });
}

fn numbered(number: usize) -> Vec<u8> {
    format!("{number:06}").into_bytes()
}

fn number_of(request: &Received) -> usize {
    request.text().parse().expect("numbered")
}

fn push(client: &mut Client, number: usize) {
    let answer = client.post("/ingest?name=app", &[], &numbered(number));
    assert_eq!(answer.expect("an answer").status, 200, "push {number}");
}

fn push_all(gateway: &Gateway, numbers: std::ops::Range<usize>) {
    let mut client = gateway.client();
    numbers.for_each(|number| push(&mut client, number));
}

/// The numbers of the next `count` requests, in order.
fn take(peer: &Peer, count: usize) -> Vec<usize> {
    let mut numbers: Vec<usize> = peer.take(count).iter().map(number_of).collect();
    numbers.sort_unstable();
    numbers
}

fn none(peer: &Peer, why: &str) {
    peer.expect_nothing(Duration::from_millis(100), why);
}

/// A push, between the number of the reload that was over before it, and of the one that had begun after it.
struct Pushed {
    number: usize,
    after: usize,
    before: usize,
}

fn row_139_destinations_come_go_and_move_under_load(engine: &str) {
    come_go_and_move(engine, &["--cores", "2"]);
}

fn the_same_where_a_core_only_writes(engine: &str) {
    come_go_and_move(engine, &["--cores", "2", "--writers", "1"]);
}

fn come_go_and_move(engine: &str, flags: &[&str]) {
    const CLIENTS: usize = 4;
    const RELOADS: usize = 40;
    /// As many as come while one is under way, and no more: a busy machine would take minutes for all that four clients can
    /// push meanwhile, and queues would overflow.
    const PUSHES: usize = 1000;
    let peers: Vec<Peer> = (0..5).map(|_| Peer::start()).collect();
    let url = |peer: usize| peers[peer].url();
    // Which peers stand behind which name.
    let states: [Vec<To<'_>>; 6] = [
        vec![To("a", url(0), "")],
        vec![To("a", url(0), ""), To("b", url(1), "")],
        vec![To("a", url(0), "remote_timeout = \"9s\""), To("b", url(2), "")],
        vec![To("c", url(3), ""), To("b", url(2), "")],
        vec![To("b", url(1), ""), To("c", url(4), ""), To("a", url(0), "")],
        vec![To("c", url(3), "headers = { \"X-New\" = \"1\" }")],
    ];
    let config = Config::new(&to(&states[0]));
    let gateway = start(engine, &config, flags);
    let address = gateway.address;
    let (begun, over) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let next = AtomicUsize::new(0);
    // How many may be pushed; `None` when it is over.
    let (allowed, is_changed) = (Mutex::new(Some(0)), Condvar::new());
    let allow = |count| {
        *allowed.lock().expect("no pusher panics with it") = count;
        is_changed.notify_all();
    };
    let pushed: Vec<Pushed> = std::thread::scope(|scope| {
        let pusher = || {
            let mut client = Client::connect(address); // one connection for all of it
            let mut pushed = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::SeqCst);
                let waits = |allowed: &mut Option<usize>| allowed.is_some_and(|count| number >= count);
                let seen = allowed.lock().expect("nobody panics with it");
                let seen = is_changed.wait_timeout_while(seen, DEADLINE, waits);
                let (seen, waited) = seen.expect("nobody panics with it");
                assert!(!waited.timed_out(), "nobody goes on");
                if seen.is_none() {
                    return pushed;
                }
                drop(seen);
                let after = over.load(Ordering::SeqCst);
                push(&mut client, number);
                let before = begun.load(Ordering::SeqCst);
                pushed.push(Pushed {
                    number,
                    after,
                    before,
                });
            }
        };
        let pushers: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(pusher)).collect();
        for turn in 1..=RELOADS {
            let seen = next.load(Ordering::SeqCst);
            allow(Some(seen + PUSHES));
            eventually("pushes under way", || {
                (next.load(Ordering::SeqCst) > seen + 10).then_some(())
            });
            begun.store(turn, Ordering::SeqCst);
            reload(&gateway, &config, &to(&states[turn % states.len()]));
            over.store(turn, Ordering::SeqCst);
        }
        allow(None);
        let joined = pushers
            .into_iter()
            .flat_map(|one| one.join().expect("every push is answered 200"));
        joined.collect()
    });
    let farewells = gateway.farewell();
    for (name, farewell) in &farewells {
        assert_eq!(
            (farewell.lost(), farewell.undecided),
            (0, 0),
            "{name}: {farewell:?}"
        );
    }
    let mut arrived: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for (name, behind) in [("a", &[0][..]), ("b", &[1, 2]), ("c", &[3, 4])] {
        for request in behind.iter().flat_map(|peer| peers[*peer].received()) {
            arrived.entry(number_of(&request)).or_default().push(name);
        }
    }
    let set =
        |turn: usize| -> BTreeSet<&str> { states[turn % states.len()].iter().map(|one| one.0).collect() };
    assert!(pushed.len() > RELOADS * 10);
    for Pushed {
        number,
        after,
        before,
    } in pushed
    {
        let names = arrived.remove(&number).unwrap_or_default();
        let at: BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(at.len(), names.len(), "push {number} came twice: {names:?}");
        assert!(
            (after..=before).any(|turn| set(turn) == at),
            "push {number} between reloads {after} and {before} went to {at:?}"
        );
    }
    assert!(arrived.is_empty(), "never pushed: {arrived:?}");
}

/// Both routes, as fast as they are answered, with every profile verified where it arrives.
fn a_load_of_both_routes_does_not_notice(engine: &str) {
    const REQUESTS: &str = "6000";
    let (a, b) = (Sink::start(&["--verify"]), Sink::start(&["--verify"]));
    let both = [To("a", a.url(), ""), To("b", b.url(), "")];
    let config = Config::new(&to(&both));
    // On a busy machine an answer may take its time, and what is given up may have arrived.
    let gateway = start(engine, &config, &["--cores", "2", "--remote-timeout", "1m"]);
    let url = gateway.url();
    let load = Process::start(&[
        "load",
        &url,
        "--requests",
        REQUESTS,
        "--duration",
        "5m", // the requests end it
        "--connections",
        "8",
        "--route",
        "mix",
        "--size",
        "1KiB:4,64KiB:1",
        "--json",
        "-",
        "--quiet",
    ]);
    let mut turns = 0;
    while a.stats()["requests"].as_u64() < Some(5500) {
        turns += 1;
        reload(
            &gateway,
            &config,
            &to(if turns % 2 == 1 { &both[..1] } else { &both }),
        );
    }
    let ended = load.wait();
    assert!(ended.status.success(), "{}", ended.stderr);
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).expect("a report");
    assert_eq!(report["connections_opened"], 8, "none was closed: {report}");
    // All that waits may be more than a busy machine delivers in the time that a shutdown leaves.
    a.stats_when("all at the one that stayed", |stats| {
        stats["requests"].as_u64() >= report["ok"].as_u64()
    });
    let farewells = gateway.farewell();
    let stats = a.stats();
    let counted = ["verified", "duplicates", "corrupt"].map(|name| stats[name].as_u64());
    assert_eq!(counted, [REQUESTS.parse().ok(), Some(0), Some(0)], "{stats}");
    let stats = b.stats();
    assert_eq!(
        (&stats["duplicates"], &stats["corrupt"]),
        (&0.into(), &0.into()),
        "{stats}"
    );
    assert_eq!(
        stats["verified"].as_u64(),
        farewells.get("b").map(|one| one.delivered)
    );
    assert!(
        farewells.values().all(|one| one.lost() + one.undecided == 0),
        "{farewells:?}"
    );
    assert!(turns > 3, "{turns} reloads");
}

fn what_stays_notices_nothing(engine: &str) {
    let (a, b) = (Peer::start(), Peer::start());
    let one = To("a", a.url(), "");
    let config = Config::new(&to(std::slice::from_ref(&one)));
    // One at a time: while an answer is on its way the next request would open a second connection.
    let gateway = start(engine, &config, &["--inflight", "1"]);
    let mut client = gateway.client();
    let delivered = |parcels| {
        await_metric(
            &gateway,
            "pyrotee_destination_delivered_parcels_total",
            "a",
            parcels,
        );
    };
    push(&mut client, 0);
    delivered(1.0); // else the next one may need a second connection
    for turn in 1..6 {
        let both = [To("b", b.url(), ""), one.clone()];
        let said = reload(
            &gateway,
            &config,
            &to(if turn % 2 == 1 { &both } else { &both[1..] }),
        );
        assert!(
            said.contains(if turn % 2 == 1 { "added b" } else { "removed b" }),
            "{said}"
        );
        push(&mut client, turn);
        delivered(turn as f64 + 1.0);
    }
    let at_a = a.take(6);
    assert!(at_a.iter().all(|request| request.connection == 0), "{at_a:?}");
    assert_eq!(at_a.iter().map(number_of).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    assert_eq!(take(&b, 3), [1, 3, 5]);
    assert_eq!(
        metric(&gateway, "pyrotee_destination_accepted_parcels_total", "a"),
        6.0
    );
    let said = reload(&gateway, &config, &to(&[To("b", b.url(), ""), one]));
    assert!(said.contains("nothing is different"), "{said}");
    gateway.end_whole();
}

fn what_waits_goes_by_the_new_options(engine: &str) {
    let (absent, new) = (Absent::new(), Peer::start());
    let config = Config::new(&to(&[To("a", absent.url(), "")]));
    let gateway = start(engine, &config, &[]);
    push_all(&gateway, 0..20);
    await_metric(&gateway, "pyrotee_destination_up", "a", 0.0);
    let more = "headers = { \"X-Scope-OrgID\" = \"team\" }";
    let said = reload(&gateway, &config, &to(&[To("a", new.url(), more)]));
    assert!(said.contains("changed a"), "{said}");
    push_all(&gateway, 20..25);
    let requests = new.take(25);
    let numbers: BTreeSet<usize> = requests.iter().map(number_of).collect();
    assert_eq!(numbers, (0..25).collect());
    assert!(
        requests
            .iter()
            .all(|one| one.header("x-scope-orgid") == Some("team"))
    );
    await_metric(&gateway, "pyrotee_destination_delivered_parcels_total", "a", 25.0);
    assert_eq!(metric(&gateway, "pyrotee_destination_up", "a"), 1.0);
    assert_books_balance(&gateway, "a");
    gateway.end_whole();
}

/// As many requests as may be in flight hang at the old place: those at the new one do not wait for them.
fn a_hung_destination_is_left_behind_at_once(engine: &str) {
    let held = Held::default();
    let own = held.clone();
    let (hung, new) = (Peer::deciding(move |_| Reply::Held(own.clone())), Peer::start());
    let config = Config::new(&to(&[To("a", hung.url(), "remote_timeout = \"20s\"")]));
    let gateway = start(engine, &config, &["--inflight", "2"]);
    push_all(&gateway, 0..6);
    hung.take(2);
    reload(&gateway, &config, &to(&[To("a", new.url(), "")]));
    assert_eq!(
        new.take(4).len(),
        4,
        "while the old requests are still on the wire"
    );
    held.open();
    await_metric(&gateway, "pyrotee_destination_delivered_parcels_total", "a", 6.0);
    none(&new, "the others were delivered where they were");
    assert_books_balance(&gateway, "a");
    gateway.end_whole();
}

/// A wrong token is mended while requests with it are on the wire.
fn what_is_refused_in_the_old_way_is_sent_in_the_new_one(engine: &str) {
    let held = Held::default();
    let own = held.clone();
    let peer = Peer::deciding(move |request| {
        if request.header("authorization") == Some("Bearer good") {
            return Reply::Ok;
        }
        own.wait();
        Reply::Status(401, "")
    });
    let config = Config::new(&to(&[To("a", peer.url(), "bearer_token = \"bad\"")]));
    let gateway = start(engine, &config, &[]);
    push_all(&gateway, 0..3);
    peer.take(3);
    reload(
        &gateway,
        &config,
        &to(&[To("a", peer.url(), "bearer_token = \"good\"")]),
    );
    held.open();
    assert_eq!(take(&peer, 3), [0, 1, 2]);
    await_metric(&gateway, "pyrotee_destination_delivered_parcels_total", "a", 3.0);
    assert_eq!(metric(&gateway, "pyrotee_destination_auth_failing", "a"), 0.0);
    gateway.end_whole();
}

fn what_is_removed_gets_what_waits_and_nothing_new(engine: &str) {
    let held = Held::default();
    let own = held.clone();
    let (a, b) = (Peer::deciding(move |_| Reply::Held(own.clone())), Peer::start());
    let both = [To("a", a.url(), ""), To("b", b.url(), "")];
    let config = Config::new(&to(&both));
    let mut gateway = start(engine, &config, &["--inflight", "1"]);
    push_all(&gateway, 0..5);
    a.next();
    reload(&gateway, &config, &to(&both[1..]));
    push_all(&gateway, 5..8);
    assert_eq!(take(&b, 8), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(metric(&gateway, "pyrotee_destination_leaving", "a"), 1.0);
    assert_eq!(metric(&gateway, "pyrotee_destination_leaving", "b"), 0.0);
    assert_eq!(metric(&gateway, "pyrotee_destination_held_parcels", "a"), 5.0);
    let status = get(admin(&gateway), "/-/status").json();
    assert_eq!(status["destinations"][1]["name"], "a");
    assert_eq!(status["destinations"][1]["leaving"], true);
    assert!(get(admin(&gateway), "/").text().contains(", leaving"));
    held.open();
    assert_eq!(take(&a, 4), [1, 2, 3, 4]);
    gateway.logged("removed destination has ended");
    let farewell = gateway.logged("all delivered");
    assert_eq!(
        (farewell["destination"].as_str(), farewell["delivered"].as_u64()),
        (Some("a"), Some(5))
    );
    await_gone(&gateway, "a");
    eventually("its connections to close", || {
        (a.connections() == 0).then_some(())
    });
    none(&a, "it was removed");
    let config_page = get(admin(&gateway), "/-/config").json();
    assert_eq!(
        config_page["plan"]["destinations"].as_array().map(Vec::len),
        Some(1)
    );
    gateway.end_whole();
}

fn what_is_removed_and_takes_nothing_is_given_up(engine: &str) {
    let (absent, b) = (Absent::new(), Peer::start());
    let both = [To("a", absent.url(), ""), To("b", b.url(), "")];
    let config = Config::new(&to(&both));
    let mut gateway = start(engine, &config, &["--drain-timeout", "300ms"]);
    push_all(&gateway, 0..5);
    reload(&gateway, &config, &to(&both[1..]));
    let warning = gateway.logged("takes nothing");
    assert_eq!(warning["waiting"], 5);
    let farewell = gateway.logged("lost");
    assert_eq!(farewell["destination"], "a");
    assert_eq!(farewell["reasons"], "removed=5");
    await_gone(&gateway, "a");
    assert_eq!(take(&b, 5), [0, 1, 2, 3, 4]);
    // It was counted, and is counted on if it comes again.
    reload(&gateway, &config, &to(&both));
    let dropped = "pyrotee_destination_dropped_parcels_total{destination=\"a\",reason=\"removed\"}";
    assert_eq!(gateway.metric(dropped), 5.0);
    assert_books_balance(&gateway, "a");
}

/// Its head has come before the reload, its last byte comes after it.
fn a_push_under_way_goes_by_what_it_began_with(engine: &str) {
    let (a, b) = (Peer::start(), Peer::start());
    let text = |labels: &str, endpoint: To<'_>| with_receiver("", labels, &[endpoint]);
    let old = text("external_labels = { is = \"old\" }", To("a", a.url(), ""));
    let config = Config::new(&old);
    // Longer than a delivery takes on a busy machine.
    let mut gateway = start(engine, &config, &["--drain-timeout", "2s"]);
    let mut client = gateway.client();
    let whole = support::post("/ingest?name=app", &[], &numbered(7));
    client.send(&whole[..whole.len() - 3]).expect("it is sent");
    // Another one, whole and behind it, says that the first has been looked at.
    push(&mut gateway.client(), 6);
    assert_eq!(take(&a, 1), [6]);
    reload(
        &gateway,
        &config,
        &text("external_labels = { is = \"new\" }", To("b", b.url(), "")),
    );
    push(&mut gateway.client(), 8);
    let at_b = b.next();
    assert_eq!(number_of(&at_b), 8);
    assert!(at_b.query().contains("is%3Dnew"), "{}", at_b.query());
    std::thread::sleep(Duration::from_millis(2500)); // longer than a destination without anything to do would be kept
    assert_eq!(metric(&gateway, "pyrotee_destination_leaving", "a"), 1.0);
    client.send(&whole[whole.len() - 3..]).expect("it is sent");
    assert_eq!(client.receive().expect("an answer").status, 200);
    let at_a = a.next();
    assert_eq!(number_of(&at_a), 7);
    assert!(at_a.query().contains("is%3Dold"), "{}", at_a.query());
    gateway.logged("removed destination has ended");
    push(&mut client, 9);
    assert_eq!(take(&b, 1), [9]);
    none(&a, "it was removed");
    gateway.end_whole();
}

fn what_leaves_may_come_back(engine: &str) {
    let held = Held::default();
    let own = held.clone();
    let (a, b) = (Peer::deciding(move |_| Reply::Held(own.clone())), Peer::start());
    let both = [To("a", a.url(), ""), To("b", b.url(), "")];
    let config = Config::new(&to(&both));
    let gateway = start(engine, &config, &["--inflight", "1"]);
    push_all(&gateway, 0..3);
    a.next();
    reload(&gateway, &config, &to(&both[1..]));
    push_all(&gateway, 3..5);
    let said = reload(&gateway, &config, &to(&both));
    assert!(said.contains("added a"), "{said}");
    push_all(&gateway, 5..7);
    assert_eq!(metric(&gateway, "pyrotee_destination_leaving", "a"), 0.0);
    assert_eq!(
        metric(&gateway, "pyrotee_destination_accepted_parcels_total", "a"),
        5.0
    );
    held.open();
    let at_a = a.take(4);
    let mut numbers: Vec<usize> = at_a.iter().map(number_of).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 5, 6]);
    assert!(
        at_a.iter().all(|one| one.connection == 0),
        "as if nothing had been: {at_a:?}"
    );
    assert_eq!(take(&b, 7), [0, 1, 2, 3, 4, 5, 6]);
    gateway.end_whole();
}

fn what_comes_again_goes_on_with_its_books(engine: &str) {
    let (a, b) = (Peer::start(), Peer::start());
    let both = [To("a", a.url(), ""), To("b", b.url(), "")];
    let config = Config::new(&to(&both));
    let gateway = start(engine, &config, &[]);
    for round in 0..3 {
        push_all(&gateway, round * 2..round * 2 + 1);
        assert_eq!(take(&a, 1), [round * 2]);
        await_metric(
            &gateway,
            "pyrotee_destination_delivered_parcels_total",
            "a",
            round as f64 + 1.0,
        );
        let latency = "pyroscope_write_latency_count{endpoint=\"a\",type=\"ingest_endpoint\"}";
        assert_eq!(gateway.metric(latency), round as f64 + 1.0);
        assert_books_balance(&gateway, "a");
        reload(&gateway, &config, &to(&both[1..]));
        push_all(&gateway, round * 2 + 1..round * 2 + 2);
        await_gone(&gateway, "a");
        reload(&gateway, &config, &to(&both));
    }
    assert_eq!(take(&b, 6), [0, 1, 2, 3, 4, 5]);
    let farewells = gateway.farewell();
    assert_eq!((farewells["a"].delivered, farewells["b"].delivered), (3, 6));
}

/// `--ack all`, `first` and `stored`: whoever waits while his destinations are removed, changed or joined by others is
/// answered by those that were there.
fn clients_that_wait_get_their_answer(engine: &str) {
    let spool = tempfile::tempdir().expect("a folder");
    let spool = spool.path().to_str().expect("plain");
    for (ack, more) in [("all", &[][..]), ("first", &[]), ("stored", &["--spool", spool])] {
        let held = Held::default();
        let own = held.clone();
        let (a, b) = (Peer::deciding(move |_| Reply::Held(own.clone())), Peer::start());
        let refusing = Peer::deciding(|_| Reply::Status(400, ""));
        let config = Config::new(&to(&[To("a", a.url(), "")]));
        let gateway = start(engine, &config, &[&["--ack", ack], more].concat());
        let mut client = gateway.client();
        client
            .send(support::post("/ingest?name=app", &[], &numbered(0)))
            .expect("it is sent");
        a.next();
        // Its destination is changed, then removed; one that refuses everything comes.
        let changed = "headers = { \"X-New\" = \"1\" }";
        reload(
            &gateway,
            &config,
            &to(&[To("a", a.url(), changed), To("r", refusing.url(), "")]),
        );
        reload(&gateway, &config, &to(&[To("b", b.url(), "")]));
        push(&mut gateway.client(), 1);
        assert_eq!(take(&b, 1), [1], "{ack}");
        held.open();
        assert_eq!(client.receive().expect("an answer").status, 200, "{ack}");
        push(&mut client, 2);
        assert_eq!(take(&b, 1), [2], "{ack}");
        await_gone(&gateway, "a");
        none(&refusing, "nothing was pushed while it was there");
        gateway.end_whole();
    }
}

fn a_removed_destination_keeps_its_spool(engine: &str) {
    let spool = tempfile::tempdir().expect("a folder");
    let (absent, b) = (Absent::new(), Peer::start());
    let both = [To("a", absent.url(), ""), To("b", b.url(), "")];
    let config = Config::new(&to(&both));
    let flags = [
        "--spool",
        spool.path().to_str().expect("plain"),
        "--drain-timeout",
        "300ms",
    ];
    let mut gateway = start(engine, &config, &flags);
    push_all(&gateway, 0..30);
    await_stored(&gateway, 30);
    reload(&gateway, &config, &to(&both[1..]));
    let kept = gateway.logged("the spool keeps profiles");
    assert_eq!(
        (kept["destination"].as_str(), kept["parcels"].as_u64()),
        (Some("a"), Some(30))
    );
    await_gone(&gateway, "a");
    push_all(&gateway, 30..31);
    assert_eq!(take(&b, 31), (0..31).collect::<Vec<_>>());
    // It comes again, takes its spool up, and its books are as if it had never left.
    let peer = absent.appear();
    reload(&gateway, &config, &to(&both));
    assert_eq!(take(&peer, 30), (0..30).collect::<Vec<_>>());
    push_all(&gateway, 31..32);
    assert_eq!(take(&peer, 1), [31]);
    await_metric(&gateway, "pyrotee_destination_delivered_parcels_total", "a", 31.0);
    assert_eq!(
        metric(&gateway, "pyrotee_destination_accepted_parcels_total", "a"),
        31.0
    );
    assert_books_balance(&gateway, "a");
    gateway.end_whole();
}

fn a_removed_destination_loses_its_spool_where_that_is_asked_for(engine: &str) {
    let spool = tempfile::tempdir().expect("a folder");
    let (absent, b) = (Absent::new(), Peer::start());
    let both = [To("a", absent.url(), ""), To("b", b.url(), "")];
    let config = Config::new(&to(&both));
    let folder = spool.path().to_str().expect("plain");
    let flags = [
        "--spool",
        folder,
        "--drain-timeout",
        "300ms",
        "--spool-orphans",
        "drop",
    ];
    let mut gateway = start(engine, &config, &flags);
    push_all(&gateway, 0..30);
    await_stored(&gateway, 30);
    reload(&gateway, &config, &to(&both[1..]));
    let deleted = gateway.logged("they were deleted");
    assert_eq!(
        (deleted["destination"].as_str(), deleted["parcels"].as_u64()),
        (Some("a"), Some(30))
    );
    let farewell = gateway.logged("lost");
    assert_eq!(farewell["reasons"], "removed=30");
    await_gone(&gateway, "a");
    assert!(!spool.path().join("a").exists());
    let peer = absent.appear();
    reload(&gateway, &config, &to(&both));
    push_all(&gateway, 30..31);
    assert_eq!(take(&peer, 1), [30]);
    await_metric(&gateway, "pyrotee_destination_delivered_parcels_total", "a", 1.0);
    assert_books_balance(&gateway, "a");
}

fn a_spool_that_may_not_be_left_keeps_its_destination(engine: &str) {
    let spool = tempfile::tempdir().expect("a folder");
    let (absent, b) = (Absent::new(), Peer::start());
    let both = [To("a", absent.url(), ""), To("b", b.url(), "")];
    let config = Config::new(&to(&both));
    let folder = spool.path().to_str().expect("plain");
    let gateway = start(engine, &config, &["--spool", folder, "--spool-orphans", "refuse"]);
    push_all(&gateway, 0..20);
    await_stored(&gateway, 20);
    config.write(&to(&both[1..]));
    let answer = ask_reload(admin(&gateway));
    let text = answer.text();
    assert_eq!(answer.status, 400, "{text}");
    assert!(
        text.contains("--spool-orphans refuse") && text.contains("'a'"),
        "{text}"
    );
    push_all(&gateway, 20..21);
    let peer = absent.appear();
    assert_eq!(take(&peer, 21), (0..21).collect::<Vec<_>>());
    await_metric(&gateway, "pyrotee_spool_parcels", "a", 0.0);
    reload(&gateway, &config, &to(&both[1..]));
    await_gone(&gateway, "a");
    gateway.end_whole();
}

fn what_a_spool_holds_goes_by_the_new_options(engine: &str) {
    let spool = tempfile::tempdir().expect("a folder");
    let absent = Absent::new();
    let config = Config::new(&to(&[To("a", absent.url(), "")]));
    let gateway = start(
        engine,
        &config,
        &["--spool", spool.path().to_str().expect("plain")],
    );
    push_all(&gateway, 0..20);
    await_stored(&gateway, 20);
    let peer = Peer::start();
    let said = reload(&gateway, &config, &to(&[To("a", peer.url(), "")]));
    assert!(said.contains("changed a"), "{said}");
    assert_eq!(take(&peer, 20), (0..20).collect::<Vec<_>>());
    await_metric(&gateway, "pyrotee_spool_parcels", "a", 0.0);
    assert_books_balance(&gateway, "a");
    gateway.end_whole();
}

/// The flags of `pyrotee run`, read as the program reads them.
#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    flags: Flags,
}

fn plan(words: &str) -> Plan {
    let words = format!("pyrotee --listen 127.0.0.1:0 --admin off --cores 1 --no-pin {words}");
    let flags = Line::try_parse_from(words.split_whitespace())
        .expect("good flags")
        .flags;
    Plan::new(&flags, &runtime::host()).unwrap_or_else(|errors| panic!("{errors}"))
}

/// Limits that no file can set so far, through the gateway itself.
fn limits_change_in_a_running_gateway(engine: &str) {
    let spool = tempfile::tempdir().expect("a folder");
    let (one, two) = (Absent::new(), Absent::new());
    let plan = |more: [&str; 2]| {
        let folder = spool.path().display();
        plan(&format!(
            "--memory-limit 8MiB --body-limit 64KiB --spool {folder} --to a={},{} --to b={},{}",
            one.url(),
            more[0],
            two.url(),
            more[1]
        ))
    };
    let engine = if engine == "epoll" {
        EngineChoice::Epoll
    } else {
        EngineChoice::IoUring
    };
    let verdict = probe(engine).expect("probed before");
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let control = control.expect("a runtime");
    tokio::task::LocalSet::new().block_on(&control, async {
        let first = plan([
            "queue-limit=1MiB,spool-limit=1MiB",
            "queue-limit=1MiB,spool-limit=1MiB",
        ]);
        let mut gateway = pyrotee::gateway::Gateway::start(first, verdict).expect("it starts");
        gateway.spawn_keepers();
        let address = gateway.addresses[0];
        let pushing = tokio::task::spawn_blocking(move || {
            let mut client = Client::connect(address);
            for _ in 0..12 {
                let answer = client.post("/ingest?name=app", &[], &[7; 60 << 10]);
                assert_eq!(answer.expect("an answer").status, 200);
            }
        });
        pushing.await.expect("every push is taken");
        let gates = gateway.gates();
        let counts = |gate: usize| gates[gate].spool().expect("it has one").counts();
        until("all to be on disk", || {
            (0..2).all(|gate| counts(gate).stored_parcels.load(Ordering::Relaxed) >= 12)
        })
        .await;
        // Less disk than is there: the next record makes room. Of b nothing is young enough any more.
        let second = plan([
            "queue-limit=128KiB,spool-limit=256KiB",
            "queue-limit=1MiB,max-age=1ms",
        ]);
        let changes = gateway.reload(second).await.expect("it can change");
        assert_eq!(changes.changed, ["a", "b"]);
        assert_eq!((gates[0].bytes_max(), gates[1].bytes_max()), (128 << 10, 1 << 20));
        until("new limits to be kept", || {
            let limit = counts(0).disk_bytes_max.load(Ordering::Relaxed);
            limit == 256 << 10 && gates[1].held_parcels() == 0
        })
        .await;
        let too_old = gates[1].books().dropped[DropReason::TooOld.index()];
        assert_eq!(too_old.parcels, 12);
        assert!(gates.iter().all(|gate| gate.books().balance()));
        let third = plan(["queue-limit=1MiB", "queue-limit=1MiB"]);
        let refused = Plan {
            ack: AckPolicy::All,
            ..third
        };
        let refused = gateway.reload(refused).await.expect_err("it cannot change");
        assert!(refused.to_string().contains("--ack"), "{refused}");
        let farewells = gateway.shut_down().await;
        assert_eq!(
            (farewells[0].spooled, farewells[0].unknown),
            (12, 0),
            "{farewells:?}"
        );
    });
}

async fn until(what: &str, good: impl Fn() -> bool) {
    let waiting = async {
        while !good() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(DEADLINE, waiting).await;
    assert!(waited.is_ok(), "waited in vain for {what}");
}

/// Files that an archive holds, beside its index.
fn archived(folder: &Path) -> usize {
    let indices = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let indices = indices.filter(|entry| entry.path().extension().is_some_and(|end| end == "jsonl"));
    let lines = indices.map(|index| std::fs::read_to_string(index.path()).unwrap_or_default());
    lines.map(|text| text.lines().count()).sum()
}

fn archives_come_move_and_go(engine: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let peer = Peer::start();
    let server = To("a", peer.url(), "");
    let at = |place: &Path| To("disk", format!("file:{}", place.display()), "");
    let config = Config::new(&to(std::slice::from_ref(&server)));
    let gateway = start(engine, &config, &[]);
    push_all(&gateway, 0..1);
    reload(&gateway, &config, &to(&[server.clone(), at(&one)]));
    push_all(&gateway, 1..3);
    eventually("two profiles at the first place", || {
        (archived(&one) == 2).then_some(())
    });
    let said = reload(&gateway, &config, &to(&[at(&two), server.clone()]));
    assert!(said.contains("changed disk"), "{said}");
    push_all(&gateway, 3..6);
    eventually("three profiles at the second", || {
        (archived(&two) == 3).then_some(())
    });
    reload(&gateway, &config, &to(&[server]));
    await_gone(&gateway, "disk");
    push_all(&gateway, 6..7);
    assert_eq!(take(&peer, 7), (0..7).collect::<Vec<_>>());
    assert_eq!((archived(&one), archived(&two)), (2, 3));
    gateway.end_whole();
}

fn labels_and_rules_change(engine: &str) {
    let peer = Peer::start();
    let text = |labels: &str, rule: &str| {
        format!(
            "pyroscope.receive_http \"in\" {{\nforward_to = [pyroscope.relabel.r.receiver]\n}}\n\
             pyroscope.relabel \"r\" {{\nforward_to = [pyroscope.write.out.receiver]\n{rule}\n}}\n\
             pyroscope.write \"out\" {{\nexternal_labels = {{ {labels} }}\nendpoint {{\nname = \"a\"\nurl = \"{}\"\n}}\n}}\n",
            peer.url()
        )
    };
    let drop = "rule {\naction = \"drop\"\nsource_labels = [\"env\"]\nregex = \"dev\"\n}";
    let team = "rule {\ntarget_label = \"team\"\nreplacement = \"red\"\n}";
    let config = Config::new(&text("cluster = \"one\"", ""));
    let gateway = start(engine, &config, &["--cores", "2", "--external-label", "zone=z"]);
    // One connection to each core, most likely, and a name that each of them has learned.
    let mut clients: Vec<Client> = (0..8).map(|_| gateway.client()).collect();
    let mut name_at = |env: &str| -> Vec<String> {
        let target = format!("/ingest?name=app{{env={env}}}");
        for client in &mut clients {
            let answer = client.post(&target, &[], b"x").expect("an answer");
            assert_eq!(answer.status, 200);
        }
        if env == "dropped" {
            return Vec::new();
        }
        peer.take(8).iter().map(|one| name_of(one.query())).collect()
    };
    let all = |names: Vec<String>, expected: &str| {
        assert!(
            names.iter().all(|name| name == expected),
            "{names:?}, not {expected}"
        );
    };
    all(name_at("x"), "app{cluster=one,env=x,service_name=app,zone=z}");
    let said = reload(&gateway, &config, &text("cluster = \"two\"", ""));
    assert!(said.contains("changed labels and rules"), "{said}");
    all(name_at("x"), "app{cluster=two,env=x,service_name=app,zone=z}");
    reload(&gateway, &config, &text("", team));
    all(name_at("x"), "app{env=x,service_name=app,team=red,zone=z}");
    reload(&gateway, &config, &text("", &drop.replace("dev", "dropped")));
    name_at("dropped");
    none(&peer, "a rule drops it");
    all(name_at("x"), "app{env=x,service_name=app,zone=z}");
    let quiet = "tracing {\njaeger_propagator = false\n}\nendpoint {";
    let said = reload(&gateway, &config, &text("", "").replace("endpoint {", quiet));
    assert!(said.contains("changed a"), "{said}");
    assert_eq!(gateway.ingest(b"x").status, 200);
    let request = peer.next();
    let traced = |name| request.header(name).is_some();
    assert!(traced("traceparent") && !traced("uber-trace-id"), "{request:?}");
    gateway.end_whole();
}

fn what_cannot_be_taken_over_changes_nothing(engine: &str) {
    let (a, b) = (Peer::start(), Peer::start());
    let good = to(&[To("a", a.url(), "")]);
    let config = Config::new(&good);
    let mut gateway = start(engine, &config, &["--labels", "alloy"]);
    let port = admin(&gateway);
    let before = get(port, "/-/config").json();
    let other = [To("a", a.url(), ""), To("b", b.url(), "")];
    let folder = config.folder.path().display().to_string();
    let archive = format!("file:{folder}/x");
    let secret = "basic_auth {\nusername = \"u\"\npassword = \"hunter2\"\n}\nbearer_token = \"hunter2\"";
    let cases: [(&str, String, u16, &[&str]); 8] = [
        (
            "syntax",
            good.replace("url =", "url"),
            400,
            &["--config", "config.alloy:"],
        ),
        (
            "unknown",
            with_receiver("", "nonsense = 1", &other),
            400,
            &["nonsense", "config.alloy:"],
        ),
        (
            "two ways to authorize",
            to(&[To("a", a.url(), secret)]),
            400,
            &["a second way", "config.alloy:"],
        ),
        ("nowhere", to(&[]), 400, &["endpoint"]),
        (
            "conn_limit",
            with_receiver("conn_limit = 7", "", &other),
            409,
            &["--conn-limit", "restart"],
        ),
        (
            "two things at once",
            with_receiver(
                "server_idle_timeout = \"7s\"\nserver_read_timeout = \"7s\"",
                "",
                &other,
            ),
            409,
            &["--read-timeout, --idle-timeout", "Nothing was changed"],
        ),
        (
            "logs",
            to(&other) + "logging {\nformat = \"json\"\nlevel = \"debug\"\n}\n",
            409,
            &["--log-level"],
        ),
        (
            "another kind",
            to(&[To("a", archive, "")]),
            409,
            &["'a' is a server", "a folder"],
        ),
    ];
    for (index, (name, text, status, says)) in cases.into_iter().enumerate() {
        config.write(&text);
        let answer = ask_reload(port);
        let said = answer.text();
        assert_eq!(answer.status, status, "{name}: {said}");
        if name == "two ways to authorize" {
            assert!(!said.contains("hunter2"), "{said}");
        } else {
            assert!(says.iter().all(|word| said.contains(word)), "{name}: {said}");
        }
        if status == 400 {
            let path = config.path();
            let checked = run(&["check", "--config", path.to_str().expect("plain")]);
            assert_eq!(checked.stderr, said, "{name}: as check says it");
        }
        gateway.logged("that of before stays in force");
        assert_eq!(get(port, "/-/config").json(), before, "{name}");
        assert_eq!(
            gateway.metric("pyrotee_config_last_reload_successful"),
            0.0,
            "{name}"
        );
        let refused = "pyrotee_config_reloads_total{result=\"refused\"}";
        assert_eq!(gateway.metric(refused), index as f64 + 1.0);
        push_all(&gateway, index..index + 1);
        assert_eq!(take(&a, 1), [index], "{name}");
    }
    std::fs::remove_file(config.path()).expect("it is there");
    let answer = ask_reload(port);
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("cannot be read"), "{}", answer.text());
    reload(&gateway, &config, &to(&other));
    assert_eq!(gateway.metric("pyrotee_config_last_reload_successful"), 1.0);
    assert_eq!(
        gateway.metric("pyrotee_config_reloads_total{result=\"applied\"}"),
        1.0
    );
    let at = gateway.metric("pyrotee_config_last_reload_success_timestamp_seconds");
    assert!(at > gateway.metric("process_start_time_seconds"));
    push_all(&gateway, 100..101);
    assert_eq!((take(&a, 1), take(&b, 1)), (vec![100], vec![100]));
    let asked = |request: &str| {
        let mut client = Client::connect(port);
        client
            .send(request)
            .and_then(|()| client.receive())
            .expect("an answer")
    };
    let answer = asked("GET /-/reload HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(
        (answer.status, answer.header("allow")),
        (405, Some("POST")),
        "{answer:?}"
    );
    for from_a_page in [
        "Origin: http://evil.example",
        "Origin: null",
        "Referer: http://x/",
        "Sec-Fetch-Site: cross-site",
    ] {
        let answer = asked(&format!(
            "POST /-/reload HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n{from_a_page}\r\n\r\n"
        ));
        assert_eq!(answer.status, 403, "{from_a_page}");
    }
    assert_eq!(
        gateway.metric("pyrotee_config_reloads_total{result=\"applied\"}"),
        1.0
    );
    gateway.end_whole();
}

fn a_new_destination_that_cannot_start_changes_nothing(engine: &str) {
    let spool = tempfile::tempdir().expect("a folder");
    let (a, b) = (Peer::start(), Peer::start());
    let config = Config::new(&to(&[To("a", a.url(), "")]));
    let gateway = start(
        engine,
        &config,
        &["--spool", spool.path().to_str().expect("plain")],
    );
    std::fs::write(spool.path().join("blocked"), "a file where a folder should be").expect("room");
    let in_the_way = spool.path().join("file");
    std::fs::write(&in_the_way, "").expect("room");
    let absent = spool.path().join("absent").display().to_string();
    let https = b.url().replace("http://", "https://");
    let threads = threads_of(&gateway);
    for (name, bad, says) in [
        (
            "a certificate that is not there",
            To("n", https, &format!("tls_config {{\nca_file = \"{absent}\"\n}}")),
            "absent",
        ),
        (
            "a secret that is not there",
            To("n", b.url(), &format!("bearer_token_file = \"{absent}\"")),
            "absent",
        ),
        (
            "a spool that cannot be opened",
            To("blocked", b.url(), ""),
            "blocked",
        ),
        (
            "an archive that cannot be made",
            To("n", format!("file:{}/below", in_the_way.display()), ""),
            "--to n",
        ),
    ] {
        // A good one before it, a change and a bad one behind: nothing of it happens.
        let all = [To("b", b.url(), ""), To("a", b.url(), ""), bad];
        config.write(&to(&all));
        let answer = ask_reload(admin(&gateway));
        assert_eq!(answer.status, 400, "{name}: {}", answer.text());
        assert!(answer.text().contains(says), "{name}: {}", answer.text());
        assert!(
            answer.text().contains("Nothing was changed"),
            "{name}: {}",
            answer.text()
        );
        push_all(&gateway, 0..1);
        assert_eq!(take(&a, 1), [0], "{name}");
        assert!(!is_told(&gateway, "b"), "{name}");
    }
    eventually("reserved threads to end", || {
        (threads_of(&gateway) <= threads + 2).then_some(())
    });
    none(&b, "it never came into force");
    reload(
        &gateway,
        &config,
        &to(&[To("a", a.url(), ""), To("b", b.url(), "")]),
    );
    push_all(&gateway, 1..2);
    assert_eq!((take(&a, 1), take(&b, 1)), (vec![1], vec![1]));
    gateway.end_whole();
}

fn signals_reload_and_end_nothing(engine: &str) {
    let (a, b) = (Peer::start(), Peer::start());
    let config = Config::new(&to(&[To("a", a.url(), "")]));
    let mut gateway = start(engine, &config, &[]);
    config.write(&to(&[To("b", b.url(), "")]));
    gateway.process.signal(Signal::HUP);
    let line = gateway.logged("configuration read again");
    assert_eq!(line["changes"], "added b; removed a");
    push_all(&gateway, 0..1);
    assert_eq!(take(&b, 1), [0]);
    config.write("nonsense");
    gateway.process.signal(Signal::HUP);
    gateway.logged("that of before stays in force");
    push_all(&gateway, 1..2);
    assert_eq!(take(&b, 1), [1]);
    gateway.end_whole();
    // Without a file there is nothing to read again, which is no reason to end.
    let url = format!("a={}", a.url());
    let mut gateway = Gateway::start(engine, &["--to", &url, "--admin", "127.0.0.1:0"]);
    gateway.process.signal(Signal::HUP);
    let line = gateway.logged("nothing to read again");
    assert_eq!(line["level"], "WARN");
    let answer = ask_reload(admin(&gateway));
    assert_eq!(answer.status, 409);
    assert!(answer.text().contains("--config FILE"), "{}", answer.text());
    push_all(&gateway, 2..3);
    assert_eq!(take(&a, 1), [2]);
    assert_eq!(gateway.metric("pyrotee_config_last_reload_successful"), 1.0);
    gateway.end_whole();
}

/// The file is a pipe: each time that it is read, the test decides what is in it, and when.
fn a_signal_while_a_file_is_read_has_it_read_again(engine: &str) {
    let (a, b) = (Peer::start(), Peer::start());
    let both = [To("a", a.url(), ""), To("b", b.url(), "")];
    let config = Config::new(&to(&both[..1]));
    let mut gateway = start(engine, &config, &[]);
    let pipe = config.folder.path().join("pipe");
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
    )
    .expect("a folder of ours");
    std::fs::rename(&pipe, config.path()).expect("a folder of ours");
    // It can be opened for writing without waiting as soon as somebody reads it.
    let being_read = || {
        eventually("the file to be read", || {
            let mut options = std::fs::OpenOptions::new();
            let nonblocking = rustix::fs::OFlags::NONBLOCK.bits();
            options
                .write(true)
                .custom_flags(nonblocking as i32)
                .open(config.path())
                .ok()
        })
    };
    let answer = |mut file: std::fs::File, text: &str| file.write_all(text.as_bytes()).expect("it is read");
    gateway.process.signal(Signal::HUP);
    let first = being_read();
    // Two more, before what the first one reads has come to its end: they are one.
    gateway.process.signal(Signal::HUP);
    gateway.process.signal(Signal::HUP);
    push_all(&gateway, 0..1);
    assert_eq!(take(&a, 1), [0]);
    answer(first, &to(&both));
    assert_eq!(gateway.logged("configuration read again")["changes"], "added b");
    answer(being_read(), &to(&both[1..]));
    assert_eq!(gateway.logged("configuration read again")["changes"], "removed a");
    push_all(&gateway, 1..2);
    assert_eq!(take(&b, 1), [1]);
    // A reload that hangs keeps nobody from ending it all.
    gateway.process.signal(Signal::HUP);
    let hanging = being_read();
    gateway.logged("the configuration is still being read again");
    let farewells = gateway.farewell();
    assert_eq!((farewells["b"].delivered, farewells["b"].lost()), (1, 0));
    drop(hanging);
}

fn reloads_wait_for_each_other(engine: &str) {
    let (a, b) = (Peer::start(), Peer::start());
    let both = [To("a", a.url(), ""), To("b", b.url(), "")];
    let config = Config::new(&to(&both[..1]));
    let gateway = start(engine, &config, &[]);
    let port = admin(&gateway);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..24)
            .map(|turn| {
                let (config, both) = (&config, &both);
                scope.spawn(move || {
                    // The file is another one at any moment, but always whole.
                    let new = config.folder.path().join(format!("new{turn}"));
                    std::fs::write(&new, to(&both[..1 + turn % 2])).expect("room");
                    std::fs::rename(new, config.path()).expect("a folder of ours");
                    ask_reload(port).status
                })
            })
            .collect();
        asking
            .into_iter()
            .map(|one| one.join().expect("an answer"))
            .collect()
    });
    assert!(
        statuses.iter().all(|status| [200, 503].contains(status)),
        "{statuses:?}"
    );
    assert!(statuses.contains(&200));
    reload(&gateway, &config, &to(&both));
    push_all(&gateway, 0..1);
    assert_eq!((take(&a, 1), take(&b, 1)), (vec![0], vec![0]));
    gateway.end_whole();
}

fn threads_of(gateway: &Gateway) -> usize {
    let folder = format!("/proc/{}/task", gateway.process.id());
    std::fs::read_dir(folder).expect("the process lives").count()
}

fn resident_bytes(gateway: &Gateway) -> f64 {
    gateway.metric("process_resident_memory_bytes")
}

fn a_hundred_reloads_leave_nothing_behind(engine: &str) {
    let spool = tempfile::tempdir().expect("a folder");
    let archive = tempfile::tempdir().expect("a folder");
    let (a, b) = (Peer::start(), Peer::start());
    let config = Config::new(&to(&[To("a", a.url(), "")]));
    let gateway = start(
        engine,
        &config,
        &["--spool", spool.path().to_str().expect("plain")],
    );
    let mut client = gateway.client();
    let mut turn = |turn: usize| {
        // One that stays, one that changes, an archive, and one of a name that was never there before.
        let timeout = format!("remote_timeout = \"{}s\"", 2 + turn % 7);
        let new = format!("n{turn}");
        let disk = format!("file:{}", archive.path().display());
        let text = to(&[
            To("a", a.url(), ""),
            To("b", b.url(), &timeout),
            To(&new, b.url(), ""),
            To("disk", disk, ""),
        ]);
        reload(&gateway, &config, &text);
        push(&mut client, turn);
        reload(&gateway, &config, &to(&[To("a", a.url(), "")]));
        for gone in ["b", &*new, "disk"] {
            await_gone(&gateway, gone);
        }
    };
    (0..5).for_each(&mut turn);
    let seen = || {
        (
            threads_of(&gateway),
            gateway.descriptors(),
            resident_bytes(&gateway),
        )
    };
    let (threads, descriptors, memory) = seen();
    (5..55).for_each(&mut turn); // two reloads each
    eventually("threads and descriptors to be few again", || {
        let (now_threads, now_descriptors, _) = seen();
        (now_threads <= threads + 2 && now_descriptors <= descriptors + 8).then_some(())
    });
    let grown = resident_bytes(&gateway) - memory;
    // 150 destinations have come and gone; a queue between cores alone would take 1.3 MiB each.
    assert!(grown < f64::from(16 << 20), "{grown} bytes more than before");
    assert_eq!(take(&a, 55), (0..55).collect::<Vec<_>>());
    assert_eq!(b.take(110).len(), 110);
    gateway.end_whole();
}

fn a_stop_in_the_middle_of_a_departure_is_orderly(engine: &str) {
    let spool = tempfile::tempdir().expect("a folder");
    let (absent, b) = (Absent::new(), Peer::start());
    let both = [To("a", absent.url(), ""), To("b", b.url(), "")];
    for with_spool in [false, true] {
        let config = Config::new(&to(&both));
        let folder = spool.path().to_str().expect("plain");
        let flags = ["--drain-timeout", "1s", "--spool", folder];
        let gateway = start(engine, &config, if with_spool { &flags } else { &flags[..2] });
        push_all(&gateway, 0..4);
        // What is not delivered within a second of the stop is lost, and the machine may be busy.
        await_metric(&gateway, "pyrotee_destination_delivered_parcels_total", "b", 4.0);
        reload(&gateway, &config, &to(&both[1..]));
        let farewells = gateway.farewell();
        assert_eq!((farewells["b"].delivered, farewells["b"].lost()), (4, 0));
        let left = &farewells["a"];
        let expected = if with_spool { (0, 4) } else { (4, 0) };
        assert_eq!((left.lost(), left.spooled), expected, "{left:?}");
        assert_eq!(take(&b, 4), [0, 1, 2, 3]);
    }
}
