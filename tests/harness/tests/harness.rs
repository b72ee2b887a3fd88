//! What a user of the harness sees when tests fail, hang or die.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// A call of the fixture, with a folder for what belongs to it.
struct Fixture {
    command: Command,
    folder: PathBuf,
}

/// What came of it.
struct Outcome {
    text: String,
    code: Option<i32>,
    elapsed: Duration,
}

impl Fixture {
    /// The fixture's tests that match `arguments`, on 2 or 3 ranks as said by
    /// `ranks`; `name` is that of the calling test.
    fn new(name: &str, ranks: &str, arguments: &[&str]) -> Fixture {
        let folder = env::temp_dir().join(format!("mpi4tch-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_fixture"));
        command
            .args(arguments)
            .env("MPI4TCH_TEST_RANKS", ranks)
            .env_remove("MPI4TCH_TEST_TIMEOUT")
            .env_remove("RUST_BACKTRACE")
            .env("FIXTURE_PIDS", &folder)
            .env("TMPDIR", &folder);
        Fixture { command, folder }
    }

    fn env(mut self, name: &str, value: &str) -> Fixture {
        self.command.env(name, value);
        self
    }

    fn run(mut self) -> Outcome {
        let begin = Instant::now();
        let output = self.command.stdin(Stdio::null()).output().unwrap();
        let elapsed = begin.elapsed();
        let stdout = String::from_utf8_lossy(&output.stdout);
        let stderr = String::from_utf8_lossy(&output.stderr);
        self.assert_no_rank_is_left();
        fs::remove_dir_all(&self.folder).unwrap();
        Outcome { text: format!("{stdout}\n{stderr}"), code: output.status.code(), elapsed }
    }

    fn ranks(&self) -> Vec<i32> {
        let files = fs::read_dir(&self.folder).unwrap();
        let names = files.map(|file| file.unwrap().file_name());
        names.filter_map(|name| name.to_string_lossy().parse().ok()).collect()
    }

    /// A process that was ended a moment ago may need another to be gone.
    fn assert_no_rank_is_left(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let left: Vec<i32> = self.ranks().into_iter().filter(|pid| is_running(*pid)).collect();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "processes {left:?} are left over");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn is_running(pid: i32) -> bool {
    // SAFETY: signal 0 is not sent, it only asks whether it could be.
    unsafe { libc::kill(pid, 0) == 0 }
}

impl Outcome {
    #[track_caller]
    fn shows(&self, text: &str) -> &Outcome {
        assert!(self.text.contains(text), "`{text}` is not in:\n{}", self.text);
        self
    }

    #[track_caller]
    fn hides(&self, text: &str) -> &Outcome {
        assert!(!self.text.contains(text), "`{text}` is in:\n{}", self.text);
        self
    }

    #[track_caller]
    fn fails(&self) -> &Outcome {
        assert_eq!(self.code, Some(101), "{}", self.text);
        self
    }

    #[track_caller]
    fn succeeds(&self) -> &Outcome {
        assert_eq!(self.code, Some(0), "{}", self.text);
        self
    }
}

#[test]
fn tests_pass_on_each_rank_count() {
    let outcome = Fixture::new("pass", "3,2,1", &["passes"]).run();
    outcome
        .succeeds()
        .shows("test passes::1_rank        ... ok")
        .shows("test passes::2_ranks       ... ok")
        .shows("test passes_again::3_ranks ... ok")
        .shows("test result: ok. 6 passed; 0 failed")
        .hides("says hello");
    let place = |name| outcome.text.find(name);
    assert!(place("passes_again::2_ranks") < place("passes::3_ranks"), "{}", outcome.text);
}

#[test]
fn tests_are_listed_and_selected() {
    let list = Fixture::new("list", "2,3", &["--list"]).run();
    list.succeeds().shows("table_3::3_ranks: test").shows("finalize::2_ranks: test");
    assert_eq!(list.text.matches(": test").count(), 22);
    let exact = Fixture::new("exact", "2,3", &["--exact", "table_2::2_ranks"]).run();
    exact.succeeds().shows("test table_2::2_ranks ... ok").shows("1 passed; 0 failed");
}

#[test]
fn names_that_are_repeated_are_refused() {
    let outcome = Fixture::new("repeated", "2", &[]).env("FIXTURE_NAMES", "repeated").run();
    outcome.shows("two tests have the name panics").hides("test passes");
    assert_eq!(outcome.code, Some(1), "{}", outcome.text);
}

#[test]
fn output_passes_through_on_nocapture() {
    let outcome = Fixture::new("nocapture", "2", &["--nocapture", "passes"]).run();
    outcome.succeeds().shows("rank 0 says hello").shows("rank 1 says hello");
}

#[test]
fn a_panic_is_told_by_rank() {
    let outcome = Fixture::new("panic", "3", &["pa"]).run();
    outcome
        .fails()
        .shows("test passes::3_ranks       ... ok")
        .shows("test panics::3_ranks       ... FAILED")
        .shows("test passes_again::3_ranks ... ok")
        .shows("rank 2 panicked at tests/harness/src/bin/fixture.rs:")
        .shows("squares\nare larger")
        .shows("---- rank 0 printed ----\nrank 0 is about to look\n---- rank 1 printed")
        .hides("rank 1 panicked")
        .hides("says hello")
        .shows("2 passed; 1 failed");
}

#[test]
fn an_error_is_told_by_rank() {
    let outcome = Fixture::new("error", "2", &["returns_an_error"]).run();
    outcome.fails().shows("rank 0: the test returned the error: zero is not a number");
}

#[test]
fn those_that_wait_for_a_failed_rank_are_ended() {
    let outcome = Fixture::new("wait", "3", &["fails_while_others_wait"]).run();
    outcome
        .fails()
        .shows("this rank does not come")
        .shows("ranks 0, 2 did not report; the job was ended");
}

#[test]
fn a_hang_is_told_and_the_next_test_runs() {
    let fixture = Fixture::new("hang", "3", &["s"]).env("MPI4TCH_TEST_TIMEOUT", "6");
    let outcome = fixture.run();
    outcome
        .fails()
        .shows("test hangs::3_ranks ")
        .shows("hung: ranks 1, 2 did not report within 6.0 s")
        .shows("test passes_again::3_ranks            ... ok");
}

#[test]
fn a_death_is_told_and_the_next_test_runs() {
    for name in ["aborts", "exits"] {
        let outcome = Fixture::new(name, "2", &["--skip", "hangs", "--skip", "fails"]).run();
        outcome
            .fails()
            // The launcher ends the other rank, and that one may be gone first.
            .shows(&format!("{name}::2_ranks ----\nrank 0 ended "))
            .shows("rank 1 ended ")
            .shows(" ended in the middle of the test\n")
            .shows(" ended after it\n")
            .shows("test passes_again::2_ranks     ... ok");
    }
}

#[test]
fn a_launcher_that_starts_separate_worlds_is_told() {
    // What a launcher of another MPI does: it starts processes that know
    // nothing of each other.
    let folder = env::temp_dir().join(format!("mpi4tch-launcher-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let launcher = folder.join("mpiexec");
    fs::write(&launcher, "#!/bin/sh\nshift 2\n\"$@\" & \"$@\" & wait\n").unwrap();
    fs::set_permissions(&launcher, fs::Permissions::from_mode(0o755)).unwrap();
    let fixture = Fixture::new("worlds", "2", &["passes"]);
    let outcome = fixture.env("MPI4TCH_MPIEXEC", &launcher.to_string_lossy()).run();
    outcome.fails().shows("asked for 2 ranks, but a process says that it is rank 0 of 1");
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_missing_launcher_is_told() {
    let fixture = Fixture::new("missing", "2", &["passes"]);
    let outcome = fixture.env("MPI4TCH_MPIEXEC", "/nowhere/mpiexec").run();
    outcome.fails().shows("cannot start `/nowhere/mpiexec`");
}

#[test]
fn a_panic_at_the_start_is_told() {
    let outcome = Fixture::new("start", "2", &["passes"]).env("FIXTURE_START", "panic").run();
    outcome.fails().shows("a rank ended while it initialised MPI").shows("cannot start");
}

#[test]
fn a_hang_at_the_start_is_told_once() {
    let fixture = Fixture::new("start-hang", "2", &["passes"]).env("FIXTURE_START", "hang");
    let outcome = fixture.env("MPI4TCH_TEST_TIMEOUT", "6").run();
    outcome
        .fails()
        .shows("after 6s, 2 of 2 ranks had connected and 1 had initialised MPI")
        .shows("0 passed; 2 failed");
    assert!(outcome.elapsed < Duration::from_secs(11), "{:?}", outcome.elapsed);
}

#[test]
fn a_failure_at_the_end_is_told() {
    let fixture = Fixture::new("end", "2", &["finalize"]);
    let outcome = fixture.env("FIXTURE_END", "fail").run();
    outcome.fails().shows("the job of 2 ranks ended with exit status: 3");
    // The same where `finalize` is not selected.
    let fixture = Fixture::new("end-implied", "2", &["--exact", "passes::2_ranks"]);
    let outcome = fixture.env("FIXTURE_END", "fail").run();
    outcome.shows("the job of 2 ranks ended with exit status: 3");
    assert_eq!(outcome.code, Some(1));
}

#[test]
fn a_hang_at_the_end_is_told() {
    let fixture = Fixture::new("end-hang", "2", &["finalize"]).env("FIXTURE_END", "hang");
    let outcome = fixture.env("MPI4TCH_TEST_TIMEOUT", "6").run();
    outcome.fails().shows("the job of 2 ranks did not end within 6s");
}

#[test]
fn ranks_end_with_the_test_process() {
    let mut fixture = Fixture::new("killed", "3", &["hangs"]);
    let mut process = fixture.command.stdout(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while fixture.ranks().len() < 3 {
        assert!(Instant::now() < deadline, "the job did not start");
        thread::sleep(Duration::from_millis(20));
    }
    thread::sleep(Duration::from_secs(1));
    assert!(fixture.ranks().into_iter().all(is_running));
    process.kill().unwrap();
    process.wait().unwrap();
    fixture.assert_no_rank_is_left();
    fs::remove_dir_all(&fixture.folder).unwrap();
}

#[test]
fn wrong_settings_are_told() {
    let outcome = Fixture::new("ranks", "two", &[]).run();
    outcome.shows("MPI4TCH_TEST_RANKS is `two`, not a list of numbers as in `1,2,4`");
    assert_eq!(outcome.code, Some(1));
}
