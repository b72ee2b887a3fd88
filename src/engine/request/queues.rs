//! [`Queues`]: entries that are in several queues at once.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

/// Numbered entries. Each is in the queue of each of its keys, and queues are in order of the
/// numbers.
///
/// A search takes as many steps as it finds entries. A caller that removes the entries it finds
/// therefore visits each entry once, in whatever order entries are removed.
pub(super) struct Queues<K, T> {
    entries: HashMap<u64, Entry<K, T>>,
    queues: HashMap<K, BTreeSet<u64>>,
}

struct Entry<K, T> {
    keys: Vec<K>,
    value: T,
}

impl<K, T> Default for Queues<K, T> {
    fn default() -> Self {
        Self { entries: HashMap::new(), queues: HashMap::new() }
    }
}

impl<K: Clone + Eq + Hash, T: Clone> Queues<K, T> {
    pub(super) fn insert(&mut self, number: u64, keys: Vec<K>, value: T) {
        for key in &keys {
            self.queues.entry(key.clone()).or_default().insert(number);
        }
        self.entries.insert(number, Entry { keys, value });
    }

    /// The entries with numbers below `end` in the queues of any of the keys, in order, each once.
    pub(super) fn before(&self, end: u64, keys: &[K]) -> Vec<T> {
        let queues = keys.iter().filter_map(|key| self.queues.get(key));
        let numbers: BTreeSet<u64> = queues.flat_map(|queue| queue.range(..end)).copied().collect();
        numbers.iter().map(|number| self.entries[number].value.clone()).collect()
    }

    /// Removes the entry from all its queues, if it is there.
    pub(super) fn replace(&mut self, number: u64, value: T) {
        if let Some(entry) = self.entries.get_mut(&number) {
            entry.value = value;
        }
    }

    pub(super) fn remove(&mut self, number: u64) {
        let Some(entry) = self.entries.remove(&number) else { return };
        for key in &entry.keys {
            if let Some(queue) = self.queues.get_mut(key) {
                queue.remove(&number);
                if queue.is_empty() {
                    self.queues.remove(key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::hash::Hasher;

    use super::*;

    thread_local! {
        /// How many keys were compared, plus how many values were returned.
        static STEPS: Cell<usize> = const { Cell::new(0) };
    }

    fn count() {
        STEPS.set(STEPS.get() + 1);
    }

    #[derive(Clone, Eq)]
    struct Key(usize);

    impl PartialEq for Key {
        fn eq(&self, other: &Self) -> bool {
            count();
            self.0 == other.0
        }
    }

    impl Hash for Key {
        fn hash<H: Hasher>(&self, state: &mut H) {
            self.0.hash(state);
        }
    }

    struct Value(u64);

    impl Clone for Value {
        fn clone(&self) -> Self {
            count();
            Self(self.0)
        }
    }

    /// The key of all entries.
    const ALL: Key = Key(usize::MAX);

    /// Inserts as many entries as `order` has, with `keys` different keys in turn, and removes them
    /// in this order, each after those before it with the same key. Returns the number of steps.
    fn steps(order: &[usize], keys: usize) -> usize {
        STEPS.set(0);
        let mut queues = Queues::default();
        let key = |place: usize| Key(place % keys);
        for (number, place) in (0..).zip(0..order.len()) {
            queues.insert(number, vec![key(place), ALL], Value(number));
        }
        let mut left = 0;
        for &place in order {
            let number = place as u64;
            for Value(before) in queues.before(number, &[key(place)]) {
                assert!(before < number && (number - before).is_multiple_of(keys as u64));
                queues.remove(before);
                left += 1;
            }
            left += usize::from(queues.entries.contains_key(&number));
            queues.remove(number);
        }
        assert_eq!(left, order.len());
        assert!(queues.entries.is_empty() && queues.queues.is_empty());
        STEPS.get()
    }

    #[test]
    fn each_entry_is_looked_at_once_whatever_the_order() {
        const COUNT: usize = 2000;
        let forwards: Vec<usize> = (0..COUNT).collect();
        let backwards: Vec<usize> = (0..COUNT).rev().collect();
        // 7 has no factor in common with the count.
        let mixed: Vec<usize> = (0..COUNT).map(|i| i * 7 % COUNT).collect();
        for order in [&forwards, &backwards, &mixed] {
            for keys in [1, 10, COUNT] {
                let steps = steps(order, keys);
                assert!(steps <= 10 * COUNT, "{steps} steps for {COUNT} entries of {keys} keys");
            }
        }
    }

    #[test]
    fn entries_are_found_in_order_and_once() {
        let mut queues = Queues::default();
        for (number, keys) in [(3, vec![1, 2]), (0, vec![2]), (1, vec![1]), (2, vec![3])] {
            queues.insert(number, keys, number);
        }
        assert_eq!(queues.before(u64::MAX, &[2, 1]), [0, 1, 3]);
        assert_eq!(queues.before(3, &[2, 1, 9]), [0, 1]);
        queues.remove(0);
        queues.remove(0);
        assert_eq!(queues.before(u64::MAX, &[2]), [3]);
    }
}
