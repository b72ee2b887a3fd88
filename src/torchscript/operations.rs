//! The operations that libtorch's dispatcher knows.

use std::sync::LazyLock;

use tch::Tensor;

use super::values::{Parameter, Returns};
use crate::autograd::Operation;
use crate::base::error::Result;
use crate::base::op::Op;
use crate::base::rank::Rank;
use crate::base::tag::Tag;
use crate::engine::communicator::Communicator;
use crate::engine::dummies;
use crate::engine::request::Request;
use crate::environment::status::{PROC_NULL, Source, TagMatch};

/// All operations.
pub(super) static ALL: LazyLock<Vec<Operation>> =
    LazyLock::new(|| methods().into_iter().chain(others()).collect());

/// `name(parameters) -> type = body` as an [`Operation`], with the schema that its types have. What is
/// behind a dot in the name tells it from one with the same name and other types.
macro_rules! operation {
    (
        $name:ident $(.$overload:ident)? ($($parameter:ident: $type:ty),*) -> $returns:ty
            = $body:expr
    ) => {
        Operation {
            call: stringify!($name),
            schema: schema(
                concat!(stringify!($name) $(, ".", stringify!($overload))?),
                &[$(declaration::<$type>(stringify!($parameter))),*],
                <$returns as Returns>::TYPE,
            ),
            function: |_call, values| {
                // libtorch has filled in defaults.
                let [$($parameter),*] = &values[..] else {
                    panic!("{} arguments, against the schema", values.len())
                };
                $(let $parameter =
                    <$type as Parameter>::read(_call, stringify!($parameter), $parameter)?;)*
                let result: Result<$returns> = $body;
                result.map(Returns::into_values)
            },
        }
    };
}

fn schema(name: &str, parameters: &[String], returns: &str) -> String {
    format!("{name}({}) -> {returns}", parameters.join(", "))
}

fn declaration<'a, P: Parameter<'a>>(name: &str) -> String {
    format!("{} {name}{}", P::TYPE, P::DEFAULT)
}

/// Defines the operations that are methods of [`Communicator`] with the same name and parameters.
macro_rules! methods {
    ($(
        $name:ident $(.$overload:ident)? ($($parameter:ident: $type:ty),* $(,)?) -> $returns:ty;
    )*) => {
        fn methods() -> Vec<Operation> {
            vec![$(operation!(
                $name $(.$overload)? ($($parameter: $type,)* communicator: Communicator) -> $returns
                    = communicator.$name($($parameter),*)
            )),*]
        }
    };
}

methods! {
    all_reduce(x: &Tensor, op: Op) -> Tensor;
    reduce(x: &Tensor, op: Op, root: Rank) -> Tensor;
    broadcast(x: &Tensor, root: Rank) -> Tensor;
    gather(x: &Tensor, axis: i64, root: Rank) -> Tensor;
    gather_with_counts(x: &Tensor, axis: i64, counts: &[i64], root: Rank) -> Tensor;
    scatter(x: &Tensor, axis: i64, counts: i64, root: Rank) -> Tensor;
    scatter.list(x: &Tensor, axis: i64, counts: &[i64], root: Rank) -> Tensor;
    all_gather(x: &Tensor, axis: i64) -> Tensor;
    all_gather_with_counts(x: &Tensor, axis: i64, counts: &[i64]) -> Tensor;
    reduce_scatter(x: &Tensor, axis: i64, counts: i64, op: Op) -> Tensor;
    reduce_scatter.list(x: &Tensor, axis: i64, counts: &[i64], op: Op) -> Tensor;
    all_to_all(x: &Tensor, gather_axis: i64, scatter_axis: i64, counts: i64) -> Tensor;
    all_to_all.list(x: &Tensor, gather_axis: i64, scatter_axis: i64, counts: &[i64]) -> Tensor;
    all_to_all_with_counts(
        x: &Tensor, gather_axis: i64, gather_counts: &[i64], scatter_axis: i64,
        scatter_counts: &[i64],
    ) -> Tensor;
    all_to_all_v(x: &Tensor, axis: i64, send: &[i64]) -> Tensor;
    all_to_all_v_with_counts(x: &Tensor, axis: i64, send: &[i64], receive: &[i64]) -> Tensor;
    scan(x: &Tensor, op: Op) -> Tensor;
    exscan(x: &Tensor, op: Op) -> Tensor;
    max_loc(x: &Tensor) -> (Tensor, Tensor);
    min_loc(x: &Tensor) -> (Tensor, Tensor);
    barrier() -> ();
    send(x: &Tensor, dest: Rank, tag: Tag) -> Tensor;
    recv(like: &Tensor, source: Source, tag: TagMatch) -> Tensor;
    sendrecv(x: &Tensor, dest: Rank, like: &Tensor, source: Source, tag: Tag) -> Tensor;
    iall_reduce(x: &Tensor, op: Op) -> Request;
    ireduce(x: &Tensor, op: Op, root: Rank) -> Request;
    ibroadcast(x: &Tensor, root: Rank) -> Request;
    igather(x: &Tensor, axis: i64, root: Rank) -> Request;
    igather_with_counts(x: &Tensor, axis: i64, counts: &[i64], root: Rank) -> Request;
    iscatter(x: &Tensor, axis: i64, counts: i64, root: Rank) -> Request;
    iscatter.list(x: &Tensor, axis: i64, counts: &[i64], root: Rank) -> Request;
    iall_gather(x: &Tensor, axis: i64) -> Request;
    iall_gather_with_counts(x: &Tensor, axis: i64, counts: &[i64]) -> Request;
    ireduce_scatter(x: &Tensor, axis: i64, counts: i64, op: Op) -> Request;
    ireduce_scatter.list(x: &Tensor, axis: i64, counts: &[i64], op: Op) -> Request;
    iall_to_all(x: &Tensor, gather_axis: i64, scatter_axis: i64, counts: i64) -> Request;
    iall_to_all.list(x: &Tensor, gather_axis: i64, scatter_axis: i64, counts: &[i64]) -> Request;
    iall_to_all_with_counts(
        x: &Tensor, gather_axis: i64, gather_counts: &[i64], scatter_axis: i64,
        scatter_counts: &[i64],
    ) -> Request;
    iall_to_all_v(x: &Tensor, axis: i64, send: &[i64]) -> Request;
    iall_to_all_v_with_counts(x: &Tensor, axis: i64, send: &[i64], receive: &[i64]) -> Request;
    iscan(x: &Tensor, op: Op) -> Request;
    iexscan(x: &Tensor, op: Op) -> Request;
    ibarrier() -> Request;
    isend(x: &Tensor, dest: Rank, tag: Tag) -> Request;
    irecv(like: &Tensor, source: Source, tag: TagMatch) -> Request;
}

fn others() -> Vec<Operation> {
    vec![
        operation!(wait(request: Request) -> Tensor = request.wait()),
        operation!(drop_request(request: Request) -> () = {
            drop(request);
            Ok(())
        }),
        operation!(rank(communicator: Communicator) -> Rank = Ok(communicator.rank())),
        operation!(size(communicator: Communicator) -> Rank = Ok(communicator.size())),
        operation!(proc_null() -> Rank = Ok(PROC_NULL)),
        operation!(join_dummies(x: &Tensor, dummies: Vec<&Tensor>) -> Tensor
            = dummies::join_dummies(x, &dummies)),
    ]
}
