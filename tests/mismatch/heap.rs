//! glibc's checks of the heap, with which the ranks run: a byte that was written behind a block ends
//! the process when the block is freed, and fresh memory is filled with a pattern.

use std::hint::black_box;
use std::process::{Command, ExitCode, Stdio};

use mpi4tch::Result;

use crate::Test;
use crate::common::Context;

pub const TESTS: [Test; 1] = [("the_heap_is_checked", the_heap_is_checked)];

/// The argument of a process that is to write behind a block.
const OVERRUN: &str = "--overrun";

/// Turns the checks on for the jobs that this process starts.
pub fn turn_checks_on() {
    // From glibc 2.34 on, the checks are in a library of their own.
    let mut preload = "libc_malloc_debug.so.0".to_owned();
    if let Ok(others) = std::env::var("LD_PRELOAD") {
        preload = format!("{others}:{preload}");
    }
    for (name, value) in
        [("LD_PRELOAD", &*preload), ("MALLOC_CHECK_", "3"), ("MALLOC_PERTURB_", "171")]
    {
        // SAFETY: there is no other thread yet.
        unsafe { std::env::set_var(name, value) };
    }
}

/// The checks do see a single byte: all other tests rely on that.
fn the_heap_is_checked(context: &Context) -> Result<()> {
    if context.world.rank() == 0 {
        let mut overrun = Command::new(std::env::current_exe().expect("this program has a path"));
        let outcome = overrun.arg(OVERRUN).stderr(Stdio::null()).status();
        assert!(!outcome.expect("this program starts").success(), "the heap is not checked");
    }
    Ok(())
}

pub fn is_to_overrun() -> bool {
    std::env::args().nth(1).is_some_and(|argument| argument == OVERRUN)
}

/// Does what the tests look for.
pub fn overrun() -> ExitCode {
    let mut block = black_box(vec![0_u8; 1000]);
    // SAFETY: none, which is the point. The byte behind the block is the heap's own.
    unsafe { block.as_mut_ptr().add(1000).write_volatile(1) };
    drop(block);
    ExitCode::SUCCESS
}
