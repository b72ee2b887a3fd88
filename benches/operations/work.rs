//! Makes what is timed for an operation: this crate's forward pass, backward pass and both, and raw
//! MPI's calls for the same.

use std::collections::BTreeMap;
use std::ffi::c_int;
use std::rc::Rc;

use mpi4tch::{Communicator, PassOptions, Result, Tape, testing};
use tch::{Device, Kind, Tensor};

use super::protocol::{Direction, OURS, Way};
use super::raw::{Buffer, Raw};

/// Something to time.
pub type Run = Box<dyn FnMut() -> Result<()>>;

/// What a rank can time for a case, by name.
pub type Runs = BTreeMap<Direction, Vec<(String, Run)>>;

/// What an operation is to be timed on.
pub struct Setting {
    pub world: Communicator,
    pub way: Way,
    pub bytes: usize,
}

/// A raw way of a pass: the names of its calls, and what makes them, from one buffer into another.
pub struct RawPass {
    pub calls: String,
    /// Whether its result must be this crate's.
    pub is_compared: bool,
    make: Box<dyn Fn(Buffer, Buffer)>,
}

impl RawPass {
    pub fn new(calls: impl Into<String>, make: impl Fn(Buffer, Buffer) + 'static) -> Self {
        Self { calls: calls.into(), is_compared: true, make: Box::new(make) }
    }
}

impl Setting {
    pub fn is_started(&self) -> bool {
        self.way == Way::Started
    }

    /// The doubles of the largest buffer.
    pub fn count(&self) -> i64 {
        i64::try_from(self.bytes / 8).expect("it fits into memory").max(1)
    }

    /// The doubles of one of so many blocks of the largest buffer.
    pub fn block(&self, blocks: c_int) -> i64 {
        (self.count() / i64::from(blocks)).max(1)
    }

    pub fn raw(&self) -> Raw {
        Raw::world(self.world.rank(), self.world.size(), self.is_started())
    }

    /// A raw way of a pass. The call is named as in `reduce_scatter`.
    pub fn pass(&self, call: &str, make: impl Fn(Buffer, Buffer) + 'static) -> RawPass {
        RawPass::new(self.name(call), make)
    }

    /// The name of an MPI function: of the one that starts the call, if that is timed.
    pub fn name(&self, call: &str) -> String {
        if self.is_started() {
            return format!("MPI_I{call}");
        }
        let (first, rest) = call.split_at(1);
        format!("MPI_{}{rest}", first.to_uppercase())
    }
}

/// Random numbers, different on each rank.
pub fn random(shape: &[i64]) -> Tensor {
    Tensor::rand(shape, (Kind::Double, Device::Cpu))
}

/// An operation of this crate on the world, or on what is made from it.
pub struct Operation<P, F> {
    pub x: Tensor,
    /// Makes the communicator or grid that the operation is called on.
    pub place: P,
    pub call: F,
    /// Whether both passes need a tape: without one, the adjoint of a send would not be reached.
    pub needs_tape: bool,
}

/// A communicator for an operation on the world.
pub fn on_world(comm: &Communicator) -> Result<Communicator> {
    Ok(comm.clone())
}

impl<P, F> Operation<P, F> {
    /// What is timed for it, with the raw ways of its forward and of its backward pass. Small results
    /// are compared with raw MPI's.
    pub fn runs<C>(
        self,
        setting: &Setting,
        forward: Vec<RawPass>,
        backward: Vec<RawPass>,
    ) -> Result<Runs>
    where
        C: 'static,
        P: Fn(&Communicator) -> Result<C>,
        F: Fn(&C, &Tensor) -> Result<Tensor> + 'static,
    {
        let tape = setting.world.tape();
        let on_tape = (self.place)(&tape)?;
        let second_tape = self.needs_tape.then(|| setting.world.tape());
        let comm = (self.place)(second_tape.as_deref().unwrap_or(&setting.world))?;
        let variable = self.x.detach().set_requires_grad(true);
        let result = (self.call)(&on_tape, &variable)?;
        let cotangent = result.detach().rand_like();
        let (raw_result, raw_gradient) = (nan_like(&result), nan_like(&self.x));
        let ours = Rc::new(Ours {
            buffers: [&self.x, &raw_result, &cotangent, &raw_gradient].map(Buffer::of),
            raw_result,
            raw_gradient,
            silent: (self.place)(&setting.world)?,
            x: self.x,
            call: self.call,
            comm,
            second_tape,
            tape,
            _on_tape: on_tape,
            variable,
            result,
            cotangent,
        });
        ours.compare(&forward, &backward)?;

        let mut runs = Runs::new();
        let mut add = |direction, name: &str, run: Run| {
            runs.entry(direction).or_default().push((name.to_owned(), run));
        };
        let [forward, backward] = [forward, backward]
            .map(|passes| passes.into_iter().map(Rc::new).collect::<Vec<Rc<RawPass>>>());
        for pass in &forward {
            let (kept, pass) = (Rc::clone(&ours), Rc::clone(pass));
            let calls = pass.calls.clone();
            add(Direction::Forward, &calls, Box::new(move || kept.raw(Some(&pass), None)));
        }
        for back in &backward {
            let (kept, pass) = (Rc::clone(&ours), Rc::clone(back));
            let calls = pass.calls.clone();
            add(Direction::Backward, &calls, Box::new(move || kept.raw(None, Some(&pass))));
            for pass in &forward {
                let calls = format!("{}, {}", pass.calls, back.calls);
                let (kept, pass, back) = (Rc::clone(&ours), Rc::clone(pass), Rc::clone(back));
                add(Direction::Both, &calls, Box::new(move || kept.raw(Some(&pass), Some(&back))));
            }
        }
        let kept = Rc::clone(&ours);
        add(Direction::Forward, OURS, Box::new(move || kept.forward().map(drop)));
        let kept = Rc::clone(&ours);
        add(Direction::Backward, OURS, Box::new(move || kept.backward().map(drop)));
        add(Direction::Both, OURS, Box::new(move || ours.both()));
        Ok(runs)
    }
}

/// An operation with its tensors, and those of raw MPI.
struct Ours<C, F> {
    x: Tensor,
    call: F,
    /// On no tape.
    silent: C,
    /// For both passes.
    comm: C,
    second_tape: Option<Tape>,
    /// The tape that keeps the graph for the backward pass alone.
    tape: Tape,
    _on_tape: C,
    variable: Tensor,
    result: Tensor,
    cotangent: Tensor,
    raw_result: Tensor,
    raw_gradient: Tensor,
    /// The memory of `x`, `raw_result`, `cotangent` and `raw_gradient`.
    buffers: [Buffer; 4],
}

impl<C, F: Fn(&C, &Tensor) -> Result<Tensor>> Ours<C, F> {
    fn forward(&self) -> Result<Tensor> {
        (self.call)(&self.silent, &self.x)
    }

    fn backward(&self) -> Result<Tensor> {
        let options = PassOptions { keep_graph: true, ..PassOptions::default() };
        let outputs = [(&self.result, &self.cotangent)];
        Ok(self.tape.vjp(&outputs, &[&self.variable], options)?.remove(0))
    }

    fn both(&self) -> Result<()> {
        let (x, cotangent) = (&self.variable, &self.cotangent);
        let y = (self.call)(&self.comm, x)?;
        match &self.second_tape {
            Some(tape) => tape.vjp(&[(&y, cotangent)], &[x], PassOptions::default()).map(drop),
            None => testing::vjp(&[&y], &[cotangent], &[x], false).map(drop),
        }
    }

    fn raw(&self, forward: Option<&RawPass>, backward: Option<&RawPass>) -> Result<()> {
        let [x, result, cotangent, gradient] = self.buffers;
        if let Some(pass) = forward {
            (pass.make)(x, result);
        }
        if let Some(pass) = backward {
            (pass.make)(cotangent, gradient);
        }
        Ok(())
    }

    /// Compares small results of each raw way with this crate's.
    fn compare(&self, forward: &[RawPass], backward: &[RawPass]) -> Result<()> {
        const LARGEST: usize = 1 << 17;
        if self.x.numel().max(self.result.numel()) > LARGEST {
            return Ok(());
        }
        for pass in forward.iter().filter(|pass| pass.is_compared) {
            let _ = self.raw_result.shallow_clone().fill_(f64::NAN);
            self.raw(Some(pass), None)?;
            assert_equal(&pass.calls, &self.raw_result, &self.forward()?);
        }
        for pass in backward.iter().filter(|pass| pass.is_compared) {
            let _ = self.raw_gradient.shallow_clone().fill_(f64::NAN);
            self.raw(None, Some(pass))?;
            assert_equal(&pass.calls, &self.raw_gradient, &self.backward()?);
        }
        Ok(())
    }
}

fn nan_like(x: &Tensor) -> Tensor {
    x.detach().full_like(f64::NAN)
}

/// Compares the results of raw MPI and of this crate, except on ranks where MPI writes none.
fn assert_equal(calls: &str, raw: &Tensor, ours: &Tensor) {
    let is_written = raw.isnan().logical_not().any().int64_value(&[]) != 0;
    assert!(
        !is_written || raw.allclose(ours, 1e-12, 1e-12, false),
        "{calls} gives {raw:?}, and not {ours:?}"
    );
}
