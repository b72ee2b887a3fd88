//! The memory of this process.

use mpi4tch::Result;
use mpi4tch::mpi_sys::Vendor;

/// The bytes that this process has allocated and not freed; the counter wraps around. Its resident
/// memory says less: glibc before 2.38 does not use a freed block of aligned memory for the next of
/// that size.
fn allocated() -> u32 {
    // SAFETY: it only reads the allocator's counters.
    let info = unsafe { libc::mallinfo() };
    info.uordblks.cast_unsigned().wrapping_add(info.hblkhd.cast_unsigned())
}

/// How many more bytes are allocated after `f` than before; less than 2 GiB.
pub fn growth(f: impl FnOnce() -> Result<()>) -> Result<i32> {
    let before = allocated();
    f()?;
    Ok(allocated().wrapping_sub(before).cast_signed())
}

/// The bytes that MPICH 4.0 loses for each datatype that is committed: also a program that makes,
/// commits and frees a datatype in a loop takes more and more memory.
pub const DATATYPE: i32 = 64;

/// The same memory is allocated after more steps, except for what MPI may once allocate, and for
/// what MPICH loses in each step: so many bytes.
pub fn assert_flat(
    name: &str,
    lost_by_mpich: i32,
    mut step: impl FnMut() -> Result<()>,
) -> Result<()> {
    const STEPS: i32 = 300;
    let lost = match mpi4tch::mpi_sys::loaded_vendor() {
        Vendor::Mpich => STEPS * lost_by_mpich,
        _ => 0,
    };
    let mut rounds = Vec::new();
    for _ in 0..4 {
        rounds.push(growth(|| (0..STEPS).try_for_each(|_| step()))?);
    }
    // A leak of the smallest piece of memory in each step is 9600 bytes.
    let is_flat = rounds.iter().any(|more| *more < lost + 6000);
    assert!(is_flat, "{name}: bytes more in {STEPS} steps: {rounds:?}");
    Ok(())
}
