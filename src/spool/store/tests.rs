//! The store, case by case: each kind of damage, each kind of error, and the real disk.

use super::*;
use crate::spool::RealDisk;
use crate::spool::fake::{FakeDisk, Faults, Operation};
use crate::spool::record::HEAD_BYTES;
use crate::spool::walk::{Seen, summary, walk};

/// Three records of [`BODY_BYTES`] to a segment.
const LIMITS: StoreLimits = StoreLimits {
    bytes_max: 1 << 20,
    segment_bytes_max: 1_000,
};
const BODY_BYTES: usize = 200;
const RECORD_BYTES: usize = HEAD_BYTES + 1 + BODY_BYTES + SUM_BYTES;
const FIRST: &str = "0000000000000001.spool";
const FIRST_DONE: &str = "0000000000000001.done";
const SECOND: &str = "0000000000000002.spool";

/// Stores a record that is known by its query of one letter.
fn append<D: Disk>(store: &mut Store<D>, name: u8, hold: bool) -> Result<RecordId, AppendError> {
    let body = Bytes::from(vec![name; BODY_BYTES]);
    let parts = RecordParts {
        accepted_unix_ms: u64::from(name),
        route: Route::Push,
        profiles: 2,
        profile_bytes: 5,
        query: &[name],
        fields: b"",
        segments: &[body.slice(..50), Bytes::new(), body.slice(50..)],
    };
    store.append(&parts, hold)
}

fn append_all<D: Disk>(store: &mut Store<D>, names: &str) -> Vec<RecordId> {
    let ids = names.bytes().map(|name| append(store, name, false));
    ids.collect::<Result<_, _>>().expect("a disk that is well")
}

/// Reads everything, marks it done, and says what it was. Damage is passed over.
fn drain<D: Disk>(store: &mut Store<D>) -> String {
    let mut names = String::new();
    let mut buffer = Vec::new();
    while let Some(meta) = store.peek().expect("a disk that is well") {
        match store.read(&meta, &mut buffer) {
            Ok(()) => {
                let name = buffer[0];
                assert_eq!(buffer[1..], [name; BODY_BYTES], "byte for byte");
                assert_eq!(meta.accepted_unix_ms, u64::from(name));
                names.push(char::from(name));
                store.done(&[meta.id]).expect("a disk that is well");
            }
            Err(ReadError::Damaged) => {}
            Err(error) => panic!("{error}"),
        }
    }
    names
}

fn open<D: Disk>(disk: D) -> (Store<D>, Recovery) {
    Store::open(disk, LIMITS).expect("a disk that is well")
}

/// `abc` in the first segment, `de` in the second, all synced.
fn five() -> FakeDisk {
    let disk = FakeDisk::new(7);
    let (mut store, _) = open(disk.clone());
    append_all(&mut store, "abcde");
    store.sync().expect("a disk that is well");
    assert_eq!(disk.names(), [FIRST, SECOND]);
    disk
}

/// Where the record of this number begins.
fn place(index: usize) -> usize {
    HEADER_BYTES + index * RECORD_BYTES
}

fn edit(disk: &FakeDisk, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = disk.content(name);
    change(&mut bytes);
    disk.put(name, bytes);
}

/// Makes the record at `at` longer than any file, with a checksum that is good.
fn lengthen(all: &mut [u8], at: usize) {
    let mut head = Head::decode(&all[at..]).expect("a good head");
    head.body_bytes = BODY_BYTES_MAX;
    let bytes = head.encode();
    all[at..at + bytes.len()].copy_from_slice(&bytes);
}

#[test]
fn damage_costs_what_it_hits_and_is_told_once() {
    type Hurt = fn(&FakeDisk);
    let cases: [(&str, Hurt, &str, &[What], u64); 30] = [
        ("nothing", |_| {}, "abcde", &[], 0),
        (
            "the newest segment ends in a body",
            |disk| edit(disk, SECOND, |all| all.truncate(place(1) + 100)),
            "abcd",
            &[What::Tail],
            1,
        ),
        (
            "the newest segment ends in a head",
            |disk| edit(disk, SECOND, |all| all.truncate(place(1) + 10)),
            "abcd",
            &[What::Tail],
            1,
        ),
        (
            "the newest segment ends one byte short",
            |disk| edit(disk, SECOND, |all| all.truncate(place(2) - 1)),
            "abcd",
            &[What::Tail],
            1,
        ),
        (
            "the newest segment ends between records",
            |disk| edit(disk, SECOND, |all| all.truncate(place(1))),
            "abcd",
            &[],
            0,
        ),
        (
            "an older segment ends in a body",
            |disk| edit(disk, FIRST, |all| all.truncate(place(2) + 100)),
            "abde",
            &[What::Tail],
            1,
        ),
        (
            "a head",
            |disk| disk.flip(FIRST, place(1) + 20, 0),
            "acde",
            &[What::Head],
            1,
        ),
        (
            "the magic of a head",
            |disk| disk.flip(FIRST, place(1), 7),
            "acde",
            &[What::Head],
            1,
        ),
        (
            "a good head that claims more than the file has",
            |disk| edit(disk, FIRST, |all| lengthen(all, place(1))),
            "acde",
            &[What::Head],
            1,
        ),
        (
            "the same in the newest segment",
            |disk| edit(disk, SECOND, |all| lengthen(all, place(0))),
            "abce",
            &[What::Head],
            1,
        ),
        (
            "a record taken out whole",
            |disk| edit(disk, FIRST, |all| drop(all.drain(place(1)..place(2)))),
            "acde",
            &[What::Head],
            1,
        ),
        (
            "two heads in a row",
            |disk| {
                disk.flip(FIRST, place(0) + 3, 1);
                disk.flip(FIRST, place(1) + 30, 1);
            },
            "cde",
            &[What::Head],
            2,
        ),
        (
            "two heads apart",
            |disk| {
                disk.flip(FIRST, place(0) + 3, 1);
                disk.flip(FIRST, place(2) + 30, 1);
            },
            "bde",
            &[What::Head, What::Tail],
            2,
        ),
        (
            "all heads",
            |disk| (0..3).for_each(|index| disk.flip(FIRST, place(index) + 40, 1)),
            "de",
            &[What::Tail],
            3,
        ),
        (
            "a query",
            |disk| disk.flip(FIRST, place(1) + HEAD_BYTES, 2),
            "acde",
            &[What::Body],
            1,
        ),
        (
            "a body",
            |disk| disk.flip(FIRST, place(1) + HEAD_BYTES + 99, 2),
            "acde",
            &[What::Body],
            1,
        ),
        (
            "a body's checksum",
            |disk| disk.flip(FIRST, place(2) - 1, 2),
            "acde",
            &[What::Body],
            1,
        ),
        (
            "a header",
            |disk| disk.flip(FIRST, 9, 2),
            "abcde",
            &[What::Header],
            0,
        ),
        (
            "a header's salt and the first head",
            |disk| {
                disk.flip(FIRST, 25, 2);
                disk.flip(FIRST, place(0) + 60, 2);
            },
            "bcde",
            &[What::Header, What::Head],
            1,
        ),
        (
            "a file is empty",
            |disk| disk.put(FIRST, Vec::new()),
            "de",
            &[What::Header],
            0,
        ),
        (
            "a file is a part of a header",
            |disk| edit(disk, FIRST, |all| all.truncate(20)),
            "de",
            &[What::Header],
            0,
        ),
        (
            "a file is a header",
            |disk| edit(disk, FIRST, |all| all.truncate(HEADER_BYTES)),
            "de",
            &[],
            0,
        ),
        ("a file is gone", |disk| disk.lose(FIRST), "de", &[], 0),
        (
            "a file is all zeros",
            |disk| disk.put(FIRST, vec![0; 700]),
            "de",
            &[What::Header, What::Tail],
            1,
        ),
        (
            "a file is anything",
            |disk| {
                disk.put(
                    FIRST,
                    (0..90_000_u32).map(|number| (number * 7 % 251) as u8).collect(),
                )
            },
            "de",
            &[What::Header, What::Tail],
            1,
        ),
        (
            "zeros at the end",
            |disk| edit(disk, FIRST, |all| all.extend([0; 5_000])),
            "abcde",
            &[What::Tail],
            1,
        ),
        (
            "a record twice",
            |disk| edit(disk, FIRST, |all| all.extend_from_within(place(1)..place(2))),
            "abcde",
            &[What::Tail],
            1,
        ),
        (
            "a record of another segment",
            |disk| {
                let other = disk.content(SECOND)[place(1)..place(2)].to_vec();
                edit(disk, FIRST, |all| drop(all.splice(place(1)..place(2), other)));
            },
            "acde",
            &[What::Head],
            1,
        ),
        (
            "marks of nothing",
            |disk| disk.put("0000000000000009.done", vec![1; 24]),
            "abcde",
            &[],
            0,
        ),
        (
            "marks that are none",
            |disk| disk.put(FIRST_DONE, vec![1; 30]),
            "abcde",
            &[What::Marks],
            0,
        ),
    ];
    for (case, hurt, left, told, lost) in cases {
        let disk = five();
        hurt(&disk);
        let (_, recovery) = open(disk.clone());
        let (mut store, again) = open(disk.clone());
        let again: Vec<What> = again.damages.list.iter().map(|damage| damage.what).collect();
        let is_lasting = |what: &What| matches!(what, What::Marks | What::Header) && !again.is_empty();
        let expected: Vec<What> = told.iter().copied().filter(is_lasting).collect();
        assert_eq!(again, expected, "{case}: told once");

        assert_eq!(drain(&mut store), left, "{case}");
        let mut damages = recovery.damages;
        damages.append(store.take_damages());
        let found: Vec<What> = damages.list.iter().map(|damage| damage.what).collect();
        assert_eq!(found, told, "{case}");
        assert_eq!(damages.lost.parcels, lost, "{case}");
        let counted: u64 = damages.list.iter().map(|damage| damage.records).sum();
        assert_eq!(counted, lost, "{case}");
        assert_eq!(store.totals().left, Sums::default(), "{case}");
        drop(store);
        drop(open(disk.clone()));
        assert_eq!(disk.names(), [""; 0], "{case}: nothing stays");
    }
}

#[test]
fn a_damaged_record_is_told_with_its_place() {
    let disk = five();
    disk.flip(FIRST, place(1) + 70, 3);
    let (mut store, _) = open(disk);
    assert_eq!(drain(&mut store), "acde");
    let damages = store.take_damages();
    let expected = Damage {
        file: FIRST.to_owned(),
        offset: place(1) as u64,
        bytes: RECORD_BYTES as u64,
        records: 1,
        what: What::Body,
    };
    assert_eq!(damages.list, [expected]);
    assert_eq!((damages.lost.parcels, damages.lost.bytes), (1, BODY_BYTES as u64));
}

#[test]
fn a_list_of_damage_is_bounded_and_the_count_is_not() {
    let disk = FakeDisk::new(1);
    let limits = StoreLimits {
        segment_bytes_max: 1 << 19,
        ..LIMITS
    };
    let (mut store, _) = Store::open(disk.clone(), limits).unwrap();
    append_all(&mut store, &"x".repeat(200));
    for index in (0..200).step_by(2) {
        disk.flip(FIRST, place(index) + 50, 0);
    }
    drop(store);
    let (mut store, recovery) = open(disk);
    let damages = recovery.damages;
    assert_eq!((damages.list.len(), damages.more), (64, 36));
    assert_eq!(damages.lost.parcels, 100);
    assert_eq!(drain(&mut store).len(), 100);
}

#[test]
fn a_segment_of_a_newer_version_is_left_untouched() {
    let disk = five();
    let header = Header::decode(&disk.content(FIRST)).unwrap();
    let newer = Header {
        version: VERSION + 1,
        ..header
    };
    edit(&disk, FIRST, |all| {
        all[..HEADER_BYTES].copy_from_slice(&newer.encode())
    });
    let before = disk.content(FIRST);
    let (mut store, recovery) = open(disk.clone());
    assert_eq!(
        recovery.damages.list[0].what,
        What::Newer { version: VERSION + 1 }
    );
    assert_eq!(recovery.damages.lost, Sums::default());
    let totals = recovery.totals;
    assert_eq!(
        (totals.aside_segments, totals.aside_bytes),
        (1, before.len() as u64)
    );
    assert_eq!(drain(&mut store), "de");
    assert!(store.drop_oldest().is_none());
    assert_eq!(append(&mut store, b'f', false).unwrap().segment, 3);
    assert_eq!(disk.content(FIRST), before);
}

#[test]
fn a_segment_that_cannot_be_read_at_a_start_is_there_at_the_next() {
    let disk = five();
    let failing = [(
        Operation::Read,
        0,
        What::Unreadable {
            kind: ErrorKind::Other,
        },
    )];
    for (operation, after, what) in failing {
        disk.set_faults(Faults {
            nth: Some((operation, after, ErrorKind::Other)),
            ..Faults::default()
        });
        let (mut store, recovery) = open(disk.clone());
        assert_eq!(recovery.damages.list[0].what, what);
        assert_eq!(recovery.damages.lost, Sums::default());
        assert_eq!(recovery.totals.left.parcels, 2);
        assert_eq!(store.peek().unwrap().unwrap().accepted_unix_ms, u64::from(b'd'));
    }
    let (mut store, recovery) = open(disk);
    assert!(recovery.damages.is_empty());
    assert_eq!(drain(&mut store), "abcde");
}

#[test]
fn files_of_others_are_left_alone() {
    let disk = five();
    let foreign = [
        "notes.txt",
        "1.spool",
        "000000000000001x.spool",
        "9999999999999999.spool",
    ];
    for name in foreign {
        disk.put(name, b"something".to_vec());
    }
    let (mut store, recovery) = open(disk.clone());
    assert!(recovery.damages.is_empty());
    assert_eq!(drain(&mut store), "abcde");
    drop(store);
    drop(open(disk.clone()));
    let mut names = disk.names();
    names.sort_by_key(|name| foreign.iter().position(|foreign| foreign == name));
    assert_eq!(names, foreign);
}

#[test]
fn a_body_cannot_pass_for_records() {
    // A client that knows the format, but not the salt, sends records inside a body; its own head is damaged then.
    let disk = FakeDisk::new(3);
    let (mut store, _) = open(disk.clone());
    let forged = Head {
        salt: 1,
        index: 1,
        route: Route::Push,
        query_bytes: 0,
        fields_bytes: 0,
        body_bytes: 0,
        profile_bytes: 0,
        accepted_unix_ms: 0,
        profiles: 1,
    };
    let parts = RecordParts {
        accepted_unix_ms: 0,
        route: Route::Push,
        profiles: 1,
        profile_bytes: 0,
        query: b"",
        fields: b"",
        segments: &[
            Bytes::copy_from_slice(&forged.encode()),
            Bytes::from_static(&[0; 4]),
        ],
    };
    store.append(&parts, false).unwrap();
    disk.flip(FIRST, HEADER_BYTES + 40, 0);
    drop(store);
    let (store, recovery) = open(disk);
    assert_eq!(recovery.totals.left, Sums::default());
    assert_eq!(recovery.damages.lost.parcels, 1);
    drop(store);
}

#[test]
fn a_failed_write_leaves_nothing_and_the_next_one_works() {
    for room in [0, 1, 40, HEADER_BYTES as u64, 100, 200, 300] {
        let disk = FakeDisk::new(room);
        let (mut store, _) = open(disk.clone());
        disk.set_faults(Faults {
            room: Some(room),
            ..Faults::default()
        });
        let result = append(&mut store, b'a', false);
        assert!(
            matches!(&result, Err(AppendError::Io(error)) if error.kind() == ErrorKind::StorageFull),
            "{room}: {result:?}"
        );
        assert!(disk.used() <= HEADER_BYTES as u64, "{room}");
        disk.set_faults(Faults::default());
        append_all(&mut store, "bc");
        drop(store);
        let (mut store, recovery) = open(disk);
        assert!(recovery.damages.is_empty(), "{room}");
        assert_eq!(drain(&mut store), "bc", "{room}");
    }
}

#[test]
fn a_file_that_cannot_be_cut_back_is_closed() {
    let disk = FakeDisk::new(1);
    let (mut store, _) = open(disk.clone());
    append_all(&mut store, "a");
    disk.set_faults(Faults {
        room: Some(disk.used() + 100),
        eio: vec![(Operation::Truncate, 1)],
        ..Faults::default()
    });
    append(&mut store, b'b', false).unwrap_err();
    disk.set_faults(Faults::default());
    append_all(&mut store, "c");
    assert_eq!(disk.names(), [FIRST, SECOND]);
    assert_eq!(drain(&mut store), "ac");
}

#[test]
fn a_read_only_disk_is_read_and_used_again_when_it_can() {
    let disk = five();
    let (mut store, _) = open(disk.clone());
    disk.set_faults(Faults {
        read_only: true,
        ..Faults::default()
    });
    assert!(matches!(append(&mut store, b'f', false), Err(AppendError::Io(_))));
    let mut buffer = Vec::new();
    let meta = store.peek().unwrap().unwrap();
    store.read(&meta, &mut buffer).unwrap();
    assert_eq!(buffer[0], b'a');
    store.done(&[meta.id]).unwrap_err();
    assert!(store.is_behind());
    assert_eq!(store.totals().left.parcels, 4);
    // A start on it works, too, and repeats what could not be marked.
    let (mut other, _) = open(disk.clone());
    assert_eq!(other.peek().unwrap().unwrap().accepted_unix_ms, u64::from(b'a'));
    drop(other);

    disk.set_faults(Faults::default());
    store.tidy().unwrap();
    append_all(&mut store, "f");
    drop(store);
    assert_eq!(drain(&mut open(disk).0), "bcdef");
}

#[test]
fn after_a_failed_sync_new_records_go_elsewhere() {
    let disk = FakeDisk::new(5);
    let (mut store, _) = open(disk.clone());
    append_all(&mut store, "a");
    disk.set_faults(Faults {
        nth: Some((Operation::Sync, 0, ErrorKind::Other)),
        ..Faults::default()
    });
    store.sync().unwrap_err();
    append_all(&mut store, "b");
    store.sync().unwrap();
    drop(store);
    disk.lose_power();
    let left = drain(&mut open(disk).0);
    assert!(left == "b" || left == "ab", "{left}");
}

#[test]
fn a_failing_segment_comes_after_the_others_and_is_not_lost() {
    let disk = five();
    let (mut store, _) = open(disk.clone());
    disk.set_faults(Faults {
        nth: Some((Operation::Read, 0, ErrorKind::Other)),
        ..Faults::default()
    });
    store.peek().unwrap_err();
    assert_eq!(drain(&mut store), "deabc");
    assert!(store.take_damages().is_empty());
}

#[test]
fn what_somebody_takes_away_is_noticed_read_as_long_as_it_is_open_and_told() {
    let disk = FakeDisk::new(7);
    let (mut store, _) = open(disk.clone());
    append_all(&mut store, "abcde");
    assert_eq!(store.look_for_written(), None);
    disk.lose(FIRST);
    disk.lose(SECOND);
    assert_eq!(
        store.look_for_written().as_deref(),
        Some(SECOND),
        "it was written to"
    );
    assert_eq!(store.look_for_written(), None, "told once");
    append_all(&mut store, "f");
    assert_eq!(drain(&mut store), "def");
    let damages = store.take_damages();
    let seen = damages.list.iter().map(|one| (&*one.file, one.records, one.what));
    assert_eq!(seen.collect::<Vec<_>>(), [(FIRST, 3, What::Gone)]);
    assert_eq!((damages.lost.parcels, store.totals().left.parcels), (3, 0));
}

#[test]
fn what_is_gone_at_the_end_is_given_up_and_nothing_else() {
    let disk = FakeDisk::new(7);
    let (mut store, _) = open(disk.clone());
    let held = append(&mut store, b'a', true).expect("a disk that is well");
    append_all(&mut store, "bcde");
    disk.lose(FIRST);
    store.give_up_gone();
    assert_eq!(
        store.take_damages().lost.parcels,
        2,
        "what is in memory too is not lost"
    );
    store.release(&held);
    store.give_up_gone();
    assert_eq!(store.take_damages().lost.parcels, 1, "now it is");
    assert_eq!(drain(&mut store), "de");
    assert_eq!((store.totals().left, store.is_behind()), (Sums::default(), false));
}

#[test]
fn room_is_made_by_the_oldest_segment() {
    let disk = five();
    let (mut store, _) = open(disk.clone());
    append_all(&mut store, "fgh");
    let dropped = store.drop_oldest().unwrap();
    assert_eq!(
        (dropped.sums.parcels, dropped.sums.bytes),
        (3, 3 * BODY_BYTES as u64)
    );
    assert!(dropped.freed_bytes > 3 * RECORD_BYTES as u64);
    // What is out stays, and so does its segment.
    let meta = store.peek().unwrap().unwrap();
    store.read(&meta, &mut Vec::new()).unwrap();
    let dropped = store.drop_oldest().unwrap();
    assert_eq!((dropped.sums.parcels, dropped.freed_bytes), (1, 0));
    // The one that is written to goes, too.
    let dropped = store.drop_oldest().unwrap();
    assert_eq!(dropped.sums.parcels, 3);
    assert_eq!(store.drop_oldest(), None);
    store.done(&[meta.id]).unwrap();
    assert_eq!(disk.used(), 0);
}

#[test]
fn nothing_is_dropped_where_that_makes_no_room() {
    let disk = five();
    let (mut store, _) = open(disk.clone());
    disk.set_faults(Faults {
        eio: vec![(Operation::Remove, 1)],
        ..Faults::default()
    });
    assert_eq!(store.drop_oldest().unwrap().freed_bytes, 0);
    assert_eq!(store.drop_oldest(), None);
    assert_eq!(store.totals().left.parcels, 2);
    disk.set_faults(Faults::default());
    let dropped = store.drop_oldest().unwrap();
    assert_eq!(dropped.sums, Sums::default());
    assert!(dropped.freed_bytes > 0);
    assert_eq!(drain(&mut store), "de");
}

#[test]
fn limits_hold_and_what_never_fits_is_told_apart() {
    let limits = StoreLimits {
        bytes_max: 1_000,
        segment_bytes_max: 100,
    };
    let (mut store, _) = Store::open(FakeDisk::new(1), limits).unwrap();
    append_all(&mut store, "abc");
    assert!(matches!(append(&mut store, b'd', false), Err(AppendError::Full)));
    assert_eq!(store.totals().segments, 3, "at least one record to a segment");
    let large = Bytes::from(vec![0; 1_000]);
    let mut parts = RecordParts {
        accepted_unix_ms: 0,
        route: Route::Ingest,
        profiles: 1,
        profile_bytes: 0,
        query: b"",
        fields: b"",
        segments: &[large],
    };
    assert!(matches!(store.append(&parts, false), Err(AppendError::TooLarge)));
    parts.segments = &[];
    parts.profile_bytes = u64::MAX;
    assert!(matches!(store.append(&parts, false), Err(AppendError::TooLarge)));
    assert_eq!(drain(&mut store), "abc");
}

#[test]
fn an_idle_store_leaves_little_on_the_disk() {
    let disk = FakeDisk::new(1);
    let (mut store, _) = open(disk.clone());
    for _ in 0..50 {
        let ids = append_all(&mut store, "x");
        store.done(&ids).unwrap();
        assert!(
            disk.used() < LIMITS.segment_bytes_max,
            "a done segment is closed early"
        );
    }
}

#[test]
fn what_is_held_comes_back_when_released_or_after_a_restart() {
    let disk = FakeDisk::new(1);
    let (mut store, _) = open(disk.clone());
    let held = append(&mut store, b'a', true).unwrap();
    let later = append(&mut store, b'b', true).unwrap();
    append_all(&mut store, "c");
    assert_eq!(store.totals().out.parcels, 2);
    assert_eq!(store.oldest_unix_ms(), Some(u64::from(b'a')));
    assert_eq!(store.peek().unwrap().unwrap().accepted_unix_ms, u64::from(b'c'));
    store.release(&held);
    store.release(&held);
    assert_eq!(store.totals().out.parcels, 1);
    assert_eq!(store.peek().unwrap().unwrap().id, held);
    store.done(&[later, later]).unwrap();
    assert_eq!(store.totals().left.parcels, 2);
    drop(store);
    assert_eq!(drain(&mut open(disk).0), "ac");
}

#[test]
fn a_record_that_is_not_there_is_no_panic() {
    let (mut store, _) = open(five());
    let meta = store.peek().unwrap().unwrap();
    store.done(&[meta.id]).unwrap();
    let mut buffer = vec![1];
    assert!(matches!(store.read(&meta, &mut buffer), Err(ReadError::Io(_))));
    assert!(buffer.is_empty());
    let strange = RecordId {
        segment: 99,
        index: u32::MAX,
        ..meta.id
    };
    store.release(&strange);
    store.done(&[strange]).unwrap();
    assert_eq!(drain(&mut store), "bcde");
}

#[test]
fn on_the_real_disk_a_store_is_used_killed_and_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("not/there yet");
    let disk = || RealDisk::create(&folder).unwrap();
    let (mut store, _) = open(disk());
    let ids = append_all(&mut store, "abcde");
    store.sync().unwrap();
    store.done(&ids[..2]).unwrap();
    append(&mut store, b'f', true).unwrap();
    drop(store);

    let mode = |path: &std::path::Path| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode(&folder), 0o700);
    for name in disk().list().unwrap() {
        assert_eq!(mode(&folder.join(&name)), 0o600, "{name}");
    }
    // A torn end, as a power loss leaves it.
    let file = disk().open_or_create(SECOND).unwrap();
    let length = disk().bytes(&file).unwrap();
    disk().truncate(&file, length - 3).unwrap();
    let (mut store, recovery) = open(disk());
    assert_eq!(recovery.damages.list[0].what, What::Tail);
    assert_eq!(recovery.totals.left.parcels, 3);
    assert_eq!(disk().bytes(&file).unwrap(), place(2) as u64, "cut back");

    let found = summary(&RealDisk::existing(&folder), true).unwrap();
    assert_eq!(found.left, store.totals().left);
    assert_eq!(found.oldest_unix_ms, Some(u64::from(b'c')));
    assert!(found.damages.is_empty(), "{:?}", found.damages);
    assert_eq!(drain(&mut store), "cde");
    assert_eq!(disk().list().unwrap(), [""; 0]);
}

#[test]
fn a_body_in_thousands_of_slices_is_written_as_it_lies() {
    let folder = tempfile::tempdir().unwrap();
    let body: Vec<u8> = (0..5_000_u32).map(|number| number as u8).collect();
    let segments: Vec<Bytes> = body.chunks(2).map(Bytes::copy_from_slice).collect();
    let parts = RecordParts {
        accepted_unix_ms: 1,
        route: Route::Ingest,
        profiles: 1,
        profile_bytes: 9,
        query: b"name=a",
        fields: b"Content-Type: x/y\r\n",
        segments: &segments,
    };
    let disk = RealDisk::create(folder.path()).unwrap();
    let (mut store, _) = Store::open(disk, StoreLimits::of(1 << 20)).unwrap();
    store.append(&parts, false).unwrap();
    let meta = store.peek().unwrap().unwrap();
    let mut buffer = Vec::with_capacity(meta.read_bytes() as usize);
    let start = buffer.as_ptr();
    store.read(&meta, &mut buffer).unwrap();
    assert_eq!(buffer, [parts.query, parts.fields, &body].concat());
    assert_eq!(buffer.as_ptr(), start, "read where the caller wants it");
    assert_eq!(
        (meta.route, meta.profiles, meta.profile_bytes),
        (Route::Ingest, 1, 9)
    );
}

#[test]
fn a_walk_sees_what_is_left_done_and_damaged_and_changes_nothing() {
    let disk = five();
    let (mut store, _) = open(disk.clone());
    let meta = store.peek().unwrap().unwrap();
    store.done(&[meta.id]).unwrap();
    disk.flip(FIRST, place(1) + 100, 0);
    disk.flip(SECOND, place(0) + 20, 0);
    let before: Vec<Vec<u8>> = disk.names().iter().map(|name| disk.content(name)).collect();
    for (bodies, expected) in [
        (false, "[1 1-0+ 1-1 1-2 [2 !Head1 2-1"),
        (true, "[1 1-0+ !Body1 1-2 [2 !Head1 2-1"),
    ] {
        let mut seen = Vec::new();
        walk(&disk, bodies, &mut |_, what| {
            seen.push(match what {
                Seen::Segment { number, .. } => format!("[{number}"),
                Seen::Record { meta, is_done } => format!("{}{}", meta.id, if is_done { "+" } else { "" }),
                Seen::Damage(damage) => format!("!{:?}{}", damage.what, damage.records),
            });
            Ok(())
        })
        .unwrap();
        assert_eq!(seen.join(" "), expected);
    }
    let after: Vec<Vec<u8>> = disk.names().iter().map(|name| disk.content(name)).collect();
    assert_eq!(before, after);
}
