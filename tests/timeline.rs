//! `MPI4TCH_TRACE`: one file with what all ranks did, and when. And the spans of the crate `tracing`.

#[path = "common/job.rs"]
mod job;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use mpi4tch::{Halo, Op, Result, Source, Universe, wait_all};
use serde_json::Value;
use tch::{Device, Kind, Tensor};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

#[path = "../examples/timeline.rs"]
#[expect(dead_code, reason = "its main is another program's")]
mod timeline;

const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

/// The bytes of most tensors here: three doubles.
const BYTES: i64 = 24;

/// What the ranks of the jobs carry out.
#[test]
fn rank() {
    if job::is_rank_of("program") {
        let universe = mpi4tch::initialize().expect("MPI starts");
        program(&universe).expect("no call fails");
        universe.finalize().expect("nothing is left");
    }
    if job::is_rank_of("told") {
        let name = ["OMPI_COMM_WORLD_RANK", "PMI_RANK"];
        let rank = name.iter().find_map(|name| std::env::var(name).ok());
        if rank.as_deref() != Some("1") {
            // SAFETY: nothing else runs in this process yet.
            unsafe { std::env::remove_var("MPI4TCH_TRACE") };
        }
        let universe = mpi4tch::initialize().expect("MPI starts");
        universe.world().barrier().expect("all are here");
    }
    if job::is_rank_of("aborts") {
        let universe = mpi4tch::initialize().expect("MPI starts");
        let world = universe.world();
        let _ = world.all_reduce(&x(), Op::Sum).expect("all are here");
        // Time for rank 1, which does not know that it is ended, to write its events.
        std::thread::sleep(std::time::Duration::from_secs(2));
        match world.rank() {
            0 => world.abort(3),
            _ => drop(world.recv(&x(), 0, 0)),
        }
    }
    if job::is_rank_of("long") {
        let universe = mpi4tch::initialize().expect("MPI starts");
        long(&universe).expect("no call fails");
    }
    if job::is_rank_of("spans") {
        spans();
    }
    if job::is_rank_of("picture") {
        pictures();
    }
}

fn x() -> Tensor {
    Tensor::ones([3], DOUBLE).set_requires_grad(true)
}

/// A call: its name, pass, bytes, and the other ranks, tag or root: `to`, `from`, `tag`, `root`.
type Call = (&'static str, &'static str, i64, [Option<i32>; 4]);

const NO_RANK: [Option<i32>; 4] = [None; 4];

/// The calls of [`program`] on the tape, in their order, as far as rank and size tell.
fn calls_on_tape(rank: i32, size: i32) -> Vec<Call> {
    let (right, left) = (Some((rank + 1) % size), Some((rank + size - 1) % size));
    let all = i64::from(size) * BYTES;
    let mut calls = vec![
        ("all_reduce", "forward", BYTES, NO_RANK),
        ("broadcast", "forward", BYTES, [None, None, None, Some(size - 1)]),
        ("all_gather", "forward", all, NO_RANK),
        ("iall_reduce", "forward", BYTES, NO_RANK),
        ("isend", "forward", BYTES, [right, None, Some(3), None]),
        ("isend", "forward", BYTES, [right, None, Some(3), None]),
        ("recv", "forward", BYTES, [None, left, Some(3), None]),
        // From any rank: which one it was is known only after the wait.
        ("irecv", "forward", BYTES, NO_RANK),
        ("sendrecv", "forward", BYTES, [right, left, Some(4), None]),
    ];
    if rank == 0 {
        // From any rank, in any order.
        calls.extend((1..size).map(|_| ("recv", "forward", BYTES, [None, None, Some(5), None])));
    } else {
        calls.push(("send", "forward", BYTES, [Some(0), None, Some(5), None]));
    }
    calls.push(("halo_exchange", "forward", BYTES + 16, NO_RANK));
    calls.push(("ihalo_exchange", "forward", BYTES + 16, NO_RANK));
    calls.push(("all_reduce", "forward", BYTES, NO_RANK));
    calls.push(("barrier", "forward", 0, NO_RANK));
    calls
}

/// Blocking and started calls, messages, also from any rank, a smaller communicator, a grid, a backward
/// pass by a tape and one without.
fn program(universe: &Universe) -> Result<()> {
    let world = universe.world();
    let (rank, size) = (world.rank(), world.size());
    let (right, left) = ((rank + 1) % size, (rank + size - 1) % size);
    let x = x();
    let tape = world.tape();
    let half = tape.split(Some(rank % 2), 0)?.expect("each rank has a color");
    let ring = tape.cartesian(&[0], &[true], false)?.expect("all ranks are in it");

    let sum = tape.all_reduce(&x, Op::Sum)?;
    let told = tape.broadcast(&sum, size - 1)?;
    let all = tape.all_gather(&told, 0)?;
    let started = tape.iall_reduce(&x, Op::Sum)?.wait()?;
    let sends = [tape.isend(&x, right, 3)?, tape.isend(&x, right, 3)?];
    let first = tape.recv(&x, left, 3)?;
    let second = tape.irecv(&x, Source::Any, 3)?.wait()?;
    let sent = wait_all(sends)?;
    let shifted = tape.sendrecv(&x, right, &x, left, 4)?;
    let mut parts = vec![sum, told, all, started, first, second, shifted];
    parts.extend(sent);
    if rank == 0 {
        for _ in 1..size {
            parts.push(tape.recv(&x, Source::Any, 5)?);
        }
    } else {
        parts.push(tape.send(&x, 0, 5)?);
    }
    let halo = [Halo { axis: 0, along: 0, before: 1, after: 1 }];
    parts.push(ring.halo_exchange(&x, &halo)?);
    parts.push(ring.ihalo_exchange(&x, &halo)?.wait()?);
    parts.push(half.all_reduce(&x, Op::Max)?);
    tape.barrier()?;
    let loss: Tensor = parts.iter().map(|part| part.sum(Kind::Double)).sum();
    tape.backward(&loss)?;

    // Without a tape, and in place.
    let y = world.reduce(&x, Op::Sum, 0)?;
    y.sum(Kind::Double).f_backward()?;
    let mut z = x.detach();
    world.all_reduce_(&mut z, Op::Sum)?;
    if size > 1 {
        // Only started here, never waited for.
        let request = world.isend(&z, right, 9)?;
        let _ = world.recv(&z, left, 9)?;
        drop(request);
    }
    Ok(())
}

/// The folder of a test.
fn place(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("timeline").join(name)
}

/// The same, which is not there any more.
fn folder(name: &str) -> PathBuf {
    let folder = place(name);
    let _ = fs::remove_dir_all(&folder);
    folder
}

fn text(event: &Value, name: &str) -> String {
    event[name].as_str().unwrap_or_else(|| panic!("{name} is no text in {event}")).to_owned()
}

fn number(event: &Value, name: &str) -> f64 {
    event[name].as_f64().unwrap_or_else(|| panic!("{name} is no number in {event}"))
}

/// The time, rounded to nanoseconds, as the difference of decimal numbers is not exact.
fn nanoseconds(microseconds: f64) -> i64 {
    #[allow(clippy::cast_possible_truncation, reason = "a job takes less than 292 years")]
    let nanoseconds = (microseconds * 1e3).round() as i64;
    nanoseconds
}

fn begin(event: &Value) -> i64 {
    nanoseconds(number(event, "ts"))
}

fn end(event: &Value) -> i64 {
    nanoseconds(number(event, "ts") + number(event, "dur"))
}

/// A thread of a rank.
fn line(event: &Value) -> (i64, i64) {
    let place = |name: &str| event[name].as_i64().unwrap_or_else(|| panic!("no {name} in {event}"));
    (place("pid"), place("tid"))
}

/// A file of a timeline.
struct File {
    events: Vec<Value>,
    /// How far the clock of each rank may be off, in nanoseconds.
    errors: BTreeMap<i64, i64>,
}

impl File {
    fn read(folder: &Path) -> Self {
        let text = fs::read_to_string(folder.join("timeline.json")).expect("the file is there");
        let whole: Value = serde_json::from_str(&text).expect("it is JSON");
        let Value::Array(events) = &whole["traceEvents"] else { panic!("no list of events") };
        let clocks = events.iter().filter(|event| event["name"] == "process_labels");
        let error = |event: &Value| nanoseconds(number(&event["args"], "clock_error_us"));
        let errors = clocks.map(|event| (line(event).0, error(event))).collect();
        Self { events: events.clone(), errors }
    }

    fn of_kind(&self, ph: &str) -> impl Iterator<Item = &Value> {
        self.events.iter().filter(move |event| event["ph"] == ph)
    }

    /// The calls of a rank, in their order.
    fn calls(&self, rank: i32) -> Vec<&Value> {
        let own = self.of_kind("X").filter(|event| event["pid"] == rank && event["cat"] != "wait");
        let mut calls: Vec<&Value> =
            own.filter(|event| !event["args"]["number"].is_null()).collect();
        calls.sort_by_key(|event| event["args"]["number"].as_u64());
        calls
    }

    /// The call around a point of a thread: the innermost.
    fn call_at(&self, point: &Value) -> &Value {
        let at = begin(point);
        let around = self.of_kind("X").filter(|call| {
            line(call) == line(point)
                && begin(call) <= at
                && at <= end(call)
                && call["cat"] != "wait"
        });
        around.max_by_key(|call| begin(call)).unwrap_or_else(|| panic!("no call around {point}"))
    }

    /// The arrows of a category: start and end.
    fn arrows(&self, category: &str) -> Vec<(&Value, &Value)> {
        let mut ends: BTreeMap<String, [Vec<&Value>; 2]> = BTreeMap::new();
        for (i, ph) in ["s", "f"].into_iter().enumerate() {
            for event in self.of_kind(ph).filter(|event| event["cat"] == category) {
                ends.entry(text(event, "id")).or_default()[i].push(event);
            }
        }
        for (id, [starts, ends]) in &ends {
            assert_eq!((starts.len(), ends.len()), (1, 1), "one arrow is {id}");
            let (start, end) = (starts[0], ends[0]);
            let error = self.errors[&line(start).0] + self.errors[&line(end).0];
            assert!(begin(end) + error >= begin(start), "{id} ends before it starts");
            assert_eq!(end["bp"], "e", "{end}");
        }
        ends.into_values().map(|[starts, ends]| (starts[0], ends[0])).collect()
    }
}

/// The name of a call without the `i` of a started one.
fn name(call: &Value) -> String {
    let name = text(call, "name");
    name.strip_prefix('i').map(str::to_owned).unwrap_or(name)
}

#[test]
fn the_file_has_all_calls_of_all_ranks() {
    for ranks in [1, 2, 3, 5] {
        let folder = folder(&ranks.to_string()).join("made with its parents");
        let path = folder.to_str().expect("the path is UTF-8");
        let outcome = job::run("program", ranks, &[("MPI4TCH_TRACE", path)]);
        assert!(outcome.status.success() && outcome.printed.contains("1 passed"), "{outcome:?}");
        // One send was never waited for, which is said; nothing is said of the timeline.
        assert!(!outcome.printed.contains("timeline is"), "{outcome:?}");
        assert!(!outcome.printed.contains("cannot write"), "{outcome:?}");
        let files: Vec<_> = fs::read_dir(&folder).expect("it is there").collect();
        assert_eq!(files.len(), 1, "{files:?}");
        let (file, size) = (File::read(&folder), i32::try_from(ranks).expect("it is small"));
        assert_eq!(file.errors.len(), ranks);
        for rank in 0..size {
            has_calls_on_tape(&file, rank, size);
            has_other_calls(&file, rank, size);
        }
        has_arrows(&file, size);
        is_well_formed(&file);
    }
}

fn has_calls_on_tape(file: &File, rank: i32, size: i32) {
    let calls = file.calls(rank);
    let on_tape = calls.iter().filter(|call| !call["args"]["tape"].is_null());
    let on_tape: Vec<&&Value> = on_tape.filter(|call| call["cat"] == "forward").collect();
    let expected = calls_on_tape(rank, size);
    assert_eq!(on_tape.len(), expected.len(), "{on_tape:?}");
    let mut last = 0;
    for (call, (name, pass, bytes, ranks)) in on_tape.iter().zip(expected) {
        let args = &call["args"];
        assert_eq!((&call["name"], &call["cat"]), (&name.into(), &pass.into()), "{call}");
        assert_eq!(args["bytes"], bytes, "{call}");
        let kind = if name == "barrier" { "Float" } else { "Double" };
        assert_eq!(args["kind"], kind, "{call}");
        for (name, expected) in ["to", "from", "tag", "root"].into_iter().zip(ranks) {
            // From which rank a message came that could come from any is checked by its arrow.
            let is_any = name == "from" && args["tag"] == 5 && rank == 0;
            if is_any {
                assert!((1..size).any(|from| args[name] == from), "{call}");
            } else {
                assert_eq!(args[name].as_i64(), expected.map(i64::from), "{name} of {call}");
            }
        }
        assert!(text(args, "line").starts_with("tests/timeline.rs:"), "{call}");
        let made = text(args, "communicator");
        assert!(made.contains(", made by "), "{call}");
        let place = args["tape"].as_u64().unwrap_or(0);
        assert!(place > last, "{call} is after {last}");
        last = place;
        let waited = number(args, "waited_us");
        let is_started = text(call, "name").starts_with('i');
        assert!(waited >= 0.0 && (is_started || waited <= number(call, "dur") + 1e-3), "{call}");
    }
    let of_half =
        on_tape.iter().filter(|call| text(&call["args"], "communicator").contains("split"));
    assert_eq!(of_half.count(), 1);
}

fn has_other_calls(file: &File, rank: i32, size: i32) {
    let calls = file.calls(rank);
    let count = |name: &str, pass: &str| {
        calls.iter().filter(|call| call["name"] == name && call["cat"] == pass).count()
    };
    assert_eq!(count("split", "forward") + count("cartesian", "forward"), 2);
    assert_eq!(count("reduce", "forward"), 1);
    // Its adjoint, and no other broadcast, as that of the tape has a reduction as its adjoint.
    assert_eq!(count("broadcast", "backward"), 1);
    assert_eq!(count("reduce", "backward"), 1);
    assert_eq!(count("reduce_scatter", "backward"), 1);
    assert_eq!(count("halo_exchange", "backward") + count("ihalo_exchange", "backward"), 2);
    assert_eq!(count("barrier", "backward"), 1);
    assert_eq!(count("sendrecv", "backward"), 1);
    // On the tape, in place, and not on it.
    assert_eq!(count("all_reduce", "forward"), 3);
    assert_eq!(count("all_reduce", "backward"), 2);
    assert_eq!(count("iall_reduce", "backward"), 1);
    // Those of two started sends, of a blocking and a started receive, and of those to rank 0.
    let to_zero = if rank == 0 { size - 1 } else { 0 };
    let sends = count("send", "backward") + count("isend", "backward");
    assert_eq!(sends, usize::try_from(2 + to_zero).expect("it is small"));
    let receives = count("recv", "backward") + count("irecv", "backward");
    assert_eq!(receives, 2 + usize::from(rank != 0));
    // The pass of the tape is around its adjoints.
    let pass = file.of_kind("X").find(|e| e["name"] == "Tape::backward" && e["pid"] == rank);
    let pass = pass.expect("the pass is there");
    let adjoint = calls.iter().find(|call| call["cat"] == "backward").expect("there is one");
    assert!(begin(pass) <= begin(adjoint) && end(adjoint) <= end(pass));
}

fn has_arrows(file: &File, size: i32) {
    let messages = file.arrows("message");
    let is_message = |call: &Value| matches!(&*name(call), "send" | "recv" | "sendrecv");
    for (start, end) in &messages {
        let (sender, receiver) = (file.call_at(start), file.call_at(end));
        // Of a started receive, the arrow ends in the wait.
        let receives = receiver["args"].get("call").unwrap_or(&receiver["name"]);
        assert_eq!(sender["cat"], receiver["cat"]);
        if is_message(sender) {
            assert_eq!(sender["args"]["to"], end["pid"], "{sender} {receiver}");
            assert_eq!(receiver["args"]["from"], start["pid"], "{sender} {receiver}");
            assert_eq!(sender["args"]["tag"], receiver["args"]["tag"]);
            assert_eq!(sender["args"]["bytes"], receiver["args"]["bytes"]);
        } else {
            assert_eq!(name(sender), "halo_exchange");
            assert!(receives.as_str().is_some_and(|name| name.ends_with("halo_exchange")));
        }
    }
    // Each call that sends has one arrow, and so has each that receives.
    for rank in 0..size {
        for call in file.calls(rank).into_iter().filter(|call| is_message(call)) {
            let (of, who) = (&call["args"]["number"], &call["pid"]);
            let starts = messages
                .iter()
                .filter(|(start, _)| start["args"]["number"] == *of && start["pid"] == *who);
            let ends = messages
                .iter()
                .filter(|(_, end)| end["args"]["number"] == *of && end["pid"] == *who);
            let expected = match &*name(call) {
                "send" => (1, 0),
                "recv" => (0, 1),
                _ => (1, 1),
            };
            assert_eq!((starts.count(), ends.count()), expected, "{call}");
        }
    }
    // Two ghosts, there and back, for each of two exchanges and their adjoints.
    let of_halos = messages.iter().filter(|(start, _)| text(start, "id").contains("exchange"));
    assert_eq!(of_halos.count(), 8 * usize::try_from(size).expect("it is small"));

    // Each recorded call has an arrow to an adjoint, and each adjoint has one from its call.
    let adjoints = file.arrows("adjoint");
    for rank in 0..size {
        let mut seen = BTreeSet::new();
        for (start, end) in adjoints.iter().filter(|(start, _)| start["pid"] == rank) {
            let (call, adjoint) = (file.call_at(start), file.call_at(end));
            assert_eq!(adjoint["args"]["adjoint_of"], call["args"]["number"], "{adjoint}");
            seen.insert(call["args"]["number"].as_u64());
            // That of a started call is reported at the line of the wait.
            let is_started = text(call, "name").starts_with('i');
            assert!(is_started || call["args"]["line"] == adjoint["args"]["line"], "{adjoint}");
        }
        for call in file.calls(rank) {
            let args = &call["args"];
            let is_recorded =
                call["cat"] == "forward" && (!args["tape"].is_null() || call["name"] == "reduce");
            assert_eq!(seen.contains(&args["number"].as_u64()), is_recorded, "{call}");
        }
        let count = file.calls(rank).iter().filter(|call| call["cat"] == "backward").count();
        let with_arrow = adjoints.iter().filter(|(start, _)| start["pid"] == rank).count();
        assert_eq!(with_arrow, count);
    }
}

/// Slices of a thread lie within each other or apart; those of started calls have both ends.
fn is_well_formed(file: &File) {
    let mut lines: BTreeMap<(i64, i64), Vec<&Value>> = BTreeMap::new();
    for slice in file.of_kind("X") {
        assert!(begin(slice) >= 0 && begin(slice) <= end(slice), "{slice}");
        lines.entry(line(slice)).or_default().push(slice);
    }
    for slices in lines.values_mut() {
        slices.sort_by_key(|slice| (begin(slice), -end(slice)));
        let mut around: Vec<&Value> = Vec::new();
        for slice in slices {
            // Rounding may move an end by a nanosecond.
            around.retain(|other| end(other) > begin(slice) + 1);
            if let Some(other) = around.last() {
                assert!(end(slice) <= end(other) + 2, "{slice} overlaps {other}");
            }
            around.push(slice);
        }
    }
    let mut open: BTreeMap<String, i64> = BTreeMap::new();
    for event in file.of_kind("b") {
        assert!(open.insert(text(event, "id"), begin(event)).is_none(), "{event}");
    }
    assert!(!open.is_empty());
    for event in file.of_kind("e") {
        let begin_of = open.remove(&text(event, "id")).unwrap_or_else(|| panic!("{event}"));
        assert!(begin_of <= begin(event));
    }
    assert!(open.is_empty(), "{open:?}");
    let known = ["X", "M", "s", "f", "b", "e"];
    assert!(file.events.iter().all(|event| known.iter().any(|ph| event["ph"] == *ph)));
}

#[test]
fn without_the_variable_there_is_no_file() {
    let folder = folder("none");
    fs::create_dir_all(&folder).expect("it can be made");
    let outcome = job::run("program", 2, &[("TMPDIR", folder.to_str().expect("UTF-8"))]);
    assert!(outcome.status.success() && outcome.printed.contains("1 passed"), "{outcome:?}");
    let names = ["timeline.json", "timeline.rank0.json", "timeline.rank1.json"];
    assert!(names.iter().all(|name| !Path::new(name).exists() && !folder.join(name).exists()));
}

#[test]
fn the_folder_of_one_rank_is_that_of_all() {
    let folder = folder("told");
    let variables = [("MPI4TCH_TRACE", folder.to_str().expect("UTF-8"))];
    let outcome = job::run("told", 3, &variables);
    assert!(outcome.status.success() && outcome.printed.contains("1 passed"), "{outcome:?}");
    let file = File::read(&folder);
    for rank in 0..3 {
        let calls = file.calls(rank);
        assert_eq!(calls.len(), 1);
        assert_eq!(calls[0]["name"], "barrier");
    }
}

/// How many calls a long program makes: more than are kept before they are written, and more than go
/// to rank 0 in one message.
const MANY: usize = 9000;

/// Many calls, the last one on a thread of its own.
fn long(universe: &Universe) -> Result<()> {
    let world = universe.world();
    let x = x().detach();
    for _ in 1..MANY {
        let _ = world.all_reduce(&x, Op::Sum)?;
    }
    std::thread::scope(|scope| scope.spawn(|| world.barrier()).join().expect("no panic"))
}

#[test]
fn a_long_program_is_complete() {
    let folder = folder("long");
    let outcome = job::run("long", 3, &[("MPI4TCH_TRACE", folder.to_str().expect("UTF-8"))]);
    assert!(outcome.status.success() && outcome.printed.contains("1 passed"), "{outcome:?}");
    let file = File::read(&folder);
    for rank in 0..3 {
        let calls = file.calls(rank);
        assert_eq!(calls.len(), MANY);
        let (last, others) = calls.split_last().expect("there are many");
        assert!(others.iter().all(|call| call["name"] == "all_reduce" && call["tid"] == 0));
        assert!(last["name"] == "barrier" && last["tid"] == 1, "{last}");
        // Each is after the one before it.
        assert!(calls.windows(2).all(|pair| end(pair[0]) <= begin(pair[1]) + 1));
    }
}

/// Each rank's own file has what came before, and can be read.
#[test]
fn a_job_that_is_aborted_leaves_its_events() {
    let folder = folder("aborts");
    let variables = [("MPI4TCH_TRACE", folder.to_str().expect("UTF-8"))];
    let outcome = job::run("aborts", 2, &variables);
    assert!(!outcome.status.success(), "{outcome:?}");
    assert!(!folder.join("timeline.json").exists());
    for rank in 0..2 {
        let path = folder.join(format!("timeline.rank{rank}.json"));
        let text = fs::read_to_string(path).expect("the file is there");
        // The format allows the end of the list to be missing.
        let text = format!("{}]", text.trim_end().trim_end_matches(','));
        let Value::Array(events) = serde_json::from_str(&text).expect("it is JSON") else {
            panic!("no list")
        };
        assert!(events.iter().any(|event| event["name"] == "all_reduce"), "{events:?}");
    }
}

/// The example's picture of a file. On one rank, in a process of its own.
fn pictures() {
    let out = folder("picture");
    let universe = mpi4tch::initialize().expect("MPI starts");
    let draw = |file: &Path, pass| {
        let arguments = timeline::Arguments { file: file.to_owned(), pass, out: out.clone() };
        timeline::run(&universe, &arguments).map_err(|error| error.to_string())
    };
    let file = place("pictured").join("timeline.json");
    draw(&file, 1).expect("it can be drawn");
    let picture = fs::File::open(out.join("timeline.png")).expect("it is there");
    let mut reader =
        png::Decoder::new(std::io::BufReader::new(picture)).read_info().expect("a PNG");
    let mut pixels = vec![0; reader.output_buffer_size().expect("it is small")];
    let _ = reader.next_frame(&mut pixels).expect("a PNG");
    // Forward, backward, waits, local work, the pass.
    let colors = [[0, 114, 178], [213, 94, 0], [205; 3], [170, 222, 203], [240, 228, 66]];
    for color in colors {
        let count = pixels.chunks_exact(3).filter(|pixel| *pixel == color).count();
        // More than the square before the color's name.
        assert!(count > 13 * 13, "{count} of {color:?}");
    }
    let error = draw(&file, 2).expect_err("there is one pass");
    assert_eq!(error, "there are 1 backward passes on rank 0");
    let error = draw(&out, 1).expect_err("a folder is no timeline");
    assert!(error.starts_with(&format!("cannot read {}: ", out.display())), "{error}");
}

#[test]
fn the_example_draws_a_timeline() {
    let folder = folder("pictured");
    let outcome = job::run("program", 2, &[("MPI4TCH_TRACE", folder.to_str().expect("UTF-8"))]);
    assert!(outcome.status.success(), "{outcome:?}");
    let outcome = job::run_without_launcher("picture");
    assert!(outcome.status.success() && outcome.printed.contains("1 passed"), "{outcome:?}");
}

/// A subscriber that keeps the fields of all spans, by the order in which they were made.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<BTreeMap<String, String>>>>);

struct Fields<'f>(&'f mut BTreeMap<String, String>);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}").trim_matches('"').to_owned());
    }
}

impl Subscriber for Spans {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "mpi4tch"
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut all = self.0.lock().unwrap();
        let mut fields = BTreeMap::new();
        span.record(&mut Fields(&mut fields));
        all.push(fields);
        Id::from_u64(all.len() as u64)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        let place = usize::try_from(span.into_u64()).unwrap() - 1;
        values.record(&mut Fields(&mut self.0.lock().unwrap()[place]));
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, span: &Id) {
        self.count("entered", span);
    }

    fn exit(&self, span: &Id) {
        self.count("left", span);
    }
}

impl Spans {
    fn count(&self, what: &str, span: &Id) {
        let place = usize::try_from(span.into_u64()).unwrap() - 1;
        let mut all = self.0.lock().unwrap();
        let count = all[place].entry(what.to_owned()).or_insert_with(|| "0".to_owned());
        *count = (count.parse::<u32>().unwrap() + 1).to_string();
    }
}

/// A subscriber sees the calls of one rank, without a timeline.
fn spans() {
    let universe = mpi4tch::initialize().unwrap();
    let world = universe.world();
    let spans = Spans::default();
    tracing::subscriber::with_default(spans.clone(), || -> Result<()> {
        let (x, tape) = (x(), world.tape());
        let sum = tape.ireduce(&x, Op::Sum, 0)?.wait()?;
        let received = tape.sendrecv(&sum, 0, &x, Source::Any, 8)?;
        tape.backward(&received.sum(Kind::Double))
    })
    .unwrap();
    // Nobody listens any more.
    world.barrier().unwrap();
    let spans = spans.0.lock().unwrap();
    let calls: Vec<[&str; 2]> = spans.iter().map(|s| [&*s["call"], &*s["pass"]]).collect();
    assert_eq!(
        calls,
        [
            ["reduce", "forward"],
            ["sendrecv", "forward"],
            ["Tape::backward", "forward"],
            ["sendrecv", "backward"],
            ["broadcast", "backward"],
        ]
    );
    let has = |span: usize, fields: &[(&str, &str)]| {
        for (name, value) in fields {
            assert_eq!(
                spans[span].get(*name).map(|v| &**v),
                Some(*value),
                "{name} {:?}",
                spans[span]
            );
        }
    };
    let all = [("bytes", "24"), ("kind", "Double")];
    has(0, &all);
    has(0, &[("root", "0"), ("started", "true"), ("tape", "1"), ("entered", "2"), ("left", "2")]);
    has(1, &all);
    has(1, &[("to", "0"), ("from", "0"), ("tag", "8"), ("entered", "1"), ("left", "1")]);
    has(3, &[("adjoint_of", &spans[1]["number"]), ("to", "0"), ("from", "0"), ("tag", "8")]);
    has(4, &[("adjoint_of", &spans[0]["number"]), ("root", "0"), ("entered", "2")]);
    for span in spans.iter() {
        assert!(span["line"].contains("timeline.rs:"), "{span:?}");
        assert!(span["communicator"].contains("made by initialize at "), "{span:?}");
        assert!(span["waited_us"].parse::<f64>().unwrap() >= 0.0, "{span:?}");
    }
    let [forward, adjoint] = [1, 3].map(|i| &spans[i]["line"]);
    assert_eq!(forward, adjoint);
}

#[test]
fn a_subscriber_sees_the_spans() {
    let outcome = job::run_without_launcher("spans");
    assert!(outcome.status.success() && outcome.printed.contains("1 passed"), "{outcome:?}");
}
