//! Fair turns between stores: what waits is handed out one of each store in turn, so that a store
//! that floods makes itself wait and not the others.
//!
//! ```text
//!  store 1   a b c d e f …        handed out:  a x p b y c d e …
//!  store 2   x y
//!  store 3   p
//! ```
//!
//! What one store pushed stays in its order.

use std::collections::VecDeque;

use hashbrown::HashMap;

/// Items that wait, by store.
pub struct Turns<T> {
    stores: HashMap<i64, VecDeque<T>>,
    /// The stores that have items, the one whose turn it is first.
    order: VecDeque<i64>,
    len: usize,
}

/// What becomes of an item that is offered by [`Turns::select`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is taken.
    Take,
    /// It keeps its place; the next one of its store is offered at the store's next turn.
    Hold,
    /// It keeps its place, and nothing more of its store is offered.
    Pass,
    /// It keeps its place, and nothing more is offered.
    Enough,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self {
            stores: HashMap::new(),
            order: VecDeque::new(),
            len: 0,
        }
    }
}

impl<T> Turns<T> {
    /// Items of all stores.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Items of one store.
    #[must_use]
    pub fn len_of(&self, store_id: i64) -> usize {
        self.stores.get(&store_id).map_or(0, VecDeque::len)
    }

    /// Puts an item behind those of its store. A store that had none waits for its turn behind the
    /// others.
    pub fn push(&mut self, store_id: i64, item: T) {
        let items = self.stores.entry(store_id).or_default();
        if items.is_empty() {
            self.order.push_back(store_id);
        }
        items.push_back(item);
        self.len += 1;
    }

    /// The next item; its store's next turn comes after those of the others.
    pub fn pop(&mut self) -> Option<T> {
        let mut verdicts = [Verdict::Take, Verdict::Enough].into_iter();
        self.select(|_| verdicts.next().unwrap_or(Verdict::Enough))
            .pop()
    }

    /// Offers the items, one of each store in turn, and gives those that are taken in that order.
    pub fn select(&mut self, mut judge: impl FnMut(&T) -> Verdict) -> Vec<T> {
        let mut taken = Vec::new();
        let mut held: HashMap<i64, VecDeque<T>> = HashMap::new();
        // Stores of which everything was offered.
        let mut through = VecDeque::new();
        while let Some(store_id) = self.order.front().copied() {
            let items = self.stores.get_mut(&store_id);
            let Some(item) = items.and_then(VecDeque::pop_front) else {
                through.extend(self.order.pop_front());
                continue;
            };
            match judge(&item) {
                Verdict::Take => taken.push(item),
                Verdict::Hold => held.entry(store_id).or_default().push_back(item),
                Verdict::Pass => {
                    self.stores.entry(store_id).or_default().push_front(item);
                    through.extend(self.order.pop_front());
                    continue;
                }
                Verdict::Enough => {
                    self.stores.entry(store_id).or_default().push_front(item);
                    break;
                }
            }
            self.order.rotate_left(1);
        }
        self.len -= taken.len();
        for (store_id, mut items) in held {
            let rest = self.stores.entry(store_id).or_default();
            items.append(rest);
            *rest = items;
        }
        self.order.append(&mut through);
        self.forget_empty();
        taken
    }

    /// Takes out whatever meets a condition, for example what has waited too long.
    pub fn extract(&mut self, mut wanted: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut extracted = Vec::new();
        for items in self.stores.values_mut() {
            if !items.iter().any(&mut wanted) {
                continue;
            }
            for item in std::mem::take(items) {
                if wanted(&item) {
                    extracted.push(item);
                } else {
                    items.push_back(item);
                }
            }
        }
        self.len -= extracted.len();
        self.forget_empty();
        extracted
    }

    fn forget_empty(&mut self) {
        self.stores.retain(|_, items| !items.is_empty());
        let stores = &self.stores;
        self.order.retain(|store_id| stores.contains_key(store_id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(items: &[(i64, &'static str)]) -> Turns<&'static str> {
        let mut turns = Turns::default();
        for (store_id, item) in items {
            turns.push(*store_id, *item);
        }
        turns
    }

    fn all(mut turns: Turns<&'static str>) -> Vec<&'static str> {
        std::iter::from_fn(|| turns.pop()).collect()
    }

    #[test]
    fn a_flood_of_one_store_lets_the_others_have_every_second_turn() {
        let mut turns = waiting(&[(1, "a"), (1, "b"), (1, "c"), (1, "d"), (2, "x"), (3, "p")]);
        assert_eq!(turns.len(), 6);
        assert_eq!(turns.len_of(1), 4);
        assert_eq!(turns.pop(), Some("a"));
        turns.push(2, "y");
        assert_eq!(all(turns), ["x", "p", "b", "y", "c", "d"]);
    }

    #[test]
    fn what_is_held_keeps_its_place_and_the_rest_of_its_store_is_offered() {
        let mut turns = waiting(&[(1, "held"), (1, "a"), (1, "b"), (2, "x"), (2, "y")]);
        let mut offered = Vec::new();
        let taken = turns.select(|item| {
            offered.push(*item);
            match *item {
                "held" => Verdict::Hold,
                "y" => Verdict::Enough,
                _ => Verdict::Take,
            }
        });
        assert_eq!(offered, ["held", "x", "a", "y"]);
        assert_eq!(taken, ["x", "a"]);
        assert_eq!(turns.len(), 3);
        assert_eq!(all(turns), ["y", "held", "b"]);
    }

    #[test]
    fn a_store_that_is_passed_by_keeps_its_order() {
        let mut turns = waiting(&[(1, "full"), (1, "a"), (2, "x"), (2, "y"), (3, "p")]);
        let taken = turns.select(|item| match *item {
            "full" => Verdict::Pass,
            _ => Verdict::Take,
        });
        assert_eq!(taken, ["x", "p", "y"]);
        assert_eq!(turns.len(), 2);
        assert_eq!(all(turns), ["full", "a"]);
    }

    #[test]
    fn what_is_extracted_leaves_the_others_in_their_order() {
        let mut turns = waiting(&[(1, "a"), (2, "old"), (1, "old"), (1, "b"), (3, "old")]);
        assert_eq!(turns.extract(|item| *item == "old"), ["old"; 3]);
        assert_eq!((turns.len(), turns.len_of(2)), (2, 0));
        assert_eq!(all(turns), ["a", "b"]);
        assert!(Turns::<u8>::default().is_empty());
    }
}
