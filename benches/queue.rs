//! The crossing between cores: a parcel through `fanout::Gate`, with its books, budget, doorbell and ticket, beside the
//! same pointer through `crossbeam-channel` alone and through `rtrb`. On one thread, and from one thread to another.

#![allow(clippy::disallowed_methods)] // a bench measures time

use std::sync::Arc;

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use pyrotee::config::Overflow;
use pyrotee::fanout::push::PushParts;
use pyrotee::fanout::{AckMode, DestinationId, Fanout, Gate, Outcome, Push};
use pyrotee::profile::route::Route;
use pyrotee::runtime::clock::{self, Mono};

/// As many as the gate's own crossing holds, so that nothing overflows.
const ROOM: usize = 16_384;
/// Parcels under way at a time when two threads work: fewer than [`ROOM`], so that none is dropped.
const BATCH: u64 = 4096;

fn one_thread(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("queue/one thread");
    let (gate, fanout) = gate();
    let push = push();
    group.bench_function("gate", |bencher| {
        bencher.iter(|| {
            fanout.offer(&push).expect("room");
            let parcel = gate.take().expect("the parcel just offered");
            parcel.ticket.resolve(Outcome::Delivered);
        });
    });
    assert!(gate.books().balance() && gate.books().held_parcels == 0);
    assert!(gate.books().delivered.parcels > 0);
    let (sender, receiver) = crossbeam_channel::bounded(ROOM);
    group.bench_function("crossbeam-channel", |bencher| {
        bencher.iter(|| {
            sender.try_send(push.clone()).expect("room");
            receiver.try_recv().expect("the pointer just sent")
        });
    });
    let (mut producer, mut consumer) = rtrb::RingBuffer::new(ROOM);
    group.bench_function("rtrb", |bencher| {
        bencher.iter(|| {
            producer.push(push.clone()).expect("room");
            consumer.pop().expect("the pointer just pushed")
        });
    });
    assert_eq!(Arc::strong_count(&push), 1, "nothing is left in a queue");
    group.finish();
}

fn two_threads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("queue/two threads");
    group.sample_size(10);
    group.bench_function("gate", |bencher| {
        bencher.iter_custom(|rounds| {
            let (gate, fanout) = gate();
            let started = clock::now();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let push = push();
                    for _ in 0..rounds {
                        while gate.held_parcels() >= BATCH {
                            std::thread::yield_now();
                        }
                        fanout.offer(&push).expect("room");
                    }
                });
                receive(rounds, || {
                    gate.take()
                        .map(|parcel| parcel.ticket.resolve(Outcome::Delivered))
                });
            });
            assert_eq!(gate.books().delivered.parcels, rounds);
            clock::now().since(started)
        });
    });
    group.bench_function("crossbeam-channel", |bencher| {
        bencher.iter_custom(|rounds| {
            let (sender, receiver) = crossbeam_channel::bounded(ROOM);
            let started = clock::now();
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    let push = push();
                    for _ in 0..rounds {
                        while sender.try_send(push.clone()).is_err() {
                            std::thread::yield_now();
                        }
                    }
                });
                receive(rounds, || receiver.try_recv().ok().map(drop));
            });
            clock::now().since(started)
        });
    });
    group.bench_function("rtrb", |bencher| {
        bencher.iter_custom(|rounds| {
            let (mut producer, mut consumer) = rtrb::RingBuffer::new(ROOM);
            let started = clock::now();
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    let push = push();
                    for _ in 0..rounds {
                        while producer.push(push.clone()).is_err() {
                            std::thread::yield_now();
                        }
                    }
                });
                receive(rounds, || consumer.pop().ok().map(drop));
            });
            clock::now().since(started)
        });
    });
    group.finish();
}

/// Takes `count` items, trying again while there is none.
fn receive(count: u64, mut take: impl FnMut() -> Option<()>) {
    let mut taken = 0;
    while taken < count {
        match take() {
            Some(()) => taken += 1,
            None => std::thread::yield_now(),
        }
    }
}

/// A gate lives as long as its process, as in the gateway.
fn gate() -> (&'static Gate, Fanout) {
    let gate: &'static Gate = Box::leak(Box::new(Gate::new(DestinationId(0), "bench".into(), u64::MAX)));
    (gate, Fanout::new(vec![gate], Overflow::DropOldest))
}

fn push() -> Arc<Push> {
    let parts = PushParts {
        route: Route::Ingest,
        query: Bytes::new(),
        fields: Bytes::new(),
        segments: std::iter::once(Bytes::from_static(b"body")).collect(),
        bytes: 4,
        profile_bytes: 4,
        profiles: 1,
        accepted: Mono(0),
        accepted_unix_ms: 0,
        client_deadline: Mono::NEVER,
        pinned_bytes: 0,
        charge: None,
    };
    Arc::new(Push::new(parts, AckMode::Detached, 1))
}

criterion_group!(benches, one_thread, two_threads);
criterion_main!(benches);
