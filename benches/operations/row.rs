//! What is known of an operation after it was timed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::protocol::{Case, Direction, OURS};
use super::record::{Times, median_ratio};

/// A pass of an operation, by raw MPI, by this crate and perhaps by others. Times are of a call on the
/// slowest rank, in microseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    #[serde(flatten)]
    pub case: Case,
    pub direction: Direction,
    /// The calls of the fastest raw way.
    pub raw_calls: String,
    pub raw: Times,
    pub ours: Times,
    /// Ours as a multiple of raw: the median over the rounds.
    pub ratio: f64,
    /// The medians of slower raw ways.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub slower_raw: BTreeMap<String, f64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub peers: BTreeMap<String, Peer>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Peer {
    pub times: Times,
    /// Ours as a multiple of the peer's: the median over the rounds.
    pub ratio: f64,
}

/// The times of a work in all rounds, which this crate or raw MPI did, or a peer.
pub struct Timed {
    pub name: String,
    pub is_peer: bool,
    pub times: Vec<f64>,
}

impl Row {
    /// Of times that were measured in the same rounds; none without this crate's or without raw MPI's.
    pub fn of(case: Case, direction: Direction, timed: &[Timed]) -> Option<Self> {
        let ours = timed.iter().find(|timed| timed.name == OURS)?;
        let is_raw = |timed: &&Timed| !timed.is_peer && timed.name != OURS;
        let mut raw: Vec<(&Timed, Times)> =
            timed.iter().filter(is_raw).map(|raw| (raw, Times::of(&raw.times))).collect();
        raw.sort_by(|a, b| a.1.median.total_cmp(&b.1.median));
        let (fastest, times) = raw.first()?;
        let peer = |timed: &Timed| Peer {
            times: Times::of(&timed.times),
            ratio: median_ratio(&ours.times, &timed.times),
        };
        Some(Self {
            case,
            direction,
            raw_calls: fastest.name.clone(),
            raw: *times,
            ours: Times::of(&ours.times),
            ratio: median_ratio(&ours.times, &fastest.times),
            slower_raw: raw[1..].iter().map(|(raw, t)| (raw.name.clone(), t.median)).collect(),
            peers: timed
                .iter()
                .filter(|timed| timed.is_peer)
                .map(|timed| (timed.name.clone(), peer(timed)))
                .collect(),
        })
    }
}
