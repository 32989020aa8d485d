//! Parcels that wait for their next attempt, found by when it is due and by how old they are. Pure: no clock, no I/O.
//!
//! Both orders are needed: the dispatcher asks for what is due next, overflow and the status page for what was accepted
//! longest ago, and after many attempts the oldest is due last. Every operation is O(log n); not responsible for how long
//! a parcel waits (`backoff`) nor for whether it may go (`health`).

use std::collections::BTreeMap;

use crate::runtime::clock::Mono;

/// Items with a due time and an age.
///
/// `by_due` and `by_age` hold the same items: `(due, number) → item` and `(accepted, number) → due`.
#[derive(Debug)]
pub struct Waiting<T> {
    by_due: BTreeMap<(Mono, u64), (Mono, T)>,
    by_age: BTreeMap<(Mono, u64), Mono>,
    /// Tells items with equal times apart, in the order they came.
    next_number: u64,
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self {
            by_due: BTreeMap::new(),
            by_age: BTreeMap::new(),
            next_number: 0,
        }
    }
}

impl<T> Waiting<T> {
    /// Adds an item that was accepted at `accepted` and is due at `due`.
    pub fn push(&mut self, due: Mono, accepted: Mono, item: T) {
        let number = self.next_number;
        self.next_number += 1;
        self.by_due.insert((due, number), (accepted, item));
        self.by_age.insert((accepted, number), due);
    }

    /// When the next item is due.
    pub fn next_due(&self) -> Option<Mono> {
        self.by_due.keys().next().map(|(due, _)| *due)
    }

    /// When the oldest item was accepted.
    pub fn oldest(&self) -> Option<Mono> {
        self.by_age.keys().next().map(|(accepted, _)| *accepted)
    }

    /// Takes the item that is due next.
    pub fn take_next(&mut self) -> Option<T> {
        let ((_, number), (accepted, item)) = self.by_due.pop_first()?;
        self.by_age.remove(&(accepted, number));
        Some(item)
    }

    /// Takes the item accepted longest ago, with the moment at which it is due.
    pub fn take_oldest(&mut self) -> Option<(Mono, T)> {
        let ((_, number), due) = self.by_age.pop_first()?;
        let (_, item) = self.by_due.remove(&(due, number))?;
        Some((due, item))
    }

    /// Items waiting.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.by_due.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.by_due.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_orders_hold_the_same_items() {
        let mut waiting = Waiting::default();
        for (due, accepted, item) in [
            (30, 1, "old"),
            (10, 3, "new"),
            (20, 2, "middle"),
            (10, 3, "newer"),
        ] {
            waiting.push(Mono(due), Mono(accepted), item);
        }
        assert_eq!(
            (waiting.next_due(), waiting.oldest()),
            (Some(Mono(10)), Some(Mono(1)))
        );
        assert_eq!(waiting.take_oldest(), Some((Mono(30), "old")));
        assert_eq!(
            (waiting.take_next(), waiting.take_next()),
            (Some("new"), Some("newer"))
        );
        assert_eq!(
            (waiting.next_due(), waiting.oldest()),
            (Some(Mono(20)), Some(Mono(2)))
        );
        assert_eq!(waiting.take_oldest(), Some((Mono(20), "middle")));
        assert!(waiting.is_empty() && waiting.take_next().is_none() && waiting.take_oldest().is_none());
        assert_eq!((waiting.next_due(), waiting.oldest()), (None, None));
    }
}
