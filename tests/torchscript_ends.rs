//! Modules before MPI's start and after its end, in a process of one rank that no launcher started.

use mpi4tch::torchscript::Handle;
use tch::{CModule, IValue, Tensor};

const MODULE: &str = "tests/torchscript/operations.pt";

/// The outcome of a sum: its value, or the text of its error.
fn sum(module: &CModule, handle: Option<&Handle>) -> Result<IValue, String> {
    let mut arguments =
        vec![IValue::Tensor(Tensor::from_slice(&[2.0])), IValue::String("sum".to_owned())];
    arguments.extend(handle.map(IValue::from));
    module.method_is("all_reduce", &arguments).map_err(|error| error.to_string())
}

/// All in one test: MPI starts and ends once in a process, and on one thread.
#[test]
fn from_start_to_end() {
    let early = CModule::load(MODULE).unwrap_err().to_string();
    assert!(early.contains("Unknown builtin op: mpi4tch::all_reduce"), "{early}");

    let universe = mpi4tch::initialize().unwrap();
    let module = CModule::load(MODULE).unwrap();
    let two = IValue::Tensor(Tensor::from_slice(&[2.0]));
    assert_eq!(sum(&module, None).as_ref(), Ok(&two));
    // A second universe is the same MPI, with the same operations.
    let second = mpi4tch::initialize().unwrap();
    drop(universe);
    let handle = second.world().duplicate().unwrap().script_handle().unwrap();
    assert_eq!(sum(&module, Some(&handle)).as_ref(), Ok(&two));
    let x = IValue::Tensor(Tensor::from_slice(&[1.0]));
    let IValue::Int(request) = module.method_is("ibroadcast", &[x, IValue::Int(0)]).unwrap() else {
        panic!("a request's number is expected")
    };

    drop(second);
    for handle in [None, Some(&handle)] {
        let error = sum(&module, handle).unwrap_err();
        assert!(error.contains("RuntimeError: all_reduce: MPI has been finalized\n"), "{error}");
    }
    let error = module.method_is("rank", &[] as &[IValue]).unwrap_err().to_string();
    assert!(error.contains("RuntimeError: rank: MPI has been finalized\n"), "{error}");
    for call in ["wait", "drop_request"] {
        let error = module.method_is(call, &[IValue::Int(request)]).unwrap_err().to_string();
        let needed = format!("RuntimeError: {call}: MPI has been finalized\n");
        assert!(error.contains(&needed), "{error}");
    }
    // Dropping it is harmless.
    drop(handle);
}
