//! The operations that TorchScript calls: modules that Python has scripted, by `script.py`.

#[path = "../common/mod.rs"]
mod common;
mod errors;
mod operations;
#[allow(dead_code, reason = "mpi_calls uses all of it")]
#[path = "../mpi_calls/profiling.rs"]
mod profiling;
mod programs;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::process::ExitCode;

use common::start;
use mpi4tch::torchscript::Handle;
use tch::{CModule, IValue, TchError, Tensor};

fn main() -> ExitCode {
    let tests = [operations::tests(), programs::tests(), errors::tests()];
    harness::run(start, tests.into_iter().flatten().collect())
}

/// What a test returns: its errors are this crate's or tch's.
type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// The scripted module with a method for each operation.
struct Script<'a> {
    module: CModule,
    /// The communicator of the calls, if not the world.
    handle: Option<&'a Handle>,
    /// The methods that were called.
    called: RefCell<BTreeSet<String>>,
}

impl<'a> Script<'a> {
    fn on(handle: Option<&'a Handle>) -> Result<Self, TchError> {
        let module = CModule::load("tests/torchscript/operations.pt")?;
        Ok(Self { module, handle, called: RefCell::default() })
    }

    /// Calls a method whose last parameter is the communicator.
    fn call(&self, name: &str, mut arguments: Vec<IValue>) -> Result<IValue, TchError> {
        arguments.extend(self.handle.map(IValue::from));
        self.call_with(name, arguments)
    }

    fn call_with(&self, name: &str, arguments: Vec<IValue>) -> Result<IValue, TchError> {
        self.called.borrow_mut().insert(name.to_owned());
        self.module.method_is(name, &arguments)
    }

    /// The tensors of a result; if it is the number of a request, those that the wait returns.
    fn tensors(&self, result: IValue) -> Outcome<Vec<Tensor>> {
        Ok(match result {
            IValue::Tensor(y) => vec![y],
            IValue::Tuple(ys) => ys.into_iter().map(into_tensor).collect::<Outcome<_>>()?,
            number @ IValue::Int(_) => self.tensors(self.call_with("wait", vec![number])?)?,
            other => return Err(format!("{other:?} is no tensor").into()),
        })
    }
}

fn into_tensor(value: IValue) -> Outcome<Tensor> {
    match value {
        IValue::Tensor(tensor) => Ok(tensor),
        other => Err(format!("{other:?} is no tensor").into()),
    }
}

fn tensor(x: &Tensor) -> IValue {
    IValue::Tensor(x.shallow_clone())
}

fn int(number: impl Into<i64>) -> IValue {
    IValue::Int(number.into())
}

fn text(text: &str) -> IValue {
    IValue::String(text.to_owned())
}
