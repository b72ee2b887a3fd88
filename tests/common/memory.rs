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

/// The most bytes that MPICH loses for each datatype that is committed. UCX allocates 56 bytes for a
/// datatype with gaps. MPICH (3.4 to 5.0) casts their address to an `int`, and frees them only if that
/// is not negative (`MPIDI_UCX_mpi_type_free_hook`). The address of the heap is random: about half of
/// all processes lose these bytes for every datatype, the others for none. So where MPICH loses them, a
/// small leak of this crate is not seen, but it is seen on other ranks or in another run.
fn lost_per_datatype() -> i32 {
    // SAFETY: it only returns the end of the heap.
    let end = unsafe { libc::sbrk(0) }.addr();
    // SAFETY: it only reads the allocator's counters.
    let start = end.wrapping_sub(unsafe { libc::mallinfo() }.arena.cast_unsigned() as usize);
    let may_be_negative = (start | end) & 1 << 31 != 0;
    // malloc uses a block of 64 bytes, or a free one of 80, as it splits off no rest below 32 bytes.
    if mpi4tch::mpi_sys::loaded_vendor() == Vendor::Mpich && may_be_negative { 80 } else { 0 }
}

/// The same memory is allocated after more steps, except for what MPI may once allocate, and for
/// what it loses of so many datatypes in each step.
pub fn assert_flat(name: &str, datatypes: i32, mut step: impl FnMut() -> Result<()>) -> Result<()> {
    const STEPS: i32 = 300;
    let lost = STEPS * datatypes * lost_per_datatype();
    let mut rounds = Vec::new();
    for _ in 0..4 {
        rounds.push(growth(|| (0..STEPS).try_for_each(|_| step()))?);
    }
    // A leak of the smallest piece of memory in each step is 9600 bytes.
    let is_flat = rounds.iter().any(|more| *more < lost + 6000);
    assert!(is_flat, "{name}: bytes more in {STEPS} steps: {rounds:?}");
    Ok(())
}
