//! What the environment says about how to test.

use std::env;
use std::time::Duration;

/// How the tests of a file are run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The sizes of the jobs, in ascending order.
    pub rank_counts: Vec<usize>,
    /// What a test, or the start or end of a job, may take.
    pub timeout: Duration,
    /// What the other ranks have to report once one has failed.
    pub grace: Duration,
    /// Whether the ranks' output is shown as it comes.
    pub nocapture: bool,
}

impl Settings {
    /// Reads the variables that the crate's documentation lists.
    pub fn from_environment(nocapture: bool) -> Result<Settings, String> {
        let rank_counts = match env::var("MPI4TCH_TEST_RANKS") {
            Ok(list) => parse_rank_counts(&list)?,
            Err(_) => vec![1, 2, 3, 4, 5, 7],
        };
        let timeout = match env::var("MPI4TCH_TEST_TIMEOUT") {
            Ok(seconds) => parse_timeout(&seconds)?,
            Err(_) => Duration::from_secs(60),
        };
        Ok(Settings { rank_counts, timeout, grace: timeout.min(Duration::from_secs(5)), nocapture })
    }
}

fn parse_rank_counts(list: &str) -> Result<Vec<usize>, String> {
    let counts: Result<Vec<usize>, _> = list.split(',').map(|count| count.trim().parse()).collect();
    match counts {
        Ok(mut counts) if !counts.contains(&0) => {
            counts.sort_unstable();
            counts.dedup();
            Ok(counts)
        }
        _ => Err(format!("MPI4TCH_TEST_RANKS is `{list}`, not a list of numbers as in `1,2,4`")),
    }
}

fn parse_timeout(seconds: &str) -> Result<Duration, String> {
    let timeout = seconds.parse().ok().filter(|seconds| *seconds > 0.0);
    timeout
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| format!("MPI4TCH_TEST_TIMEOUT is `{seconds}`, not a number of seconds"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_counts_are_sorted_and_positive() {
        assert_eq!(parse_rank_counts("4, 1,2,2"), Ok(vec![1, 2, 4]));
        assert!(parse_rank_counts("0,1").is_err());
        assert!(parse_rank_counts("").is_err());
    }

    #[test]
    fn timeouts_are_positive() {
        assert_eq!(parse_timeout("1.5"), Ok(Duration::from_millis(1500)));
        assert!(parse_timeout("0").is_err());
        assert!(parse_timeout("soon").is_err());
    }
}
