//! Agreement between the ranks on a call, before it is made.
//!
//! What the ranks must have in common about a call are its [`Terms`]. With [`Check::Collective`]
//! they compare them before each call, and where they differ all get the same error, while nobody
//! has entered a call that could not end. Where a rank needs to know the others' sizes, these
//! travel in the same small message, and the terms are compared in any case.

mod description;

use std::ffi::OsStr;
use std::hash::{DefaultHasher, Hash, Hasher};

use tch::{Kind, Tensor};

use crate::blocks::Parts;
use crate::buffer::Input;
use crate::call::{Call, Finish, Plan, Started};
use crate::communicator::{Communicator, Rank, index};
use crate::datatype::Datatype;
use crate::error::{Error, Result};
use crate::reduction::Op;
use crate::site::Site;
pub(crate) use description::differences;
use description::{AT, decode, encode};

/// Which calls the ranks compare before they make them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Check {
    /// Those in which sizes travel anyway.
    Local,
    /// All.
    Collective,
}

impl Check {
    /// What `MPI4TCH_CHECK` says; by default all calls in debug builds.
    pub(crate) fn from_environment() -> Result<Self> {
        // What is not UTF-8 becomes a text that means nothing.
        let value = std::env::var_os("MPI4TCH_CHECK");
        match value.as_deref().map(OsStr::to_string_lossy).as_deref() {
            Some("local") => Ok(Self::Local),
            Some("collective") => Ok(Self::Collective),
            None if cfg!(debug_assertions) => Ok(Self::Collective),
            None => Ok(Self::Local),
            Some(other) => Err(Error::Setting {
                name: "MPI4TCH_CHECK",
                value: other.to_owned(),
                needed: "local or collective",
            }),
        }
    }
}

/// What all ranks must agree on about a call, and what each tells the others.
#[derive(Debug, Default)]
pub(crate) struct Terms<'a> {
    pub(crate) op: Option<Op>,
    pub(crate) root: Option<Rank>,
    /// The axes that the call names.
    pub(crate) axes: [Option<i64>; 2],
    /// Counts that every rank was given.
    pub(crate) counts: [Option<&'a [i64]>; 2],
    /// The shape, where it must agree, but for the axis that may differ.
    pub(crate) shape: Option<(&'a [i64], Option<usize>)>,
    /// What every rank needs to know of this one.
    pub(crate) told: Option<Told<'a>>,
}

/// What a rank tells the others: its counts, and a shape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told<'a> {
    pub(crate) counts: [i64; 2],
    pub(crate) shape: &'a [i64],
}

/// What every rank told, in order of the ranks; nothing where nobody needed to know.
#[derive(Debug, Default)]
pub(crate) struct Agreed {
    counts: Vec<[i64; 2]>,
    shapes: Vec<Vec<i64>>,
}

impl Agreed {
    /// Each rank's `i`th count.
    pub(crate) fn counts(&self, i: usize) -> Vec<i64> {
        self.counts.iter().map(|counts| counts[i]).collect()
    }

    pub(crate) fn shape_of(&self, rank: Rank) -> &[i64] {
        &self.shapes[index(rank)]
    }
}

/// A rank's message. The extents of a tensor of more axes follow in a message of their own.
type Record = [i64; WORDS];
const WORDS: usize = 12;
const EXTENTS: usize = 4;
const MOST_EXTENTS: usize = WORDS - EXTENTS;

/// Compares the terms of the call at `site` over the ranks, and exchanges what they tell.
///
/// A rank whose own arguments are wrong brings its error instead of terms: it gets that error
/// itself, and the others one that names it.
#[inline]
pub(crate) fn agree(
    site: Site,
    comm: &Communicator,
    tensor: Option<(Datatype, bool)>,
    terms: Result<Terms>,
    exchanges: bool,
) -> Result<Agreed> {
    if comm.check() == Check::Local && !exchanges {
        return terms.map(|_| Agreed::default());
    }
    compare(site, comm, tensor, terms)
}

/// Tells the others that this rank refuses the call, if they listen. Returns why.
pub(crate) fn refuse(site: Site, comm: &Communicator, error: Error, exchanges: bool) -> Error {
    match agree(site, comm, None, Err(error), exchanges) {
        Err(error) => error,
        Ok(_) => unreachable!("terms that are an error are never agreed on"),
    }
}

fn compare(
    site: Site,
    comm: &Communicator,
    tensor: Option<(Datatype, bool)>,
    terms: Result<Terms>,
) -> Result<Agreed> {
    // Only a graph that all ranks record, or none, can be gone back through.
    let tensor = tensor.map(|(datatype, requires_grad)| {
        (datatype, requires_grad && comm.check() == Check::Collective)
    });
    let call = site.call;
    let mut description = describe(site, tensor, &terms);
    let mut record: Record = [0; WORDS];
    record[0] = fingerprint(&description);
    let told = terms.as_ref().ok().and_then(|terms| terms.told);
    let shape = told.map_or(&[][..], |told| told.shape);
    record[1..3].copy_from_slice(&told.map_or([0; 2], |told| told.counts));
    record[3] = i64::try_from(shape.len()).unwrap_or(i64::MAX);
    for (word, extent) in record[EXTENTS..].iter_mut().zip(shape) {
        *word = *extent;
    }

    let records: Vec<Record> = comm.all_gather_control(call, &record)?;
    if records.iter().any(|other| other[0] != record[0]) {
        description.push((AT, site.place()));
        let mine = encode(&description);
        let all: Vec<_> = comm.exchange(call, &mine)?.iter().map(|text| decode(text)).collect();
        return Err(terms
            .err()
            .unwrap_or_else(|| Error::Mismatch { differences: differences(&all) }));
    }
    terms?;
    let mut shapes: Vec<Vec<i64>> = records
        .iter()
        .map(|record| {
            let dim = usize::try_from(record[3]).unwrap_or(0).min(MOST_EXTENTS);
            record[EXTENTS..EXTENTS + dim].to_vec()
        })
        .collect();
    if records.iter().any(|record| record[3] > MOST_EXTENTS as i64) {
        let bytes: Vec<u8> = shape.iter().flat_map(|extent| extent.to_le_bytes()).collect();
        for (shape, bytes) in shapes.iter_mut().zip(comm.exchange(call, &bytes)?) {
            let extents = bytes.chunks_exact(8);
            *shape = extents.map(|e| e.try_into().map_or(0, i64::from_le_bytes)).collect();
        }
    }
    Ok(Agreed { counts: records.iter().map(|record| [record[1], record[2]]).collect(), shapes })
}

/// The bytes in which a rank describes a call that is only started.
const DESCRIPTION: usize = 512;

/// A comparison under way, of the terms of a call that was started.
pub(crate) struct Comparison(Started);

impl Comparison {
    /// Starts to compare, where calls are compared at all. The call itself can be started too: it
    /// does not depend on what the others say.
    ///
    /// A rank whose own arguments are wrong gets its error at once, and the others one that names
    /// it, at the end.
    pub(crate) fn start(
        site: Site,
        comm: &Communicator,
        tensor: Option<(Datatype, bool)>,
        terms: Result<Terms>,
    ) -> Result<Option<Self>> {
        if comm.check() == Check::Local {
            return terms.map(|_| None);
        }
        let description = describe(site, tensor, &terms);
        // The fingerprint is what is compared. What does not fit tells only what differs.
        let fingerprint = (FINGERPRINT, fingerprint(&description).to_string());
        let place = (AT, site.place());
        let mut bytes = encode(&[&[fingerprint, place], &description[..]].concat());
        bytes.resize(DESCRIPTION, b'\n');
        let bytes = Tensor::f_from_slice(&bytes)?;
        let size = index(comm.size());
        let length = i64::try_from(DESCRIPTION).unwrap_or(0);
        let plan = Plan {
            input: Input::new(site.call, &bytes)?,
            shape: vec![length * i64::from(comm.size())].into(),
            call: Call::AllGather { parts: Parts::new(vec![length; size]) },
            context: comm.control(),
            finish: Finish::Nothing,
        };
        let started = plan.start(site, comm, &bytes)?;
        if let Err(error) = terms {
            // The others have started the call, and libraries count what is started.
            let nothing = Tensor::f_zeros([0_i64; 1], (Kind::Uint8, tch::Device::Cpu))?;
            let plan = Plan {
                input: Input::new(site.call, &nothing)?,
                shape: vec![0].into(),
                call: Call::Barrier,
                context: comm.context(),
                finish: Finish::Nothing,
            };
            plan.start(site, comm, &nothing)?;
            return Err(error);
        }
        Ok(Some(Self(started)))
    }

    /// Tells the others that this rank refuses the call that they start, if they listen. Returns why.
    pub(crate) fn refuse(site: Site, comm: &Communicator, error: Error) -> Error {
        match Self::start(site, comm, None, Err(error)) {
            Err(error) => error,
            Ok(_) => unreachable!("an error is never agreed on"),
        }
    }

    pub(crate) fn has_ended(&self) -> Result<bool> {
        self.0.flight.test()
    }

    /// Whether the ranks disagree, once it has ended.
    pub(crate) fn differs(&self) -> Result<bool> {
        let texts = Vec::<u8>::try_from(self.0.written().shallow_clone())?;
        Ok(differ(texts.chunks_exact(DESCRIPTION)))
    }

    /// Waits for what the others say.
    pub(crate) fn end(self, site: Site) -> Result<()> {
        let texts = Vec::<u8>::try_from(self.0.result(site)?)?;
        let texts = texts.chunks_exact(DESCRIPTION);
        if !differ(texts.clone()) {
            return Ok(());
        }
        let all: Vec<_> = texts.map(decode).collect();
        let mut named = all.clone();
        named.iter_mut().for_each(|lines| lines.retain(|(name, _)| name != FINGERPRINT));
        let mut text = differences(&named);
        if text.starts_with(&format!("\n  {AT}: ")) {
            // What differs did not fit.
            text = differences(&all);
        }
        Err(Error::Mismatch { differences: text })
    }
}

/// Tells descriptions apart, also those that are too long to be sent.
const FINGERPRINT: &str = "fingerprint";

/// Whether the descriptions' first lines do, which are their fingerprints.
fn differ<'t>(texts: impl Iterator<Item = &'t [u8]>) -> bool {
    let mut fingerprints = texts.map(|text| text.split(|&byte| byte == b'\n').next());
    let first = fingerprints.next();
    fingerprints.any(|other| Some(other) != first)
}

fn fingerprint(description: &[(&'static str, String)]) -> i64 {
    let mut hasher = DefaultHasher::new();
    description.hash(&mut hasher);
    hasher.finish().cast_signed()
}

/// What a rank says of a call: its terms, or why it refuses it.
fn describe(
    site: Site,
    tensor: Option<(Datatype, bool)>,
    terms: &Result<Terms>,
) -> Vec<(&'static str, String)> {
    match terms {
        Ok(terms) => terms.describe(site, tensor),
        Err(error) => vec![("refused", error.to_string())],
    }
}

impl Terms<'_> {
    /// One axis, counted from the start.
    pub(crate) fn axis(axis: usize) -> [Option<i64>; 2] {
        [i64::try_from(axis).ok(), None]
    }

    /// By name, for the fingerprint and for the error.
    fn describe(
        &self,
        site: Site,
        tensor: Option<(Datatype, bool)>,
    ) -> Vec<(&'static str, String)> {
        let pass = if site.backward { "backward" } else { "forward" };
        let mut lines = vec![("operation", site.call.to_owned()), ("pass", pass.to_owned())];
        if let Some(op) = self.op {
            lines.push(("op", format!("Op::{op:?}")));
        }
        if let Some((datatype, requires_grad)) = tensor {
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
        if let Some((shape, free)) = self.shape {
            let extents: Vec<String> = shape
                .iter()
                .enumerate()
                .map(
                    |(i, extent)| if free == Some(i) { "_".to_owned() } else { extent.to_string() },
                )
                .collect();
            lines.push(("shape", format!("[{}]", extents.join(", "))));
        }
        lines
    }
}
