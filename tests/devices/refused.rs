//! Devices that MPI cannot be given, and calls of which one tensor is elsewhere.

use mpi4tch::{Communicator, Error, Op, Replicated, Result, testing};
use tch::{Kind, Tensor};

use crate::common::ring::neighbours;
use crate::common::{Context, without_lines, works};
use crate::{Place, leaf};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![devices_that_have_no_memory, on_one_rank_only, tensors_of_several_devices]
}

type Call = fn(&Communicator, &Tensor) -> Result<Tensor>;

/// libtorch's `meta` has shapes and no elements.
fn devices_that_have_no_memory(context: &Context) -> Result<()> {
    let world = &context.world;
    let calls: [(&str, Call); 9] = [
        ("all_reduce", |c, x| c.all_reduce(x, Op::Sum)),
        ("all_reduce", |c, x| c.iall_reduce(x, Op::Max)?.wait()),
        ("all_gather", |c, x| c.all_gather(x, 0)),
        ("scatter", |c, x| c.scatter(x, 0, 1, 0)),
        ("send", |c, x| c.send(x, 0, 0)),
        ("send", |c, x| c.isend(x, 0, 0)?.wait()),
        ("recv", |c, x| c.recv(x, 0, 0)),
        ("recv", |c, x| c.irecv(x, 0, 0)?.wait()),
        ("Replicated::sum", |c, x| Ok(Replicated::sum(c, x)?.tensor().shallow_clone())),
    ];
    let meta = stand_in::meta(&testing::random(world, &[2], Kind::Double)?);
    for x in [meta.shallow_clone(), meta.set_requires_grad(true)] {
        for (name, call) in calls {
            let error = call(world, &x).expect_err(name);
            assert!(matches!(error, Error::Device { .. }), "{error:?}");
            let text = error.to_string();
            assert!(text.starts_with(&format!("{name}: ")) && text.contains("meta"), "{text}");
            works(world)?;
        }
    }
    Ok(())
}

fn on_one_rank_only(context: &Context) -> Result<()> {
    let world = &context.world;
    let last = world.size() - 1;
    let x = testing::random(world, &[2], Kind::Double)?;
    let mine = if world.rank() == last { stand_in::meta(&x) } else { x };
    let error = world.all_reduce(&mine, Op::Sum).expect_err("on all ranks");
    if world.rank() == last {
        assert!(matches!(error, Error::Device { .. }), "{error:?}");
    } else {
        let text = without_lines(&error);
        assert!(
            text.starts_with("the ranks disagree on a call:\n  refused: all_reduce: "),
            "{text}"
        );
        assert!(text.ends_with(&format!(" on rank {last}")), "{text}");
    }
    works(world)
}

/// What is received by the same call is where the tensor that is sent is.
fn tensors_of_several_devices(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let name = |place: Place| place.map_or_else(|| "cpu".to_owned(), |i| format!("stand_in:{i}"));
    for (from, to) in [(Some(0), None), (None, Some(1)), (Some(0), Some(1))] {
        let x = testing::random(world, &[2], Kind::Double)?;
        let (x, like) = (leaf(&x, from), leaf(&x, to));
        let error = world.sendrecv(&x, right, &like, left, 0).expect_err("two devices");
        let (from, to) = (name(from), name(to));
        let text =
            format!("sendrecv: `like` is on device {to}; `x` is on {from}, where it is needed");
        assert_eq!(error.to_string(), text);
        works(world)?;
    }
    Ok(())
}
