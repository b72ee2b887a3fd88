//! [`Terms`]: the arguments of a call that the ranks must agree on.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::description::{Line, ONE_SIDED};
use super::saying::Subject;
use crate::base::op::Op;
use crate::base::rank::Rank;
use crate::base::site::Site;
use crate::call::{Edge, Exchange};

/// The arguments of a call that all ranks must agree on, and the sizes that each rank tells the
/// others.
#[derive(Debug, Default)]
pub(crate) struct Terms<'a> {
    pub(crate) op: Option<Op>,
    pub(crate) root: Option<Rank>,
    /// The axes that the call names.
    pub(crate) axes: [Option<i64>; 2],
    /// Counts that every rank was given.
    pub(crate) counts: [Option<&'a [i64]>; 2],
    /// The shape, if it must agree, and the axis along which the extents may still differ.
    pub(crate) shape: Option<(&'a [i64], Option<usize>)>,
    /// A further axis along which the extents may differ.
    pub(crate) also_free: Option<usize>,
    /// This rank's row and column of a matrix of counts of which it does not know the rest.
    pub(crate) pairs: Option<Pairs<'a>>,
    /// The messages of an exchange.
    pub(crate) edges: Option<&'a Arc<Exchange>>,
    /// A further argument, its name and its value in words.
    pub(crate) further: Option<(&'static str, &'a str)>,
    /// A hash of the tensor's elements, if these must be equal.
    pub(crate) values: Option<u64>,
    /// Whether the ranks must agree on recording the call, whatever else is compared.
    pub(crate) compares_recording: bool,
    /// The sizes that this rank tells every other.
    pub(crate) told: Option<Told<'a>>,
    /// A number for each rank, which only that rank is told.
    pub(crate) told_each: Option<&'a [i64]>,
    /// A number for each message of an exchange, which only its receiver is told.
    pub(crate) told_along: Option<(&'a Arc<Exchange>, &'a [i64])>,
}

/// This rank's row and column of the matrix of counts. The ranks agree if every rank is to receive
/// from each other rank the count that the other is to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pairs<'a> {
    /// The count that is sent to each rank, in order of the ranks.
    pub(crate) send: &'a [i64],
    /// The count that is received from each rank.
    pub(crate) receive: &'a [i64],
    /// Whether the elements are too many for an `int`, so that another MPI function is called.
    pub(crate) wide: bool,
}

impl Pairs<'_> {
    fn balance(&self, rank: Rank) -> u64 {
        let counts = self.send.iter().zip(self.receive);
        (0..).zip(counts).fold(0_u64, |sum, (other, (sent, received))| {
            sum.wrapping_add(hash(&(rank, other, sent)))
                .wrapping_sub(hash(&(other, rank, received)))
        })
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// The messages as a line, such as "[2, 3] to rank 1", or "[1]" for messages without elements. There is
/// a name for each. `None` without messages.
fn list<'e>(
    [blocks, ranks]: [&'static str; 2],
    way: &str,
    edges: impl Iterator<Item = &'e Edge>,
) -> Option<Line> {
    let edges: Vec<&Edge> = edges.collect();
    if edges.first()?.region.shape.is_empty() {
        let peers: Vec<Rank> = edges.iter().map(|edge| edge.peer).collect();
        return Some((ranks, format!("{peers:?}")));
    }
    let all: Vec<String> = edges
        .iter()
        .map(|Edge { peer, region, .. }| format!("{:?} {way} rank {peer}", region.shape))
        .collect();
    Some((blocks, all.join(", ")))
}

/// The sizes that a rank tells the others: counts, and a shape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told<'a> {
    pub(crate) counts: [i64; 2],
    pub(crate) shape: &'a [i64],
}

/// [`Terms`] without the sizes to exchange, owned, for a call that is under way.
pub(super) struct OwnedTerms {
    op: Option<Op>,
    root: Option<Rank>,
    axes: [Option<i64>; 2],
    counts: [Option<Vec<i64>>; 2],
    shape: Option<(Vec<i64>, Option<usize>)>,
    also_free: Option<usize>,
    pairs: Option<([Vec<i64>; 2], bool)>,
    edges: Option<Arc<Exchange>>,
    further: Option<(&'static str, String)>,
    values: Option<u64>,
}

impl OwnedTerms {
    pub(super) fn borrow(&self) -> Terms<'_> {
        Terms {
            op: self.op,
            root: self.root,
            axes: self.axes,
            counts: self.counts.each_ref().map(Option::as_deref),
            shape: self.shape.as_ref().map(|(shape, free)| (&shape[..], *free)),
            pairs: self.pairs.as_ref().map(|([send, receive], wide)| Pairs {
                send,
                receive,
                wide: *wide,
            }),
            also_free: self.also_free,
            edges: self.edges.as_ref(),
            further: self.further.as_ref().map(|(name, value)| (*name, value.as_str())),
            values: self.values,
            compares_recording: false,
            told: None,
            told_each: None,
            told_along: None,
        }
    }
}

impl Hash for Terms<'_> {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let Self { op, root, axes, counts, shape, also_free, pairs, further, values, .. } = self;
        (op, root, axes, counts, pairs.map(|pairs| pairs.wide)).hash(hasher);
        if further.is_some() || values.is_some() {
            (further, values).hash(hasher);
        }
        if let Some((shape, free)) = shape {
            (free, shape.len()).hash(hasher);
            let is_free = |i| *free == Some(i) || *also_free == Some(i);
            for (i, extent) in shape.iter().enumerate().filter(|&(i, _)| !is_free(i)) {
                (i, extent).hash(hasher);
            }
        }
    }
}

impl Terms<'_> {
    /// Hashes this rank's arguments, to compare the call with the same call in another run. The
    /// elements of the tensor may differ by rounding, and so they are left out, as are the counts if
    /// they tell whether the call is recorded.
    pub(crate) fn hash_arguments(&self, tells_recording: bool, hasher: &mut impl Hasher) {
        let Self { op, root, axes, counts, shape, also_free, pairs, further, .. } = self;
        (op, root, axes, counts, shape, also_free, further).hash(hasher);
        pairs.map(|pairs| (pairs.send, pairs.receive)).hash(hasher);
        self.told.map(|told| told.shape).hash(hasher);
        self.told.filter(|_| !tells_recording).map(|told| told.counts).hash(hasher);
        (self.told_each, self.told_along.map(|(_, words)| words)).hash(hasher);
    }

    /// The terms of one axis, counted from the start.
    pub(crate) fn axis(axis: usize) -> [Option<i64>; 2] {
        [i64::try_from(axis).ok(), None]
    }

    /// A number whose sum over all ranks, with wrapping, is zero if each rank expects what the others
    /// send it: the rank that sends a block adds its hash, and the rank that receives it subtracts the
    /// hash.
    pub(super) fn balance(&self, rank: Rank) -> u64 {
        let balance = self.pairs.map_or(0, |pairs| pairs.balance(rank));
        let Some(exchange) = self.edges else { return balance };
        let sent =
            exchange.sends().map(|edge| hash(&(rank, edge.peer, edge.tag, &edge.region.shape)));
        let received =
            exchange.receives().map(|edge| hash(&(edge.peer, rank, edge.tag, &edge.region.shape)));
        let balance = sent.fold(balance, u64::wrapping_add);
        received.fold(balance, u64::wrapping_sub)
    }

    pub(super) fn to_owned(&self) -> OwnedTerms {
        OwnedTerms {
            op: self.op,
            root: self.root,
            axes: self.axes,
            counts: self.counts.map(|counts| counts.map(<[i64]>::to_vec)),
            shape: self.shape.map(|(shape, free)| (shape.to_vec(), free)),
            pairs: self
                .pairs
                .map(|Pairs { send, receive, wide }| ([send.to_vec(), receive.to_vec()], wide)),
            also_free: self.also_free,
            edges: self.edges.map(Arc::clone),
            further: self.further.map(|(name, value)| (name, value.to_owned())),
            values: self.values,
        }
    }

    /// The terms by name, for the error.
    pub(super) fn describe(&self, site: Site, subject: Subject) -> Vec<Line> {
        let pass = if site.backward { "backward" } else { "forward" };
        let mut lines = vec![("operation", site.call.to_owned()), ("pass", pass.to_owned())];
        if let Some(op) = self.op {
            lines.push(("op", format!("Op::{op:?}")));
        }
        if let Some((datatype, requires_grad)) = subject {
            lines.push(("kind", format!("{:?}", datatype.kind)));
            lines.push(("requires_grad", requires_grad.to_string()));
        }
        if let Some(root) = self.root {
            lines.push(("root", root.to_string()));
        }
        let [first, second] = self.axes;
        if let Some(axis) = first {
            let second = second.map_or(String::new(), |axis| format!(" and {axis}"));
            lines.push(("axis", format!("{axis}{second}")));
        }
        for (name, counts) in ["counts", "counts to scatter"].into_iter().zip(self.counts) {
            if let Some(counts) = counts {
                lines.push((name, format!("{counts:?}")));
            }
        }
        if let Some(Pairs { send, receive, wide }) = self.pairs {
            lines
                .extend(ONE_SIDED.into_iter().zip([send, receive].map(|list| format!("{list:?}"))));
            let known = if wide { "known, beyond an int" } else { "known" };
            lines.push(("counts of every pair", known.to_owned()));
        }
        if let Some(exchange) = self.edges {
            let [.., sends, receives, destinations, sources] = ONE_SIDED;
            lines.extend(list([sends, destinations], "to", exchange.sends()));
            lines.extend(list([receives, sources], "from", exchange.receives()));
        }
        if let Some((name, value)) = self.further {
            lines.push((name, value.to_owned()));
        }
        if let Some((shape, free)) = self.shape {
            let extents: Vec<String> = shape
                .iter()
                .enumerate()
                .map(|(i, extent)| {
                    if free == Some(i) || self.also_free == Some(i) {
                        "_".to_owned()
                    } else {
                        extent.to_string()
                    }
                })
                .collect();
            lines.push(("shape", format!("[{}]", extents.join(", "))));
        }
        if let Some(hash) = self.values {
            lines.push(("values", format!("hash {hash:016x}")));
        }
        lines
    }
}
