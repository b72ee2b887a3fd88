//! One-sided communication: every rank writes into a table on rank 0, and adds to a counter
//! there, while rank 0 itself makes no matching call.
//!
//! ```sh
//! cargo build --example one_sided && mpiexec -n 4 target/debug/examples/one_sided
//! ```

use std::ptr;

use mpi_sys::*;

fn main() {
    // SAFETY: null stands for the arguments of the program.
    assert_eq!(unsafe { MPI_Init(ptr::null_mut(), ptr::null_mut()) }, MPI_SUCCESS);
    run();
    // SAFETY: no communication is under way.
    assert_eq!(unsafe { MPI_Finalize() }, MPI_SUCCESS);
}

/// The table and the counter, on the ranks of `MPI_COMM_WORLD`.
pub fn run() {
    let (mut rank, mut size) = (-1, -1);
    // SAFETY: `rank` is a place for the result.
    unsafe { MPI_Comm_rank(MPI_COMM_WORLD, &mut rank) };
    // SAFETY: `size` is a place for the result.
    unsafe { MPI_Comm_size(MPI_COMM_WORLD, &mut size) };

    // Rank 0 has the counter, and after it a number for each rank; the others have no memory
    // that can be accessed.
    let length = if rank == 0 { 1 + usize::try_from(size).expect("a size") } else { 0 };
    let (mut window, memory) = allocate(length);
    for i in 0..length {
        // SAFETY: `memory` has `length` elements, and no other rank has access before the fence.
        unsafe { memory.add(i).write(0) };
    }
    fence(MPI_MODE_NOPRECEDE, window);

    let (square, one) = (i64::from(rank) * i64::from(rank), 1_i64);
    let number = (&raw const square).cast();
    let place = MPI_Aint::try_from(1 + rank).expect("a small number");
    // SAFETY: `square` lives beyond the next fence, and rank 0 has an element at `place`, to
    // which no other rank writes.
    unsafe { MPI_Put(number, 1, MPI_INT64_T, 0, place, 1, MPI_INT64_T, window) };
    let number = (&raw const one).cast();
    // SAFETY: `one` lives beyond the next fence, and rank 0 has an element at 0, which all ranks
    // access by the same operation.
    unsafe { MPI_Accumulate(number, 1, MPI_INT64_T, 0, 0, 1, MPI_INT64_T, MPI_SUM, window) };
    fence(MPI_MODE_NOSUCCEED, window);

    if rank == 0 {
        // SAFETY: `memory` has `length` elements, and the fence has completed all access.
        let table = unsafe { std::slice::from_raw_parts(memory, length) };
        assert_eq!(table[0], i64::from(size));
        assert!((0..i64::from(size)).map(|rank| rank * rank).eq(table[1..].iter().copied()));
        println!("{} ranks have written {:?}", table[0], &table[1..]);
    }
    // SAFETY: all access is complete, and the memory is not used any more.
    unsafe { MPI_Win_free(&mut window) };
}

/// A window of `length` elements, and their address. MPI allocates them, which may make access
/// faster than that to memory of the program.
fn allocate(length: usize) -> (MPI_Win, *mut i64) {
    const UNIT: i32 = 8;
    let bytes = MPI_Aint::try_from(length * size_of::<i64>()).expect("a small number");
    let mut memory: *mut i64 = ptr::null_mut();
    let address = (&raw mut memory).cast();
    let mut window = MPI_WIN_NULL;
    // SAFETY: `address` and `window` are places for the results.
    unsafe { MPI_Win_allocate(bytes, UNIT, MPI_INFO_NULL, MPI_COMM_WORLD, address, &mut window) };
    (window, memory)
}

/// Completes the access of all ranks.
fn fence(assertion: i32, window: MPI_Win) {
    // SAFETY: the window is valid, and all ranks make the fence.
    unsafe { MPI_Win_fence(assertion, window) };
}
