//! Operations of libtorch's dispatcher that are carried out in Rust.

use std::ffi::{CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice;

use tch::Tensor;

use super::node::{give, panic_text};
use super::{Recording, check, own, shim};
use crate::base::error::{Error, Result};

/// A value that an operation takes or returns.
#[derive(Debug)]
pub(crate) enum Value {
    None,
    Tensor(Tensor),
    Tensors(Vec<Tensor>),
    Integer(i64),
    Integers(Vec<i64>),
    Text(String),
}

/// An operation that libtorch's dispatcher calls, in the namespace `mpi4tch`.
pub(crate) struct Operation {
    /// The name in errors.
    pub(crate) call: &'static str,
    /// The declaration, such as `rank(int? communicator=None) -> int`.
    pub(crate) schema: String,
    /// The function that carries it out. libtorch has checked the arguments against the schema. The
    /// results are as many as in the schema; each is a tensor or an integer.
    pub(crate) function: fn(&'static str, Vec<Value>) -> Result<Vec<Value>>,
}

/// Registers operations for the rest of the program. TorchScript takes them to have effects of
/// their own, so that no call is dropped, or merged with one that has equal arguments. Returns
/// false, and registers none, if other code has registered one of any of these names.
pub(crate) fn register(operations: &'static [Operation]) -> Result<bool> {
    for operation in operations {
        if is_registered(operation)? {
            return Ok(false);
        }
    }
    for operation in operations {
        let schema = qualified(operation);
        let rust = shim::mpi4tch_operation {
            state: (&raw const *operation).cast(),
            call: Some(carry_out),
        };
        // SAFETY: the schema is a C string that outlives the call, and the operation lives as long
        // as the program.
        let error = unsafe { shim::mpi4tch_register(schema.as_ptr(), rust) };
        check("initialize", error)?;
    }
    Ok(true)
}

/// Whether there is a function for an operation of this name already.
fn is_registered(operation: &Operation) -> Result<bool> {
    let schema = qualified(operation);
    let mut found = false;
    // SAFETY: the schema is a C string that outlives the call, and so does `found`.
    let error = unsafe { shim::mpi4tch_is_registered(schema.as_ptr(), &raw mut found) };
    check("initialize", error)?;
    Ok(found)
}

/// The schema with the namespace.
fn qualified(operation: &Operation) -> CString {
    CString::new(format!("mpi4tch::{}", operation.schema)).unwrap_or_default()
}

/// Carries out the operation behind `state`; returns an error text if it fails or panics.
///
/// # Safety
/// `state` is the `Operation` that [`register`] passed, and the lists are as `wrapper.h` describes
/// them.
unsafe extern "C" fn carry_out(
    state: *const c_void,
    arguments: *const shim::mpi4tch_value,
    argument_count: usize,
    results: *mut shim::mpi4tch_value,
    result_count: usize,
) -> *mut c_char {
    // SAFETY: the operation lives as long as the program.
    let operation = unsafe { &*state.cast::<Operation>() };
    let _recording = Recording::kept();
    // Unwind safety: as in a pullback.
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: there are so many arguments, and each is handed over once.
        let read = |i| unsafe { read(operation.call, &*arguments.add(i)) };
        // All of them are taken over, even if one is an error.
        let arguments: Vec<Result<Value>> = (0..argument_count).map(read).collect();
        let arguments = arguments.into_iter().collect::<Result<_>>()?;
        let values = (operation.function)(operation.call, arguments)?;
        assert_eq!(values.len(), result_count, "as many results as in the schema");
        for (i, value) in values.into_iter().enumerate() {
            // SAFETY: `results` has room for `result_count` values, and `i` is less.
            unsafe { write(operation.call, value, &mut *results.add(i)) }?;
        }
        Ok::<(), Error>(())
    }));
    let text = match outcome {
        Ok(Ok(())) => return std::ptr::null_mut(),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => format!("{} panicked: {}", operation.call, panic_text(&*panic)),
    };
    // SAFETY: the text is copied before the call returns.
    unsafe { shim::mpi4tch_text(text.as_ptr().cast(), text.len()) }
}

/// Takes over an argument; an error if no schema has one of its kind.
///
/// # Safety
/// `raw` is as `wrapper.h` describes it, and is read once.
unsafe fn read(call: &'static str, raw: &shim::mpi4tch_value) -> Result<Value> {
    Ok(match raw.type_ {
        shim::MPI4TCH_NONE => Value::None,
        shim::MPI4TCH_TENSOR => Value::Tensor(own_or_undefined(raw.tensor)),
        shim::MPI4TCH_INTEGER => Value::Integer(raw.integer),
        shim::MPI4TCH_TENSORS => {
            // SAFETY: `items` has `length` tensors, which are handed over.
            let list = unsafe { items::<shim::mpi4tch_tensor>(raw) };
            Value::Tensors(list.iter().map(|&pointer| own_or_undefined(pointer)).collect())
        }
        shim::MPI4TCH_INTEGERS => {
            // SAFETY: `items` has `length` integers.
            Value::Integers(unsafe { items::<i64>(raw) }.to_vec())
        }
        shim::MPI4TCH_TEXT => {
            // SAFETY: `items` has `length` bytes.
            Value::Text(String::from_utf8_lossy(unsafe { items::<u8>(raw) }).into_owned())
        }
        other => {
            let message = format!("an argument of type {other}, which no schema has");
            return Err(Error::Argument { call, message });
        }
    })
}

/// The items of a list.
///
/// # Safety
/// `raw` is a list of `T`.
unsafe fn items<T>(raw: &shim::mpi4tch_value) -> &[T] {
    if raw.length == 0 {
        return &[];
    }
    // SAFETY: `items` has `length` items, which are valid as long as the call.
    unsafe { slice::from_raw_parts(raw.items.cast(), raw.length) }
}

fn own_or_undefined(pointer: shim::mpi4tch_tensor) -> Tensor {
    own(pointer).unwrap_or_default()
}

/// Passes a result on; an error if no schema has one of its kind.
fn write(call: &'static str, value: Value, raw: &mut shim::mpi4tch_value) -> Result<()> {
    match value {
        Value::Tensor(tensor) => {
            raw.type_ = shim::MPI4TCH_TENSOR;
            raw.tensor = give(tensor);
        }
        Value::Integer(integer) => {
            raw.type_ = shim::MPI4TCH_INTEGER;
            raw.integer = integer;
        }
        other => {
            let message = format!("a result {other:?}, which no schema has");
            return Err(Error::Argument { call, message });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use tch::{CModule, IValue};

    use super::*;

    static TEST: LazyLock<[Operation; 1]> = LazyLock::new(|| [test()]);

    /// As another copy of the crate would, with one operation more.
    static AGAIN: LazyLock<[Operation; 2]> = LazyLock::new(|| {
        let nothing = |_, _| Ok(Vec::new());
        let further =
            Operation { call: "further", schema: "further() -> ()".to_owned(), function: nothing };
        [further, Operation { function: nothing, ..test() }]
    });

    fn test() -> Operation {
        Operation {
            call: "test",
            schema: "test(Tensor[] tensors, int? number, str text) -> int".to_owned(),
            function: |call, arguments| {
                let [Value::Tensors(tensors), number, Value::Text(text)] = &arguments[..] else {
                    panic!("{arguments:?}")
                };
                match number {
                    Value::None => Err(Error::Undefined { call }),
                    Value::Integer(0) => panic!("of {text}"),
                    Value::Integer(number) => {
                        let defined = tensors.iter().filter(|tensor| tensor.defined()).count();
                        Ok(vec![Value::Integer(number + i64::try_from(defined).unwrap_or(0))])
                    }
                    other => panic!("{other:?}"),
                }
            },
        }
    }

    #[test]
    fn errors_and_panics_are_exceptions_and_the_first_registration_counts() {
        assert!(register(&*TEST).unwrap());
        // All or none of them.
        assert!(!register(&*AGAIN).unwrap());
        assert!(is_registered(&AGAIN[1]).unwrap() && !is_registered(&AGAIN[0]).unwrap());
        let module = CModule::load("tests/torchscript/test.pt").unwrap();
        let call = |number| {
            let tensors = vec![Tensor::from_slice(&[1]), Tensor::new()];
            let text = IValue::String("käse".to_owned());
            module.forward_is(&[IValue::TensorList(tensors), number, text])
        };
        assert_eq!(call(IValue::Int(41)).unwrap(), IValue::Int(42));
        for (number, needed) in [
            (IValue::None, "test: the tensor is undefined"),
            (IValue::Int(0), "test panicked: of käse\n"),
        ] {
            let error = call(number).unwrap_err().to_string();
            assert!(error.contains(&format!("RuntimeError: {needed}")), "{error}");
        }
    }

    #[test]
    fn a_schema_that_is_none_is_an_error() {
        static WRONG: LazyLock<[Operation; 1]> =
            LazyLock::new(|| [Operation { schema: "test(Tensor".to_owned(), ..test() }]);
        let error = register(&*WRONG).unwrap_err().to_string();
        assert!(error.starts_with("initialize: "), "{error}");
    }
}
