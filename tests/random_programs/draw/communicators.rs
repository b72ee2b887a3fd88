//! Draws communicators.

use super::Draft;
use crate::communicators::{Group, Making};
use crate::program::Step;

/// Beside the world. Many ranks on few cores take long to make one.
const MOST_COMMUNICATORS: usize = 8;

impl Draft {
    /// One to make a call on: of two, the one with more ranks.
    pub(super) fn group(&mut self) -> Group {
        let two = [(); 2].map(|()| self.random.among(&self.groups));
        two.into_iter().max_by_key(Group::size).expect("there are two")
    }

    /// Makes communicators from any that there is.
    pub(super) fn make(&mut self) {
        let on = self.random.among(&self.groups);
        let making = if self.random.one_in(4) {
            Making::Duplicate
        } else {
            let joins_none = self.random.one_in(3);
            let mut color = || {
                let choices = [Some(0), Some(1), Some(7), None];
                self.random.among(if joins_none { &choices } else { &choices[..2] })
            };
            let colors: Vec<_> = on.ranks.iter().map(|_| color()).collect();
            let mut key = || self.random.among(&[-3, 0, 0, 1, 2]);
            Making::Split(colors.into_iter().map(|color| (color, key())).collect())
        };
        let ranks = making.groups(&on);
        if self.made + ranks.len() > MOST_COMMUNICATORS {
            return;
        }
        let mut name = self.made;
        let mut named = |ranks| {
            name += 1;
            Group { name, ranks }
        };
        let made: Vec<Group> = ranks.into_iter().map(&mut named).collect();
        self.made = name;
        self.groups.extend(made.iter().cloned());
        self.steps.push(Step::Make { on, making, made });
    }

    /// Drops a communicator; what was started on it goes on, and what was made from it stays.
    pub(super) fn forget(&mut self) {
        let place = self.random.below(self.groups.len());
        // The world stays.
        if place > 0 {
            let on = self.groups.remove(place);
            self.steps.push(Step::Forget { on });
        }
    }
}
