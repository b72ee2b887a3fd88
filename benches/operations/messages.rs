//! Messages: each rank exchanges one with a partner. The last of an odd number of ranks has none.

use mpi4tch::{Communicator, PROC_NULL, Rank, Result, wait_all};

use super::raw::TAG;
use super::work::{Operation, RawPass, Runs, Setting, on_world, random};

fn partner(s: &Setting) -> Rank {
    let partner = s.world.rank() ^ 1;
    if partner < s.world.size() { partner } else { PROC_NULL }
}

/// One rank of two sends first, and then receives; the other does so in the other order.
pub fn send_recv(s: &Setting) -> Result<Runs> {
    let (partner, leads) = (partner(s), s.world.rank() % 2 == 0);
    let x = random(&[s.count()]);
    let like = x.shallow_clone();
    let pass = |sends_first| {
        let raw = s.raw();
        RawPass::new("MPI_Send, MPI_Recv", move |from, into| {
            if sends_first {
                raw.send(from, partner);
                raw.receive(into, partner);
            } else {
                raw.receive(into, partner);
                raw.send(from, partner);
            }
        })
    };
    let call = move |comm: &Communicator, x: &_| {
        if leads {
            let _ = comm.send(x, partner, TAG)?;
            comm.recv(&like, partner, TAG)
        } else {
            let y = comm.recv(&like, partner, TAG)?;
            let _ = comm.send(x, partner, TAG)?;
            Ok(y)
        }
    };
    // Backward, the same rank sends first: the adjoint of its receive.
    Operation { x, place: on_world, call, needs_tape: true }.runs(
        s,
        vec![pass(leads)],
        vec![pass(leads)],
    )
}

/// Of the started form, `irecv`, `isend` and `wait_all`.
pub fn sendrecv(s: &Setting) -> Result<Runs> {
    let (partner, is_started) = (partner(s), s.is_started());
    let x = random(&[s.count()]);
    let like = x.shallow_clone();
    let pass = || {
        let raw = s.raw();
        let calls = if is_started { "MPI_Irecv, MPI_Isend" } else { "MPI_Sendrecv" };
        RawPass::new(calls, move |from, into| raw.exchange(from, partner, into, partner))
    };
    let call = move |comm: &Communicator, x: &_| {
        if !is_started {
            return comm.sendrecv(x, partner, &like, partner, TAG);
        }
        let requests = [comm.irecv(&like, partner, TAG)?, comm.isend(x, partner, TAG)?];
        Ok(wait_all(requests)?.remove(0))
    };
    Operation { x, place: on_world, call, needs_tape: is_started }.runs(
        s,
        vec![pass()],
        vec![pass()],
    )
}
