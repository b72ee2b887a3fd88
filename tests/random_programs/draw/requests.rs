//! Draws the ends of started operations: each is waited for or dropped.

use super::{Draft, Pending};
use crate::local::Local;
use crate::program::{End, Step};

impl Draft {
    /// Waits for some of what was started, or drops it.
    pub(super) fn settle(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let place = self.random.below(self.pending.len());
        let drops = self.pending[place].can_be_dropped && self.random.one_in(8);
        let y = self.pending[place].result.var;
        if self.pending[place].ends.is_empty() {
            if drops {
                self.pending.remove(place);
                self.steps.push(Step::Drop { y });
                return;
            }
            let mut done = vec![self.pending.remove(place)];
            while self.random.one_in(3) {
                let Some(more) = self.pending.iter().position(|pending| pending.ends.is_empty())
                else {
                    break;
                };
                done.push(self.pending.remove(more));
            }
            let ys = done.iter().map(|pending| pending.result.var).collect();
            self.steps.push(Step::Wait { ys });
            for pending in done {
                self.finish(pending);
            }
            return;
        }
        let count = self.pending[place].ends.len();
        let (end, rank) = self.pending[place].ends.remove(self.random.below(count));
        self.steps.push(Step::EndMessage { y, rank, end, waits: !drops });
        if drops && end == End::Receive {
            // There is no result; the sender may still wait.
            self.pending[place].result.shapes.clear();
        }
        if self.pending[place].ends.is_empty() {
            let pending = self.pending.remove(place);
            if !pending.result.shapes.is_empty() {
                self.finish(pending);
            }
        }
    }

    /// The result is there.
    pub(super) fn finish(&mut self, Pending { result, is_infinite, .. }: Pending) {
        if is_infinite {
            let bound = 1.5 * result.bound;
            self.work(Local::Clamp(result.var, bound), result.shapes, bound);
        } else {
            self.add(result);
        }
    }
}
