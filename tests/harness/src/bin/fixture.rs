//! A test file whose tests go wrong in every way; what the harness makes of it
//! is looked at in `tests/harness.rs`.
//!
//! `FIXTURE_START` and `FIXTURE_END` say how to misbehave outside the tests; with
//! `FIXTURE_NAMES=repeated` two tests have one name.
//! Each rank leaves a file, named by its process number, in `FIXTURE_PIDS`.

use std::env;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::{self, ExitCode};
use std::ptr;
use std::thread;
use std::time::Duration;

use harness::Test;
use mpi_sys::*;

fn main() -> ExitCode {
    let mut tests = harness::tests![
        passes,
        panics,
        returns_an_error,
        fails_while_others_wait,
        hangs,
        aborts,
        exits,
        passes_again
    ];
    tests.extend([2, 3].map(|n| {
        Test::new(format!("table_{n}"), move |context: &Context| {
            assert!(context.rank < 5, "no rank of table {n} is so high");
        })
    }));
    if env::var("FIXTURE_NAMES").as_deref() == Ok("repeated") {
        tests.push(Test::new("panics", passes));
    }
    harness::run(start, tests)
}

struct Context {
    rank: i32,
}

fn start() -> (Context, i32, i32) {
    if let Ok(folder) = env::var("FIXTURE_PIDS") {
        let file = Path::new(&folder).join(process::id().to_string());
        fs::write(file, "").expect("FIXTURE_PIDS is a folder");
    }
    let (mut provided, mut rank, mut size) = (0, -1, -1);
    // SAFETY: MPI was not initialised before; both null pointers are allowed.
    let code = unsafe {
        MPI_Init_thread(ptr::null_mut(), ptr::null_mut(), MPI_THREAD_FUNNELED, &mut provided)
    };
    assert_eq!(code, MPI_SUCCESS);
    // SAFETY: MPI is initialised, and `rank` is a place for the result.
    let code = unsafe { MPI_Comm_rank(MPI_COMM_WORLD, &mut rank) };
    assert_eq!(code, MPI_SUCCESS);
    // SAFETY: MPI is initialised, and `size` is a place for the result.
    let code = unsafe { MPI_Comm_size(MPI_COMM_WORLD, &mut size) };
    assert_eq!(code, MPI_SUCCESS);
    match env::var("FIXTURE_START").as_deref() {
        Ok("hang") if rank == 1 => sleep(),
        Ok("panic") if rank == 1 => panic!("cannot start"),
        _ => {}
    }
    (Context { rank }, rank, size)
}

impl Drop for Context {
    fn drop(&mut self) {
        match env::var("FIXTURE_END").as_deref() {
            Ok("hang") if self.rank == 1 => sleep(),
            // SAFETY: MPI is initialised, and nothing is under way.
            _ => unsafe { MPI_Finalize() },
        };
        if env::var("FIXTURE_END").as_deref() == Ok("fail") {
            process::exit(3);
        }
    }
}

fn passes(context: &Context) {
    println!("rank {} says hello", context.rank);
}

fn passes_again(_: &Context) {
    barrier();
}

fn panics(context: &Context) {
    println!("rank {} is about to look", context.rank);
    assert_eq!(context.rank * context.rank, context.rank, "squares\nare larger");
}

fn returns_an_error(context: &Context) -> Result<(), Box<dyn Error>> {
    match context.rank {
        0 => Err("zero is not a number")?,
        _ => Ok(()),
    }
}

fn fails_while_others_wait(context: &Context) {
    assert_ne!(context.rank, 1, "this rank does not come");
    barrier();
}

fn hangs(context: &Context) {
    match context.rank {
        0 => {}
        1 => sleep(),
        _ => barrier(),
    }
}

fn aborts(context: &Context) {
    match context.rank {
        1 => process::abort(),
        _ => barrier(),
    }
}

fn exits(context: &Context) {
    match context.rank {
        1 => process::exit(0),
        _ => barrier(),
    }
}

fn barrier() {
    // SAFETY: MPI is initialised.
    let code = unsafe { MPI_Barrier(MPI_COMM_WORLD) };
    assert_eq!(code, MPI_SUCCESS);
}

fn sleep() -> ! {
    loop {
        thread::sleep(Duration::from_secs(1));
    }
}
