//! The steps of a program, carried out on one rank.

use std::collections::BTreeMap;

use mpi4tch::{
    Communicator, PROC_NULL, Rank, Request, Result, Source, Tape, join_dummies, wait_all,
};
use tch::Tensor;

use crate::call::Call;
use crate::communicators::{Group, Making};
use crate::outcome::REAL;
use crate::program::{End, How, Message, Shift, Step, Var, first_part};

/// A rank in the middle of a program: its tensors, communicators and outstanding requests.
pub struct Own {
    rank: usize,
    pub tensors: BTreeMap<Var, Tensor>,
    /// By their names; first the world.
    communicators: BTreeMap<usize, Communicator>,
    uses_tape: bool,
    pub tape: Option<Tape>,
    /// A collective's is under the name of its `End::Receive`.
    requests: BTreeMap<(Var, End), Request>,
}

impl Own {
    pub fn new(world: &Communicator, uses_tape: bool) -> Self {
        Self {
            rank: world.rank().unsigned_abs() as usize,
            tensors: BTreeMap::new(),
            communicators: BTreeMap::from([(0, world.clone())]),
            uses_tape,
            tape: None,
            requests: BTreeMap::new(),
        }
    }

    pub fn at(&self, x: Var) -> Tensor {
        self.tensors[&x].shallow_clone()
    }

    fn take(&mut self, y: Var, end: End) -> Request {
        self.requests.remove(&(y, end)).expect("it was started")
    }

    /// The communicator, if this rank is one of its ranks.
    fn on(&self, group: &Group) -> Option<Communicator> {
        group.place(self.rank).map(|_| self.communicators[&group.name].clone())
    }

    /// Makes the tape, and puts the communicators on it that were made before.
    fn start_tape(&mut self) -> Result<()> {
        let tape = self.communicators[&0].tape();
        for comm in self.communicators.values_mut() {
            *comm = tape.on(comm)?;
        }
        self.tape = Some(tape);
        Ok(())
    }

    fn make(&mut self, on: &Communicator, making: &Making, made: &[Group]) -> Result<()> {
        let own = made.iter().find(|group| group.place(self.rank).is_some());
        match (making.run(on)?, own) {
            (Some(comm), Some(group)) => {
                let (rank, size) = (group.rank(self.rank), as_rank(group.size()));
                assert_eq!((comm.rank(), comm.size()), (rank, size), "{group}");
                self.communicators.insert(group.name, comm);
            }
            (made, expected) => assert_eq!(made.is_some(), expected.is_some(), "{making:?}"),
        }
        Ok(())
    }

    pub fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Local { y, work } => {
                let result = work.run(self.rank, |x| self.at(x));
                self.tensors.insert(*y, result);
            }
            Step::Make { on, making, made } => {
                if let Some(comm) = self.on(on) {
                    self.make(&comm, making, made)?;
                }
            }
            Step::Tape if self.uses_tape => self.start_tape()?,
            Step::Tape => {}
            Step::Forget { on } => drop(self.communicators.remove(&on.name)),
            Step::Collective { on, y, x, call, how } => match self.on(on) {
                Some(comm) => self.collective(&comm, *y, *x, call, *how)?,
                None => self.keep(*y, *x),
            },
            Step::Wait { ys } => {
                // Ranks that took no part started nothing: their results are there.
                let own = ys
                    .iter()
                    .filter_map(|y| Some((*y, self.requests.remove(&(*y, End::Receive))?)));
                let (ys, requests): (Vec<Var>, Vec<Request>) = own.unzip();
                self.tensors.extend(ys.into_iter().zip(wait_all(requests)?));
            }
            Step::Drop { y } => {
                self.requests.remove(&(*y, End::Receive));
                self.tensors.remove(y);
            }
            Step::Message { on, y, x, message } => match self.on(on) {
                Some(comm) => self.message(&comm, on, *y, *x, message)?,
                None => self.keep(*y, *x),
            },
            Step::EndMessage { y, rank, end, waits } => {
                if *rank == self.rank {
                    let request = self.take(*y, *end);
                    if *waits {
                        let result = request.wait()?;
                        self.tensors.insert(*y, result);
                    }
                }
            }
            Step::Shift { on, y, x, shift } => match self.on(on) {
                Some(comm) => {
                    let result = self.shift(&comm, &self.at(*x), shift)?;
                    self.tensors.insert(*y, result);
                }
                None => self.keep(*y, *x),
            },
            Step::Barrier { on } => {
                if let Some(comm) = self.on(on) {
                    comm.barrier()?;
                }
            }
        }
        Ok(())
    }

    /// Keeps `x` as `y`, where others make a call.
    fn keep(&mut self, y: Var, x: Var) {
        self.tensors.insert(y, self.at(x));
    }

    fn collective(
        &mut self,
        comm: &Communicator,
        y: Var,
        x: Var,
        call: &Call,
        how: How,
    ) -> Result<()> {
        let x = self.at(x);
        let result = match how {
            How::Blocking => call.run(comm, &x)?,
            How::InPlace | How::InPlaceOnPart => {
                let mut copy = x.alias_copy();
                let mut part = copy.narrow(0, 0, first_part(&copy));
                let changed = if how == How::InPlace { &mut copy } else { &mut part };
                call.run_in_place(comm, changed).expect("it has a form in place")?;
                copy
            }
            How::Started => {
                let request = call.start(comm, &x).expect("it can be started")?;
                self.requests.insert((y, End::Receive), request);
                return Ok(());
            }
        };
        self.tensors.insert(y, result);
        Ok(())
    }

    fn message(
        &mut self,
        comm: &Communicator,
        on: &Group,
        y: Var,
        x: Var,
        message: &Message,
    ) -> Result<()> {
        let x = self.at(x);
        if self.rank == message.from {
            let (to, tag) = (on.rank(message.to), message.tag);
            if message.started.contains(&End::Send) {
                let request = comm.isend(&x, to, tag)?;
                self.requests.insert((y, End::Send), request);
            } else {
                self.tensors.insert(y, comm.send(&x, to, tag)?);
            }
        }
        if self.rank == message.to {
            let like = self.like(&message.shape, &x)?;
            let from = match message.any_source {
                true => Source::Any,
                false => Source::Rank(on.rank(message.from)),
            };
            if message.started.contains(&End::Receive) {
                let request = comm.irecv(&like, from, message.tag)?;
                self.requests.insert((y, End::Receive), request);
            } else {
                self.tensors.insert(y, comm.recv(&like, from, message.tag)?);
            }
        } else {
            self.tensors.entry(y).or_insert(x);
        }
        Ok(())
    }

    /// A tensor of the shape that is received. Without a tape, a receive is gone back through only if its
    /// result depends on an input.
    fn like(&self, shape: &[i64], x: &Tensor) -> Result<Tensor> {
        let like = Tensor::zeros(shape, REAL);
        if self.uses_tape { Ok(like) } else { join_dummies(&like, &[x]) }
    }

    fn shift(&self, comm: &Communicator, x: &Tensor, shift: &Shift) -> Result<Tensor> {
        let (place, ranks) = (comm.rank().unsigned_abs() as usize, shift.shapes.len());
        let peer = |to| shift.peer(place, ranks, to).map_or(PROC_NULL, as_rank);
        let (to, from) = (peer(true), peer(false));
        let like = self.like(&shift.shapes[place], x)?;
        let source = match shift.any_source && from != PROC_NULL {
            true => Source::Any,
            false => Source::Rank(from),
        };
        if !shift.in_parts {
            return comm.sendrecv(x, to, &like, source, shift.tag);
        }
        let request = comm.isend(x, to, shift.tag)?;
        let result = comm.recv(&like, source, shift.tag)?;
        let sent = request.wait()?;
        // On a tape, nothing needs to depend on a send.
        if self.uses_tape { Ok(result) } else { join_dummies(&result, &[&sent]) }
    }
}

fn as_rank(rank: usize) -> Rank {
    Rank::try_from(rank).expect("ranks are few")
}
