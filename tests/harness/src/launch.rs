//! The command line and environment of a job.

use std::env;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// The variable that tells a process that it is a rank, and the job's folder.
pub const FOLDER: &str = "MPI4TCH_HARNESS_FOLDER";

/// The variable that tells a rank to leave its output to the launcher.
pub const NOCAPTURE: &str = "MPI4TCH_HARNESS_NOCAPTURE";

/// The socket in a job's folder that its ranks connect to.
pub const SOCKET: &str = "socket";

/// `mpiexec -n ranks <this program>`, in a process group of its own.
pub fn command(ranks: usize, folder: &Path) -> io::Result<Command> {
    let mut command = mpiexec(ranks);
    command
        .arg(env::current_exe()?)
        .env(FOLDER, folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    Ok(command)
}

/// `mpiexec -n ranks`, ready for the program and its arguments: the launcher
/// and the environment that tests run with.
pub fn mpiexec(ranks: usize) -> Command {
    let launcher = env::var("MPI4TCH_MPIEXEC").unwrap_or_default();
    let mut words = launcher.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or(mpi_sys::MPIEXEC));
    command.args(words).arg("-n").arg(ranks.to_string());
    for (name, value) in environment() {
        if env::var_os(name).is_none() {
            command.env(name, value);
        }
    }
    command
}

/// What lets more ranks than cores run, as any user. A launcher that a
/// variable is not meant for ignores it, so all are set.
fn environment() -> Vec<(&'static str, &'static str)> {
    let mut variables = vec![
        ("OMP_NUM_THREADS", "1"),
        ("OMPI_MCA_mpi_yield_when_idle", "1"),
        // Open MPI 4 and 5 call the same thing by these two names.
        ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
        ("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe"),
    ];
    // SAFETY: `geteuid` has no preconditions.
    if unsafe { libc::geteuid() } == 0 {
        variables.extend([
            ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
            ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
            ("PRTE_ALLOW_RUN_AS_ROOT", "1"),
            ("PRTE_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
        ]);
    }
    variables
}
