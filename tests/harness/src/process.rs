//! Ending processes.

use std::process::{Child, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(10);

/// Waits until `child` ends, but not longer than `limit`.
pub fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(POLL);
    }
}

/// Ends the process `pid` at once.
pub fn kill(pid: i32) {
    // SAFETY: `kill` takes any numbers; this one is the process of a rank that
    // still holds its socket open, so it was not given to another process.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

/// Ends `mpiexec`, which leads a process group, and what it started: asks
/// first, so that it can clean up, then does not.
pub fn end_group(mpiexec: &mut Child) {
    let Ok(group) = i32::try_from(mpiexec.id()) else {
        return;
    };
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        if matches!(mpiexec.try_wait(), Ok(Some(_))) {
            break;
        }
        // SAFETY: `killpg` takes any numbers; the group's leader has not been
        // waited for, so its number was not given to another process.
        unsafe { libc::killpg(group, signal) };
        wait(mpiexec, Duration::from_secs(3));
    }
}
