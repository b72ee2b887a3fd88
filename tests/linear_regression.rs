//! Runs the example `linear_regression` on several numbers of ranks.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(120);

#[test]
fn agrees_on_all_numbers_of_ranks_with_the_published_coefficients() {
    // Of the same model in any statistics package.
    let published = [("(intercept)", -334.567), ("bmi", 5.603), ("s5", 68.483), ("sex", -22.860)];
    agrees(&[], &published, 5e-4);
}

#[test]
fn agrees_on_all_numbers_of_ranks_with_the_synthetic_coefficients() {
    agrees(&["--synthetic"], &[("(intercept)", 0.1), ("x", 1.0), ("x²", -2.0)], 1e-9);
}

fn agrees(arguments: &[&str], expected: &[(&str, f64)], tolerance: f64) {
    let mut first = None;
    for ranks in [1, 2, 3, 5] {
        let run = run(harness::mpiexec(ranks).arg(example()).args(arguments));
        assert!(run.success, "{ranks} ranks:\n{}\n{}", run.stdout, run.stderr);
        assert!(run.stdout.contains(&format!("ranks: {ranks}\n")), "{}", run.stdout);
        let difference = run.stdout.split("closed-form solution: ").nth(1).unwrap();
        assert!(difference.trim().parse::<f64>().unwrap() < 1e-6, "{}", run.stdout);

        let coefficients = coefficients(&run.stdout);
        for (name, value) in expected {
            let error = (coefficients[*name][0] - value).abs();
            assert!(error < tolerance, "{ranks} ranks, {name}: {coefficients:?}");
        }
        let first = first.get_or_insert_with(|| coefficients.clone());
        assert_eq!(first.len(), coefficients.len());
        for (name, values) in &coefficients {
            let mut differences = values.iter().zip(&first[name]).map(|(a, b)| (a - b).abs());
            assert!(
                differences.all(|d| d < 1e-9),
                "{name}, 1 rank: {first:?}\n{ranks} ranks: {values:?}"
            );
        }
    }
}

/// What a file may contain, and what is wrong with it.
const BROKEN: [(&str, &str); 14] = [
    ("", "FILE is empty"),
    ("y\n1\n2\n", "FILE has 1 column; at least a feature and the target are needed"),
    ("1,2\n3,4\n4,6\n", "FILE: the first line has numbers instead of the columns' names"),
    ("a,b,y\n", "FILE has no rows"),
    ("a,b,y\n1,2,3\n2,5,6\n", "FILE has 2 rows, fewer than the 3 coefficients"),
    ("a,b,y\n1,2,3\n4,5\n6,7,8\n", "FILE, line 3: 2 fields instead of 3"),
    ("a,b,y\n1,2,3\n4,5,6,7\n6,7,8\n", "FILE, line 3: 4 fields instead of 3"),
    ("a,y\r\n1,2\r\n\r\n4,six\r\n", "FILE, line 4, column y: \"six\" is not a finite number"),
    ("a,b,y\n1,2,3\n4,,6\n", "FILE, line 3, column b: \"\" is not a finite number"),
    ("a,b,y\n1,2,3\n4,5,NaN\n", "FILE, line 3, column y: \"NaN\" is not a finite number"),
    ("a,b,y\n1,2,3\n1e999,5,6\n", "FILE, line 3, column a: \"1e999\" is not a finite number"),
    ("a,b,y\n.1,2,3\n.1,5,6\n.1,3,9\n", "FILE: column a is constant"),
    ("a,y\n1e300,3\n-1e300,6\n2e300,7\n", "FILE: column a: too large numbers"),
    ("a,b,c,y\n1,2,1,3\n2,4,0,6\n3,6,0,9\n5,10,5,1\n", "FILE: columns a, b are linearly dependent"),
];

#[test]
fn broken_files_are_errors_on_all_ranks() {
    for (content, text) in BROKEN {
        expect_error(&with("broken", content), text);
    }
}

#[test]
fn missing_files_are_errors_on_all_ranks() {
    expect_error(&file("missing"), "cannot read FILE: No such file or directory (os error 2)");
    let folder = file("folder");
    fs::create_dir_all(&folder).unwrap();
    expect_error(&folder, "cannot read FILE: Is a directory (os error 21)");
}

fn expect_error(path: &Path, text: &str) {
    let run = run(harness::mpiexec(3).arg(example()).arg("--data").arg(path));
    expect_failure(&run, &text.replace("FILE", path.to_str().unwrap()));
}

#[test]
fn what_is_wrong_on_one_rank_is_an_error_on_all() {
    let good = with("good", "a,y\n1,3\n2,6\n4,7\n");
    let on_rank_1 = |path: &Path| {
        let rank = "${OMPI_COMM_WORLD_RANK:-$PMI_RANK}";
        let script = format!("[ {rank} = 1 ] && shift; exec \"$0\" --data \"$1\"");
        let paths = [example(), good.clone(), path.to_owned()];
        run(harness::mpiexec(3).args(["sh", "-c", &script]).args(paths))
    };
    assert!(on_rank_1(&good).success);
    let missing = file("missing");
    let text = format!("on rank 1: cannot read {}: No such file", missing.display());
    expect_failure(&on_rank_1(&missing), &text);
    let other = with("other", "a,y\n1,3\n2,6\n4,8\n");
    let text = format!("on rank 1: {} is another file than on rank 0", other.display());
    expect_failure(&on_rank_1(&other), &text);
}

#[test]
fn more_ranks_than_rows_are_no_error() {
    let path = with("three_rows", "a,y\n1,3\n2,6\n4,7\n");
    let run = run(harness::mpiexec(5).arg(example()).arg("--data").arg(path));
    assert!(run.success, "{}", run.stderr);
    // Σ(a − ā)(y − ȳ) / Σ(a − ā)² = 17/14.
    assert!((coefficients(&run.stdout)["a"][0] - 17.0 / 14.0).abs() < 1e-9, "{}", run.stdout);
}

#[test]
fn usage_errors_are_said_once() {
    let run = run(harness::mpiexec(2).arg(example()).args(["--synthetic", "--data", "x.csv"]));
    assert!(!run.success);
    assert_eq!(run.stderr.matches("cannot be used with").count(), 1, "{}", run.stderr);
}

/// The numbers in each line of the table of coefficients.
fn coefficients(stdout: &str) -> BTreeMap<String, Vec<f64>> {
    let table = stdout.lines().skip_while(|line| !line.starts_with("(intercept)"));
    table
        .take_while(|line| !line.is_empty())
        .map(|line| {
            let (name, numbers) = line.split_once(' ').unwrap();
            let numbers = numbers.split_whitespace().map(|number| number.parse().unwrap());
            (name.to_owned(), numbers.collect())
        })
        .collect()
}

#[track_caller]
fn expect_failure(run: &Run, text: &str) {
    assert!(!run.success, "no failure, but expected {text:?}\n{}", run.stdout);
    // All ranks have it; the first to say so ends the job.
    let rank = |line: &str| Some(line.split_once("mpi4tch: rank ")?.1.starts_with(['0', '1', '2']));
    let says = |line: &str| rank(line) == Some(true) && line.contains(&format!(" of 3: {text}"));
    assert!(run.stderr.lines().any(says), "expected {text:?}\n{}", run.stderr);
}

/// The example, which `cargo test` builds, but not `cargo test --test linear_regression`.
fn example() -> PathBuf {
    // This program is in target/<profile>/deps.
    let program = env::current_exe().unwrap();
    let path = program.parent().unwrap().with_file_name("examples").join("linear_regression");
    assert!(path.exists(), "run `cargo build --example linear_regression` first");
    path
}

fn with(name: &str, text: &str) -> PathBuf {
    let path = file(&format!("{name}.csv"));
    fs::write(&path, text).unwrap();
    path
}

fn file(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("linear_regression");
    fs::create_dir_all(&folder).unwrap();
    folder.join(name)
}

struct Run {
    success: bool,
    stdout: String,
    stderr: String,
}

/// Runs a job to its end, or fails after a while: what hangs must not hang the tests.
#[track_caller]
fn run(command: &mut Command) -> Run {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + TIMEOUT;
    // What these jobs print fits into a pipe.
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("{command:?} hangs");
        }
        thread::sleep(Duration::from_millis(10));
    };
    let [mut stdout, mut stderr] = [String::new(), String::new()];
    child.stdout.unwrap().read_to_string(&mut stdout).unwrap();
    child.stderr.unwrap().read_to_string(&mut stderr).unwrap();
    Run { success: status.success(), stdout, stderr }
}
