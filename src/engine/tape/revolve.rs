//! The order in which the steps of a loop are gone back through with few states in memory: revolve.
//!
//! Of a loop of n steps, at most `slots` states are kept, the initial one among them. To go back
//! through a step, the state before it is needed, which is computed again from the nearest one kept.
//! Griewank and Walther, "Algorithm 799: revolve", ACM TOMS 26 (2000), found the order with the fewest
//! steps: from a kept state and m steps of which the last comes first, run k steps, keep that state, go
//! back through the m − k steps after it with one slot less, and then through the k steps before it.
//! The best k follows from a closed formula for the number of steps.
//!
//! Here the first run of the loop ends before the backward pass begins, and only kept states outlive
//! it. This is the loop of n + 1 steps of that paper, whose last step is the program after the loop.

/// The least r for which s slots serve n steps if no step is run more than r times to get to a state:
/// C(s + r, s) ≥ n.
fn repetitions(steps: usize, slots: usize) -> usize {
    if slots == 1 {
        return steps.saturating_sub(1);
    }
    let (mut low, mut high) = (0, 1);
    while !is_enough(high, slots, steps) {
        (low, high) = (high, 2 * high);
    }
    while low < high {
        let middle = usize::midpoint(low, high);
        if is_enough(middle, slots, steps) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

/// Whether C(s + r, s) ≥ n. Each factor of the product is at least 2, so there are few before it is
/// large enough, and it does not overflow before.
fn is_enough(r: usize, slots: usize, steps: usize) -> bool {
    let (fewer, more) = (r.min(slots) as u128, r.max(slots) as u128);
    let mut most = 1_u128;
    for i in 1..=fewer {
        if most >= steps as u128 {
            break;
        }
        most = most.saturating_mul(more + i) / i;
    }
    most >= steps as u128
}

/// How many steps to run from a kept state to the next one to keep, if `steps` steps, two or more, are
/// to be gone back through with `slots` slots, two or more.
///
/// By the formula t(n, s) = r n − C(s + r, r − 1), in which r is that of [`repetitions`], one step more
/// costs r(n + 1, s) more. So the cost k + t(k, s) + t(n − k, s − 1) is convex in k.
fn split(steps: usize, slots: usize) -> usize {
    let is_enough = |k: usize| 1 + repetitions(k + 1, slots) >= repetitions(steps - k, slots - 1);
    let (mut low, mut high) = (1, steps - 1);
    while low < high {
        let middle = usize::midpoint(low, high);
        if is_enough(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

/// The numbers of the steps before which the first run keeps the state, from 0 on, in their order.
pub(super) fn kept(steps: usize, slots: usize) -> impl Iterator<Item = usize> {
    let next = move |&(place, free): &(usize, usize)| {
        // The program after the loop counts as a step.
        let left = (steps - place).saturating_add(1);
        if free < 2 || left < 2 {
            return None;
        }
        let next = place + split(left, free);
        (next < steps).then_some((next, free - 1))
    };
    std::iter::successors(Some((0, slots)), next).map(|(place, _)| place)
}

/// Goes back through the steps, the last one first. `kept` has the states in memory, with the numbers
/// of the steps that follow them, in their order, and the initial one first. `advance` runs a step from
/// the state before it and returns the state after it; `pull` goes back through a step.
pub(super) fn reverse<S, E>(
    steps: usize,
    slots: usize,
    mut kept: Vec<(usize, S)>,
    mut advance: impl FnMut(usize, &S) -> Result<S, E>,
    mut pull: impl FnMut(usize, &S) -> Result<(), E>,
) -> Result<(), E> {
    let mut end = steps;
    while let Some((place, state)) = kept.last() {
        let place = *place;
        let (left, free) = (end - place, slots - kept.len() + 1);
        if left == 1 {
            pull(place, state)?;
            kept.pop();
            end = place;
            continue;
        }
        let next = if free == 1 { end - 1 } else { place + split(left, free) };
        let mut current = advance(place, state)?;
        for step in place + 1..next {
            current = advance(step, &current)?;
        }
        if free == 1 {
            pull(next, &current)?;
            end = next;
        } else {
            kept.push((next, current));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::convert::Infallible;
    use std::rc::Rc;

    use super::*;

    /// A state, counted while it lives.
    struct State(usize, Rc<Cell<usize>>);

    impl State {
        fn new(place: usize, live: &Rc<Cell<usize>>) -> Self {
            live.set(live.get() + 1);
            Self(place, Rc::clone(live))
        }
    }

    impl Drop for State {
        fn drop(&mut self) {
            self.1.set(self.1.get() - 1);
        }
    }

    /// How many steps are run in both passes, and the most states that lived at once.
    fn run(steps: usize, slots: usize) -> (usize, usize) {
        let (live, count, most) = (Rc::new(Cell::new(0)), Cell::new(steps), Cell::new(0));
        let places: Vec<usize> = kept(steps, slots).collect();
        assert!(places.len() <= slots, "{places:?} with {slots} slots");
        let kept = places.iter().map(|&place| (place, State::new(place, &live))).collect();
        let note = || {
            count.set(count.get() + 1);
            most.set(most.get().max(live.get()));
        };
        let next = Cell::new(steps);
        let advance = |step: usize, state: &State| {
            assert_eq!(step, state.0);
            let state = State::new(step + 1, &live);
            note();
            Ok::<_, Infallible>(state)
        };
        let pull = |step: usize, state: &State| {
            assert_eq!((step, step + 1), (state.0, next.get()));
            next.set(step);
            note();
            Ok(())
        };
        reverse(steps, slots, kept, advance, pull).unwrap();
        assert_eq!((next.get(), live.get()), (0, 0));
        (count.get(), most.get())
    }

    /// The fewest steps with which one can go back through n steps from a kept state, with s slots, by
    /// trying all: `all[s][n]`.
    fn fewest(most_steps: usize, most_slots: usize) -> Vec<Vec<usize>> {
        let mut all = vec![vec![usize::MAX / 4; most_steps + 1]; most_slots + 1];
        for s in 1..=most_slots {
            all[s][0] = 0;
            for n in 1..=most_steps {
                // Without a further slot: run to the last step, and go back through it.
                let mut best = n + all[s][n - 1];
                for k in 1..n {
                    best = best.min(k + all[s][k] + all[s - 1][n - k]);
                }
                all[s][n] = best;
            }
        }
        all
    }

    /// The fewest steps in all: the first run keeps states as it goes along.
    fn fewest_with_first_run(steps: usize, slots: usize, all: &[Vec<usize>]) -> usize {
        fn rest(n: usize, s: usize, all: &[Vec<usize>]) -> usize {
            let further = (1..n).filter(|_| s > 1).map(|k| all[s][k] + rest(n - k, s - 1, all));
            further.chain([all[s][n]]).min().unwrap()
        }
        steps + rest(steps, slots, all)
    }

    fn binomial(n: usize, k: usize) -> usize {
        (1..=k).fold(1, |c, i| c * (n - k + i) / i)
    }

    /// The formula: with n = `steps` + 1, t + n − 1 steps.
    fn formula(steps: usize, slots: usize) -> usize {
        let n = steps + 1;
        let r = repetitions(n, slots);
        r * n - if r == 0 { 0 } else { binomial(slots + r, r - 1) } + n - 1
    }

    #[test]
    fn no_order_runs_fewer_steps() {
        let all = fewest(24, 10);
        for steps in 1..=24 {
            for slots in 1..=10 {
                let (count, most) = run(steps, slots);
                let best = fewest_with_first_run(steps, slots.min(6), &all);
                if slots <= 6 {
                    assert_eq!(count, best, "{steps} steps, {slots} slots");
                }
                assert_eq!(count, formula(steps, slots), "{steps} steps, {slots} slots");
                // The state that is being computed, and the one before it, are beside the slots.
                assert!(most <= slots + 2, "{most} states for {slots} slots");
            }
        }
    }

    #[test]
    fn long_loops() {
        for (steps, slots, count) in [
            (1, 1, 2),
            (2, 1, 5),
            (10, 1, 65),
            (10, 3, 28),
            (10, 10, 20),
            (10, 1000, 20),
            (1000, 10, 4640),
            (1000, 30, 3475),
            (1000, 100, 2900),
            (1000, 1000, 2000),
        ] {
            assert_eq!(run(steps, slots).0, count, "{steps} steps, {slots} slots");
            assert_eq!(formula(steps, slots), count, "{steps} steps, {slots} slots");
        }
        assert_eq!(run(100_000, 100_000).0, 200_000);
        for slots in [1, 2, 3, 1000, usize::MAX] {
            let places: Vec<usize> = kept(usize::MAX, slots).take(3).collect();
            assert!(places.is_sorted() && places[0] == 0, "{places:?} with {slots} slots");
        }
    }
}
