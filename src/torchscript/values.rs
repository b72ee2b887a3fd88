//! The types that operations take and return, and their names in schemas.

use std::fmt::Debug;

use tch::Tensor;

use super::registry;
use crate::autograd::Value;
use crate::base::error::{Error, Result};
use crate::base::op::Op;
use crate::engine::communicator::Communicator;
use crate::engine::request::Request;
use crate::environment::status::{Source, TagMatch};

/// A type that operations take.
pub(super) trait Parameter<'a>: Sized {
    /// Its name in schemas.
    const TYPE: &'static str;
    /// What follows the parameter's name: `=` and its default, if it has one.
    const DEFAULT: &'static str = "";

    /// The argument for the parameter `name` of `call`.
    fn read(call: &'static str, name: &'static str, value: &'a Value) -> Result<Self>;
}

/// A type that operations return.
pub(super) trait Returns {
    /// Its name in schemas.
    const TYPE: &'static str;

    fn into_values(self) -> Vec<Value>;
}

/// libtorch checks arguments against the schema, which is made of the same types as they.
fn unexpected(name: &str, value: impl Debug) -> ! {
    panic!("the argument {name} is {value:?}, against the schema")
}

/// Implements [`Parameter`] for types that a [`Value`] has as they are.
macro_rules! plain_parameters {
    ($($type:ty = $name:literal, $variant:ident($inner:ident) => $read:expr;)*) => {$(
        impl<'a> Parameter<'a> for $type {
            const TYPE: &'static str = $name;

            fn read(_: &'static str, name: &'static str, value: &'a Value) -> Result<Self> {
                match value {
                    Value::$variant($inner) => Ok($read),
                    other => unexpected(name, other),
                }
            }
        }
    )*};
}

plain_parameters! {
    &'a Tensor = "Tensor", Tensor(tensor) => tensor;
    Vec<&'a Tensor> = "Tensor[]", Tensors(list) => list.iter().collect();
    i64 = "int", Integer(integer) => *integer;
    &'a [i64] = "int[]", Integers(list) => list;
    &'a str = "str", Text(text) => text;
}

/// A rank, a tag or a root.
impl<'a> Parameter<'a> for i32 {
    const TYPE: &'static str = "int";

    fn read(call: &'static str, name: &'static str, value: &'a Value) -> Result<Self> {
        let value = i64::read(call, name, value)?;
        Self::try_from(value).map_err(|_| {
            let message = format!("{name} {value} is out of range; it must fit in 32 bits");
            Error::Argument { call, message }
        })
    }
}

/// `None` is any rank.
impl<'a> Parameter<'a> for Source {
    const TYPE: &'static str = "int?";

    fn read(call: &'static str, name: &'static str, value: &'a Value) -> Result<Self> {
        match value {
            Value::None => Ok(Self::Any),
            value => i32::read(call, name, value).map(Self::Rank),
        }
    }
}

/// `None` is any tag.
impl<'a> Parameter<'a> for TagMatch {
    const TYPE: &'static str = "int?";

    fn read(call: &'static str, name: &'static str, value: &'a Value) -> Result<Self> {
        match value {
            Value::None => Ok(Self::Any),
            value => i32::read(call, name, value).map(Self::Tag),
        }
    }
}

/// The names of ops.
const OPS: [(&str, Op); Op::ALL.len()] = [
    ("sum", Op::Sum),
    ("prod", Op::Prod),
    ("max", Op::Max),
    ("min", Op::Min),
    ("mean", Op::Mean),
    ("logical_and", Op::LogicalAnd),
    ("logical_or", Op::LogicalOr),
    ("logical_xor", Op::LogicalXor),
    ("bitwise_and", Op::BitwiseAnd),
    ("bitwise_or", Op::BitwiseOr),
    ("bitwise_xor", Op::BitwiseXor),
];

impl<'a> Parameter<'a> for Op {
    const TYPE: &'static str = "str";

    fn read(call: &'static str, name: &'static str, value: &'a Value) -> Result<Self> {
        let text = <&str>::read(call, name, value)?;
        let found = OPS.iter().find(|(name, _)| *name == text);
        found.map(|(_, op)| *op).ok_or_else(|| {
            let names = OPS.map(|(name, _)| name).join(", ");
            Error::Argument { call, message: format!("{name} is {text:?}; it may be {names}") }
        })
    }
}

/// `None` is the world.
impl<'a> Parameter<'a> for Communicator {
    const TYPE: &'static str = "int?";
    const DEFAULT: &'static str = "=None";

    fn read(call: &'static str, name: &'static str, value: &'a Value) -> Result<Self> {
        match value {
            Value::None => registry::communicator(call, None),
            Value::Integer(number) => registry::communicator(call, Some(*number)),
            other => unexpected(name, other),
        }
    }
}

impl<'a> Parameter<'a> for Request {
    const TYPE: &'static str = "int";

    fn read(call: &'static str, name: &'static str, value: &'a Value) -> Result<Self> {
        registry::take_request(call, i64::read(call, name, value)?)
    }
}

impl Returns for () {
    const TYPE: &'static str = "()";

    fn into_values(self) -> Vec<Value> {
        Vec::new()
    }
}

impl Returns for Tensor {
    const TYPE: &'static str = "Tensor";

    fn into_values(self) -> Vec<Value> {
        vec![Value::Tensor(self)]
    }
}

impl Returns for (Tensor, Tensor) {
    const TYPE: &'static str = "(Tensor, Tensor)";

    fn into_values(self) -> Vec<Value> {
        vec![Value::Tensor(self.0), Value::Tensor(self.1)]
    }
}

impl Returns for i32 {
    const TYPE: &'static str = "int";

    fn into_values(self) -> Vec<Value> {
        vec![Value::Integer(self.into())]
    }
}

impl Returns for Request {
    const TYPE: &'static str = "int";

    fn into_values(self) -> Vec<Value> {
        vec![Value::Integer(registry::add_request(self))]
    }
}
