//! Draws messages.

use mpi4tch::Tag;

use super::{Draft, Known, Pending};
use crate::program::{End, Message, Shift, Step};

impl Draft {
    pub(super) fn message(&mut self) {
        let (on, x) = (self.group(), self.any());
        let (from, to) = (self.random.among(&on.ranks), self.random.among(&on.ranks));
        if self.needs_no_tape && from == to {
            // The rank would have two results, of which one is lost.
            return;
        }
        let y = self.var();
        let mut started = self.random.among(&[
            vec![End::Send, End::Receive],
            vec![End::Send, End::Receive],
            vec![End::Send],
            vec![End::Receive],
            vec![],
        ]);
        if from == to {
            // A rank cannot wait for itself.
            started = vec![End::Send, End::Receive];
        }
        // Who receives from anybody must not get what is for another receive.
        let any_source = self.random.one_in(4);
        let tag = if any_source { 100 + Tag::try_from(y).expect("names are few") } else { 5 };
        let shape = x.shapes[from].clone();
        let mut shapes = x.shapes.clone();
        shapes[to].clone_from(&shape);
        let ends: Vec<_> =
            started.iter().map(|end| (*end, if *end == End::Send { from } else { to })).collect();
        let message = Message { from, to, tag, shape, any_source, started };
        self.steps.push(Step::Message { on, y, x: x.var, message });
        let result = Known { var: y, shapes, bound: x.bound };
        // Whose message it was is known only after the wait. Without a tape, the end that is not dropped
        // would wait for the other one.
        let can_be_dropped = !any_source && !self.needs_no_tape;
        let pending = Pending { result, ends, can_be_dropped, is_infinite: false };
        if pending.ends.is_empty() { self.finish(pending) } else { self.pending.push(pending) }
    }

    pub(super) fn shift(&mut self) {
        let (on, x) = (self.group(), self.any());
        let (y, by, ranks) = (self.var(), self.random.below(on.size()), on.size());
        let around = self.random.one_in(2);
        let in_parts = self.random.one_in(2);
        // Who receives from anybody must not get what is for another receive.
        let any_source = self.random.one_in(4);
        let tag = if any_source { 100 + Tag::try_from(y).expect("names are few") } else { 7 };
        let sent = on.pick(&x.shapes);
        let mut shift = Shift { by, around, shapes: sent.clone(), in_parts, any_source, tag };
        let mut shapes = x.shapes;
        for (place, rank) in on.ranks.iter().enumerate() {
            if let Some(from) = shift.peer(place, ranks, false) {
                shift.shapes[place].clone_from(&sent[from]);
                shapes[*rank].clone_from(&sent[from]);
            }
        }
        self.steps.push(Step::Shift { on, y, x: x.var, shift });
        self.add(Known { var: y, shapes, bound: x.bound });
    }
}
