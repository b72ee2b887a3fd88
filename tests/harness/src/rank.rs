//! The side of the ranks.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::RefCell;
use std::io::BufReader;
use std::os::unix::net::UnixStream;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;

use crate::message::{Command, Report};
use crate::output::{self, Redirected};
use crate::{Test, launch};

/// Carries out the commands that come through the socket in `folder` until
/// told to finish.
pub fn serve<C>(
    folder: &Path,
    start: impl FnOnce() -> (C, i32, i32),
    tests: &[Test<C>],
) -> ExitCode {
    let Ok(mut stream) = UnixStream::connect(folder.join(launch::SOCKET)) else {
        eprintln!("harness: cannot connect to the test process");
        return ExitCode::FAILURE;
    };
    let pid = std::process::id();
    let captured = match std::env::var_os(launch::NOCAPTURE) {
        Some(_) => None,
        None => Redirected::to(&output::file(folder, pid)).ok(),
    };
    let commands = receive(&stream);
    let mut report = |report: Report| {
        if report.write(&mut stream).is_err() {
            leave();
        }
    };
    report(Report::Hello { pid: i32::try_from(pid).unwrap_or_default() });
    let (context, rank, size) = start();
    report(Report::Ready { rank, size });
    remember_panics();
    for command in commands {
        // Each test, and the end, shows only what was printed since it began.
        if let Some(captured) = &captured {
            let _ = captured.clear();
        }
        match command {
            Command::Run(name) => report(match run(&name, &context, tests) {
                Ok(()) => Report::Passed,
                Err(reason) => Report::Failed(reason),
            }),
            Command::Finish => break,
        }
    }
    drop(context);
    ExitCode::SUCCESS
}

/// Receives commands on a thread of its own, which so notices that the test
/// process is gone even while this rank hangs in a call of MPI.
fn receive(stream: &UnixStream) -> mpsc::Receiver<Command> {
    let (sender, commands) = mpsc::channel();
    match stream.try_clone() {
        Ok(stream) => {
            let mut stream = BufReader::new(stream);
            thread::spawn(move || {
                while let Some(command) = Command::read(&mut stream) {
                    // The receiver is gone once the rank has finished.
                    let _ = sender.send(command);
                }
                leave();
            });
        }
        Err(_) => leave(),
    }
    commands
}

/// Ends the process at once: without its exit handlers, which may wait for the
/// threads that hang.
fn leave() -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(1) }
}

fn run<C>(name: &str, context: &C, tests: &[Test<C>]) -> Result<(), String> {
    let test = tests.iter().find(|test| test.name == name);
    let test = test.ok_or_else(|| format!(": this rank knows no test `{name}`"))?;
    match panic::catch_unwind(AssertUnwindSafe(|| (test.body)(context))) {
        Ok(outcome) => outcome,
        Err(payload) => Err(LAST_PANIC.take().unwrap_or_else(|| text(&*payload))),
    }
}

thread_local! {
    /// The text of the panic that is being caught.
    static LAST_PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps the place and message of a panic for the report; one on a thread that
/// the test has started is printed as usual.
fn remember_panics() {
    let main = thread::current().id();
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if thread::current().id() != main {
            return usual(info);
        }
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let mut panic = format!(" panicked at {place}:\n{}", text(info.payload()));
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            panic += &format!("\n{backtrace}");
        }
        LAST_PANIC.set(Some(panic));
    }));
}

fn text(payload: &dyn Any) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a value that is not text".to_owned())
}
