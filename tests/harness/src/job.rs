//! A job: `mpiexec`, its ranks, and their connections.

use std::env;
use std::fs;
use std::io::{self, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::launch;
use crate::message::{Command, Report};
use crate::output::{self, Collected};
use crate::process;
use crate::settings::Settings;

const POLL: Duration = Duration::from_millis(20);
/// How long after the end of a rank its last words may arrive.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A running job. Dropping it ends all its processes.
pub struct Job {
    settings: Settings,
    size: usize,
    mpiexec: Child,
    /// In the order in which they connected.
    members: Vec<Member>,
    events: Receiver<(usize, Event)>,
    /// What `mpiexec` printed.
    printed: Collected,
    folder: Folder,
}

/// A process of the job.
struct Member {
    stream: UnixStream,
    pid: Option<i32>,
    rank: Option<i32>,
    gone: bool,
}

/// What comes from a process of the job.
enum Event {
    Report(Report),
    Gone,
}

/// How a test went on one rank.
enum Verdict {
    Passed,
    Failed(String),
    Died,
    /// Ended after another rank had died, most likely by the launcher.
    DiedWithAnother,
}

/// The folder of a job's socket and of its output; removed in the end.
struct Folder(PathBuf);

impl Job {
    /// Starts a job and waits until all its ranks have initialised MPI.
    pub fn start(size: usize, settings: &Settings) -> Result<Job, String> {
        let open = || -> io::Result<_> {
            let folder = Folder::create()?;
            let listener = UnixListener::bind(folder.0.join(launch::SOCKET))?;
            listener.set_nonblocking(true)?;
            let mut command = launch::command(size, &folder.0)?;
            if settings.nocapture {
                command.env(launch::NOCAPTURE, "1");
            }
            Ok((folder, listener, command))
        };
        let (folder, listener, mut command) =
            open().map_err(|error| format!("cannot prepare a job: {error}"))?;
        let mut mpiexec = command.spawn().map_err(|error| {
            let program = command.get_program().to_string_lossy();
            format!("cannot start `{program}`: {error}; MPI4TCH_MPIEXEC may name another launcher")
        })?;
        let printed = Collected::default();
        if let Some(pipe) = mpiexec.stdout.take() {
            printed.from(pipe, settings.nocapture);
        }
        if let Some(pipe) = mpiexec.stderr.take() {
            printed.from(pipe, settings.nocapture);
        }
        let (sender, events) = mpsc::channel();
        let mut job = Job {
            settings: settings.clone(),
            size,
            mpiexec,
            members: Vec::new(),
            events,
            printed,
            folder,
        };
        match job.assemble(&listener, &sender) {
            Ok(()) => Ok(job),
            Err(reason) => {
                Err(format!("the job `{command:?}` did not start: {reason}{}", job.last_words()))
            }
        }
    }

    /// The number of ranks.
    pub fn ranks(&self) -> usize {
        self.size
    }

    /// Lets all ranks connect, and checks that they form one world.
    fn assemble(
        &mut self,
        listener: &UnixListener,
        sender: &Sender<(usize, Event)>,
    ) -> Result<(), String> {
        let deadline = Instant::now() + self.settings.timeout;
        while self.members.iter().filter(|member| member.rank.is_some()).count() < self.size {
            while let Ok((stream, _)) = listener.accept() {
                let member = Member::new(stream, self.members.len(), sender.clone());
                self.members.push(member.map_err(|error| error.to_string())?);
            }
            match self.events.recv_timeout(POLL) {
                Ok((member, Event::Report(Report::Hello { pid }))) => {
                    self.members[member].pid = Some(pid);
                }
                Ok((member, Event::Report(Report::Ready { rank, size }))) => {
                    self.admit(member, rank, size)?;
                }
                Ok((member, Event::Gone)) => {
                    self.members[member].gone = true;
                    return Err("a rank ended while it initialised MPI".to_owned());
                }
                Ok((_, Event::Report(_))) => {
                    return Err("a rank reported on a test before it was ready".to_owned());
                }
                Err(_) => {
                    if let Ok(Some(status)) = self.mpiexec.try_wait() {
                        return Err(format!("mpiexec ended with {status}"));
                    }
                }
            }
            if Instant::now() > deadline {
                let ready = self.members.iter().filter(|member| member.rank.is_some()).count();
                return Err(format!(
                    "after {:?}, {} of {} ranks had connected and {ready} had initialised MPI",
                    self.settings.timeout,
                    self.members.len(),
                    self.size
                ));
            }
        }
        Ok(())
    }

    /// Notes the rank of a member.
    fn admit(&mut self, member: usize, rank: i32, size: i32) -> Result<(), String> {
        let in_range = usize::try_from(rank).is_ok_and(|rank| rank < self.size);
        let taken = self.members.iter().any(|member| member.rank == Some(rank));
        if usize::try_from(size) != Ok(self.size) || !in_range || taken {
            return Err(format!(
                "asked for {} ranks, but a process says that it is rank {rank} of {size}; \
                 the launcher may belong to another MPI than {} {}, which the program is \
                 linked with",
                self.size,
                mpi_sys::VENDOR,
                mpi_sys::LIBRARY_VERSION,
            ));
        }
        self.members[member].rank = Some(rank);
        Ok(())
    }

    /// Runs a test on all ranks.
    pub fn run(&mut self, name: &str) -> Result<(), String> {
        self.send(&Command::Run(name.to_owned()));
        let begin = Instant::now();
        let mut deadline = begin + self.settings.timeout;
        let mut verdicts: Vec<Option<Verdict>> = (0..self.size).map(|_| None).collect();
        let mut failed = false;
        while verdicts.iter().any(Option::is_none) && Instant::now() < deadline {
            let verdict = match self.events.recv_timeout(POLL) {
                Ok((member, Event::Report(Report::Passed))) => (member, Verdict::Passed),
                Ok((member, Event::Report(Report::Failed(reason)))) => {
                    (member, Verdict::Failed(reason))
                }
                Ok((member, Event::Gone)) => {
                    self.members[member].gone = true;
                    let mut known = verdicts.iter().flatten();
                    match known.any(|verdict| matches!(verdict, Verdict::Died)) {
                        true => (member, Verdict::DiedWithAnother),
                        false => (member, Verdict::Died),
                    }
                }
                Ok((_, Event::Report(_))) | Err(RecvTimeoutError::Timeout) => continue,
                // Every member's thread has said that it is gone.
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let (member, verdict) = verdict;
            if !failed && !matches!(verdict, Verdict::Passed) {
                failed = true;
                deadline = deadline.min(Instant::now() + self.settings.grace);
            }
            verdicts[self.place(member)] = Some(verdict);
        }
        if verdicts.iter().all(|verdict| matches!(verdict, Some(Verdict::Passed))) {
            return Ok(());
        }
        let summary = self.summary(&verdicts, begin.elapsed(), failed);
        Err(format!("{summary}{}", self.last_words()))
    }

    /// Where a member stands among the ranks.
    fn place(&self, member: usize) -> usize {
        let rank = self.members[member].rank.unwrap_or_default();
        usize::try_from(rank).unwrap_or_default()
    }

    /// A paragraph per rank that failed, and one on those that said nothing.
    fn summary(&self, verdicts: &[Option<Verdict>], elapsed: Duration, failed: bool) -> String {
        let mut text = String::new();
        let mut silent = Vec::new();
        for (rank, verdict) in verdicts.iter().enumerate() {
            match verdict {
                Some(Verdict::Passed) => {}
                Some(Verdict::Failed(reason)) => text += &format!("rank {rank}{reason}\n"),
                Some(Verdict::Died) => {
                    text += &format!("rank {rank} ended in the middle of the test\n");
                }
                Some(Verdict::DiedWithAnother) => {
                    text += &format!("rank {rank} ended after it\n");
                }
                None => silent.push(rank.to_string()),
            }
        }
        if !silent.is_empty() {
            let noun = if silent.len() == 1 { "rank" } else { "ranks" };
            let silent = silent.join(", ");
            let seconds = elapsed.as_secs_f64();
            text += &match failed {
                true => format!(
                    "{noun} {silent} did not report; the job was ended {seconds:.1} s into the test"
                ),
                false => format!("hung: {noun} {silent} did not report within {seconds:.1} s"),
            };
        }
        text.trim_end().to_owned()
    }

    /// Lets the ranks finalize MPI and looks at the exit status.
    pub fn finish(mut self) -> Result<(), String> {
        self.send(&Command::Finish);
        let reason = match process::wait(&mut self.mpiexec, self.settings.timeout) {
            Some(status) if status.success() => {
                self.members.clear();
                return Ok(());
            }
            Some(status) => ended(status),
            None => format!(
                "did not end within {:?} of being told to finalize MPI",
                self.settings.timeout
            ),
        };
        let words = self.last_words();
        Err(format!("the job of {} ranks {reason}{words}", self.size))
    }

    fn send(&mut self, command: &Command) {
        for member in &mut self.members {
            // A member that is gone says so by its own event.
            let _ = command.write(&mut member.stream);
        }
    }

    /// How the launcher ended, if it did, and what was printed.
    fn last_words(&mut self) -> String {
        let mut text = String::new();
        // If a rank has died, the launcher is about to notice.
        if let Some(status) = process::wait(&mut self.mpiexec, LAST_WORDS) {
            text += &format!("\nmpiexec {}", ended(status));
        }
        let mut members: Vec<&Member> = self.members.iter().collect();
        members.sort_by_key(|member| member.rank);
        for member in members {
            let pid = member.pid.unwrap_or_default();
            let name = match member.rank {
                Some(rank) => format!("rank {rank}"),
                None => format!("process {pid}"),
            };
            let printed = output::tail(&output::file(&self.folder.0, pid));
            if !printed.is_empty() {
                text += &format!("\n---- {name} printed ----\n{printed}");
            }
        }
        let printed = self.printed.take();
        if !printed.is_empty() {
            text += &format!("\n---- mpiexec printed ----\n{printed}");
        }
        text
    }
}

fn ended(status: ExitStatus) -> String {
    format!("ended with {status}")
}

impl Drop for Job {
    fn drop(&mut self) {
        // Launchers put ranks into process groups of their own, so each rank
        // is ended by its number, and again by the loss of its connection.
        for member in self.members.iter().filter(|member| !member.gone) {
            if let Some(pid) = member.pid {
                process::kill(pid);
            }
        }
        self.members.clear();
        process::end_group(&mut self.mpiexec);
    }
}

impl Member {
    /// Passes on what comes through `stream`, on a thread that ends with it.
    fn new(stream: UnixStream, index: usize, sender: Sender<(usize, Event)>) -> io::Result<Member> {
        stream.set_nonblocking(false)?;
        let mut reports = BufReader::new(stream.try_clone()?);
        thread::spawn(move || {
            while let Some(report) = Report::read(&mut reports) {
                if sender.send((index, Event::Report(report))).is_err() {
                    return;
                }
            }
            // The job may have been dropped already.
            let _ = sender.send((index, Event::Gone));
        });
        Ok(Member { stream, pid: None, rank: None, gone: false })
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // Closing is not enough: the thread holds the connection, too.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

impl Folder {
    fn create() -> io::Result<Folder> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("mpi4tch-test-{}-{count}", std::process::id());
        let path = env::temp_dir().join(name);
        // One may be left by a process that had the same number and died.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path)?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
