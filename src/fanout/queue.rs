//! The order in which parcels wait: fresh first, the backlog beside them, nothing too old. Pure: no clock, no I/O.
//!
//! ```text
//!  push ─▶ [ fresh: younger than FRESH_WINDOW, first in first out ]
//!               │ grows older
//!               ▼
//!          [ backlog: first in first out ] ◀─ put_back (retries)
//! ```
//! While both have something, one take in [`BACKLOG_SHARE`] serves the backlog: after an outage new profiles reach the
//! destination at once, and the rest drains beside them. Without an outage everything is fresh and order is arrival.

use std::collections::VecDeque;
use std::time::Duration;

use crate::runtime::clock::Mono;

/// A parcel that has waited longer than this belongs to the backlog. "Within seconds" of DESIGN.md section 5.
pub const FRESH_WINDOW: Duration = Duration::from_secs(5);
/// Of this many takes one serves the backlog.
pub const BACKLOG_SHARE: u32 = 4;

/// Waiting items, each with the moment it was accepted.
#[derive(Debug)]
pub struct Queue<T> {
    fresh: VecDeque<(Mono, T)>,
    backlog: VecDeque<(Mono, T)>,
    takes: u32,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            fresh: VecDeque::new(),
            backlog: VecDeque::new(),
            takes: 0,
        }
    }
}

impl<T> Queue<T> {
    /// Adds a newly accepted item. One that comes late (a spool has waited with it, and could not store it) goes where it
    /// belongs: the oldest stands in front.
    pub fn push(&mut self, accepted: Mono, item: T) {
        if self.fresh.is_empty() {
            self.fresh.clear(); // begin where the memory begins: most items come and go alone, on lines that stay in the cache
        }
        if self.fresh.back().is_none_or(|(last, _)| *last <= accepted) {
            self.fresh.push_back((accepted, item));
        } else {
            let at = self.fresh.partition_point(|(other, _)| *other <= accepted);
            self.fresh.insert(at, (accepted, item));
        }
    }

    /// Puts an item back that was taken before: it is served before what was accepted after it.
    pub fn put_back(&mut self, accepted: Mono, item: T) {
        let at = self.backlog.partition_point(|(other, _)| *other <= accepted);
        self.backlog.insert(at, (accepted, item));
    }

    /// Takes the next item to send. What has grown old meanwhile belongs to the backlog.
    pub fn take(&mut self, now: Mono) -> Option<T> {
        self.age(now);
        self.take_next()
    }

    /// [`Queue::take`] for who has put away by [`Queue::take_aged`] what has grown old.
    pub fn take_next(&mut self) -> Option<T> {
        self.takes = self.takes.wrapping_add(1);
        let from_backlog = self.fresh.is_empty() || self.takes.is_multiple_of(BACKLOG_SHARE);
        let (first, second) = if from_backlog {
            (&mut self.backlog, &mut self.fresh)
        } else {
            (&mut self.fresh, &mut self.backlog)
        };
        first
            .pop_front()
            .or_else(|| second.pop_front())
            .map(|(_, item)| item)
    }

    /// Takes the item accepted longest ago: what overflow gives up.
    pub fn take_oldest(&mut self) -> Option<T> {
        let fresh_is_older = match (self.fresh.front(), self.backlog.front()) {
            (Some((fresh, _)), Some((backlog, _))) => fresh < backlog,
            (fresh, _) => fresh.is_some(),
        };
        let queue = if fresh_is_older {
            &mut self.fresh
        } else {
            &mut self.backlog
        };
        queue.pop_front().map(|(_, item)| item)
    }

    /// Takes the oldest item that was pushed, and neither put back nor found to have grown old since.
    pub fn take_fresh(&mut self) -> Option<T> {
        self.fresh.pop_front().map(|(_, item)| item)
    }

    /// Takes a pushed item that has grown old: to be put back.
    pub fn take_aged(&mut self, now: Mono) -> Option<T> {
        let (accepted, _) = self.fresh.front()?;
        if now.since(*accepted) <= FRESH_WINDOW {
            return None;
        }
        self.take_fresh()
    }

    /// Takes an item accepted before `limit`, if there is one: what has grown too old.
    pub fn take_older_than(&mut self, limit: Mono) -> Option<T> {
        if self.oldest()? < limit {
            self.take_oldest()
        } else {
            None
        }
    }

    /// When the oldest item was accepted.
    pub fn oldest(&self) -> Option<Mono> {
        let fresh = self.fresh.front().map(|(accepted, _)| *accepted);
        let backlog = self.backlog.front().map(|(accepted, _)| *accepted);
        fresh.into_iter().chain(backlog).min()
    }

    /// Items waiting.
    pub fn len(&self) -> usize {
        self.fresh.len() + self.backlog.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn age(&mut self, now: Mono) {
        while let Some(accepted) = self.fresh.front().map(|(accepted, _)| *accepted)
            && let Some(item) = self.take_aged(now)
        {
            self.put_back(accepted, item);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Mono {
        Mono::default().after(Duration::from_secs(seconds))
    }

    #[test]
    fn without_an_outage_order_is_arrival() {
        let mut queue = Queue::default();
        (0..10).for_each(|n| queue.push(at(n / 3), n));
        assert_eq!(
            (0..10).map_while(|_| queue.take(at(3))).collect::<Vec<_>>(),
            (0..10).collect::<Vec<_>>()
        );
    }

    #[test]
    fn after_an_outage_fresh_goes_first_and_the_backlog_drains_beside() {
        let mut queue = Queue::default();
        (0..4).for_each(|n| queue.push(at(0), n));
        (100..108).for_each(|n| queue.push(at(100), n));
        let order: Vec<u64> = (0..12).map_while(|_| queue.take(at(101))).collect();
        assert_eq!(order, [100, 101, 102, 0, 103, 104, 105, 1, 106, 107, 2, 3]);
    }

    #[test]
    fn a_retry_is_served_before_what_came_after_it() {
        let mut queue = Queue::default();
        queue.put_back(at(2), 'b');
        queue.put_back(at(1), 'a');
        queue.put_back(at(3), 'c');
        assert_eq!(
            [queue.take(at(9)), queue.take(at(9)), queue.take(at(9))],
            [Some('a'), Some('b'), Some('c')]
        );
    }

    #[test]
    fn what_comes_late_is_as_old_as_it_is() {
        let mut queue = Queue::default();
        queue.push(at(9), 'b');
        queue.push(at(1), 'a'); // a spool that cannot store it has given it back
        queue.push(at(9), 'c');
        assert_eq!(queue.oldest(), Some(at(1)));
        assert_eq!(queue.take_older_than(at(5)), Some('a'));
        assert_eq!([queue.take(at(9)), queue.take(at(9))], [Some('b'), Some('c')]);
    }

    proptest! {
        /// Against a plain list: nothing is lost or doubled, the oldest is the oldest, too old means older.
        #[test]
        fn behaves_like_a_list(steps in prop::collection::vec((0u8..4, 0u64..20), 1..200)) {
            let (mut queue, mut model, mut clock, mut number) = (Queue::default(), Vec::new(), 0u64, 0u32);
            for (kind, amount) in steps {
                clock += amount;
                match kind {
                    0 => { queue.push(at(clock), number); model.push((clock, number)); number += 1; }
                    1 => {
                        let taken = queue.take(at(clock));
                        prop_assert_eq!(taken.is_some(), !model.is_empty());
                        if let Some(taken) = taken {
                            let place = model.iter().position(|(_, n)| *n == taken).expect("was there");
                            let (accepted, _) = model.remove(place);
                            if amount % 2 == 0 { queue.put_back(at(accepted), taken); model.push((accepted, taken)); }
                        }
                    }
                    2 if amount % 5 == 0 => {
                        if let Some(taken) = queue.take_fresh() {
                            let place = model.iter().position(|(_, n)| *n == taken).expect("was there");
                            model.remove(place);
                        }
                    }
                    2 => {
                        let oldest = model.iter().map(|(accepted, _)| *accepted).min();
                        prop_assert_eq!(queue.oldest(), oldest.map(at));
                        if let Some(taken) = queue.take_oldest() {
                            let place = model.iter().position(|(_, n)| *n == taken).expect("was there");
                            prop_assert_eq!(Some(model.remove(place).0), oldest);
                        }
                    }
                    _ => {
                        let limit = clock.saturating_sub(10);
                        while let Some(taken) = queue.take_older_than(at(limit)) {
                            let place = model.iter().position(|(_, n)| *n == taken).expect("was there");
                            prop_assert!(model.remove(place).0 < limit);
                        }
                        prop_assert!(model.iter().all(|(accepted, _)| *accepted >= limit));
                    }
                }
                prop_assert_eq!(queue.len(), model.len());
            }
        }
    }
}
