//! [`Layout`]: where in a field its ghosts are, and the messages by which they come.
//!
//! A message has a direction of travel: a step along each axis with a halo, of −1, 0 or 1. A rank sends
//! the cells of its block that lie at its border in that direction. The receiver's ghosts lie on the
//! other side: those before its block come from the rank before it, by a step of 1.

use std::fmt;
use std::ops::Range;

use super::Halo;
use crate::base::error::{Error, Result};
use crate::base::rank::Rank;
use crate::base::tag::Tag;
use crate::call::blocks::{axis_of, check_shape};
use crate::call::{Edge, Exchange, Region, Source, Stage};
use crate::engine::communicator::Communicator;
use crate::environment::status::PROC_NULL;
use crate::operations::grid::Grid;
use crate::operations::neighbors::{Part, tag};

/// The most halos of a tensor: the tag of a message has its direction, of 3⁷.
const MOST: usize = 7;

/// The place of a block of a field in the block with its ghosts.
#[derive(Debug)]
pub(super) struct Layout {
    /// The halos that are not empty, in the order of their axes of the grid.
    widths: Vec<Width>,
    /// The shape of the block.
    pub(super) block: Vec<i64>,
    /// The shape with ghosts.
    pub(super) wide: Vec<i64>,
}

/// A halo whose axis is counted from the start.
#[derive(Debug)]
struct Width {
    axis: usize,
    along: usize,
    before: i64,
    after: i64,
}

/// A step along each axis with a halo.
type Direction = Vec<i64>;

impl Layout {
    /// For a block of this shape.
    pub(super) fn around(
        call: &'static str,
        grid: &Grid,
        halos: &[Halo],
        block: &[i64],
    ) -> Result<Self> {
        let widths = widths(call, grid, halos, block)?;
        let mut wide = block.to_vec();
        for Width { axis, before, after, .. } in &widths {
            let (extent, width) = (block[*axis], *before.max(after));
            if extent < width {
                let message = format!(
                    "axis {axis} has extent {extent}, less than the width {width} of its halo"
                );
                return Err(Error::Argument { call, message });
            }
            wide[*axis] = extent.saturating_add(*before).saturating_add(*after);
        }
        check_shape(call, &wide)?;
        Ok(Self { widths, block: block.to_vec(), wide })
    }

    /// For a block that has this shape with its ghosts.
    pub(super) fn within(
        call: &'static str,
        grid: &Grid,
        halos: &[Halo],
        wide: &[i64],
    ) -> Result<Self> {
        let widths = widths(call, grid, halos, wide)?;
        let mut block = wide.to_vec();
        for Width { axis, before, after, .. } in &widths {
            block[*axis] -= before + after;
        }
        Ok(Self { widths, block, wide: wide.to_vec() })
    }

    /// The ghosts come along one axis after another. What is sent along an axis includes the ghosts
    /// along those before it.
    pub(super) fn by_axis(&self, comm: &Communicator, grid: &Grid) -> Exchange {
        let mut zeros = Vec::new();
        let stages = (0..self.widths.len()).map(|stage| {
            let source = if stage == 0 { Source::Input } else { Source::Output };
            let (mut sends, mut receives) = (Vec::new(), Vec::new());
            for step in [1, -1] {
                let mut direction = vec![0; self.widths.len()];
                direction[stage] = step;
                let [from, to] = self.ends(grid, &direction);
                let tag = tag_of(comm, &direction);
                let all = |i: usize| 0..self.wide[self.widths[i].axis];
                let sent = |i: usize| if i < stage { all(i) } else { self.sent(i, direction[i]) };
                let ghosts = self.region(&self.wide, |i| {
                    if i < stage { all(i) } else { self.ghosts(i, direction[i]) }
                });
                let region = match source {
                    Source::Input => self.region(&self.block, sent),
                    Source::Output => self.region(&self.wide, |i| {
                        let shift = if i < stage { 0 } else { self.widths[i].before };
                        let Range { start, end } = sent(i);
                        start + shift..end + shift
                    }),
                };
                add(&mut sends, to, tag, region);
                if from == PROC_NULL {
                    zeros.push(ghosts);
                } else {
                    add(&mut receives, from, tag, ghosts);
                }
            }
            Stage { source, sends, receives }
        });
        let stages = stages.collect();
        Exchange { stages, zeros, copied: Some(self.copied()), adds: false }
    }

    /// All ghosts come at once, each from the rank whose cells they are.
    pub(super) fn at_once(&self, comm: &Communicator, grid: &Grid) -> Exchange {
        let (mut sends, mut receives, mut zeros) = (Vec::new(), Vec::new(), Vec::new());
        for direction in self.directions() {
            let [from, to] = self.ends(grid, &direction);
            let tag = tag_of(comm, &direction);
            add(&mut sends, to, tag, self.region(&self.block, |i| self.sent(i, direction[i])));
            let ghosts = self.region(&self.wide, |i| self.ghosts(i, direction[i]));
            if from == PROC_NULL {
                zeros.push(ghosts);
            } else {
                add(&mut receives, from, tag, ghosts);
            }
        }
        let stages = vec![Stage { source: Source::Input, sends, receives }];
        Exchange { stages, zeros, copied: Some(self.copied()), adds: false }
    }

    /// All ghosts go home at once, where they are added to the cells of the block.
    pub(super) fn home(&self, comm: &Communicator, grid: &Grid) -> Exchange {
        let (mut sends, mut receives) = (Vec::new(), Vec::new());
        for direction in self.directions() {
            let [from, to] = self.ends(grid, &direction);
            let tag = tag_of(comm, &direction);
            add(&mut sends, from, tag, self.region(&self.wide, |i| self.ghosts(i, direction[i])));
            add(&mut receives, to, tag, self.region(&self.block, |i| self.sent(i, direction[i])));
        }
        let stages = vec![Stage { source: Source::Input, sends, receives }];
        let [block, in_wide] = self.copied();
        Exchange { stages, zeros: Vec::new(), copied: Some([in_wide, block]), adds: true }
    }

    /// The block by itself, and in the block with ghosts.
    fn copied(&self) -> [Region; 2] {
        [Region::all(&self.block), self.region(&self.wide, |i| self.ghosts(i, 0))]
    }

    /// All directions but that of no step.
    fn directions(&self) -> Vec<Direction> {
        let mut all = vec![Vec::new()];
        for _ in &self.widths {
            let longer = |start: Direction| [-1, 0, 1].map(|step| [&start[..], &[step]].concat());
            all = all.into_iter().flat_map(longer).collect();
        }
        all.retain(|direction| direction.iter().any(|step| *step != 0));
        all
    }

    /// The rank that a message of this direction comes from, and the rank that it goes to.
    fn ends(&self, grid: &Grid, direction: &[i64]) -> [Rank; 2] {
        [-1, 1].map(|sign| {
            let mut steps = vec![0; grid.dims.len()];
            for (width, step) in self.widths.iter().zip(direction) {
                steps[width.along] = sign * step;
            }
            grid.rank_beyond(&steps)
        })
    }

    /// The cells of the block that are sent by a step along the axis of the `i`th halo.
    fn sent(&self, i: usize, step: i64) -> Range<i64> {
        let Width { axis, before, after, .. } = self.widths[i];
        let extent = self.block[axis];
        match step {
            1 => extent - before..extent,
            -1 => 0..after,
            _ => 0..extent,
        }
    }

    /// The ghosts that come by a step along the axis of the `i`th halo; the cells of the block without
    /// one.
    fn ghosts(&self, i: usize, step: i64) -> Range<i64> {
        let Width { axis, before, after, .. } = self.widths[i];
        let end = before + self.block[axis];
        match step {
            1 => 0..before,
            -1 => end..end + after,
            _ => before..end,
        }
    }

    /// The region of a tensor that has a range along the axis of each halo, and all of the others.
    fn region(&self, whole: &[i64], range: impl Fn(usize) -> Range<i64>) -> Region {
        let mut ranges: Vec<Range<i64>> = whole.iter().map(|extent| 0..*extent).collect();
        for (i, width) in self.widths.iter().enumerate() {
            ranges[width.axis] = range(i);
        }
        Region::new(whole, &ranges)
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Width { axis, along, before, after }) in self.widths.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}axis {axis} along {along}: {before} before, {after} after")?;
        }
        if self.widths.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

/// The halos that are not empty, for a field of this shape.
fn widths(call: &'static str, grid: &Grid, halos: &[Halo], shape: &[i64]) -> Result<Vec<Width>> {
    let refuse = |message: String| Err(Error::Argument { call, message });
    let axes = grid.dims.len();
    if halos.len() > MOST {
        return refuse(format!("{} halos were given; at most {MOST} are possible", halos.len()));
    }
    let mut widths: Vec<Width> = Vec::new();
    for Halo { axis, along, before, after } in halos.iter().copied() {
        let axis = axis_of(call, axis, shape)?;
        if along >= axes {
            return refuse(format!("a halo is along axis {along} of a grid of {axes} axes"));
        }
        if before < 0 || after < 0 {
            return refuse(format!("a halo has the widths {before} and {after}; one is negative"));
        }
        if widths.iter().any(|other| other.axis == axis) {
            return refuse(format!("axis {axis} of the tensor has two halos"));
        }
        if widths.iter().any(|other| other.along == along) {
            return refuse(format!("two halos are along axis {along} of the grid"));
        }
        widths.push(Width { axis, along, before, after });
    }
    widths.retain(|width| width.before != 0 || width.after != 0);
    widths.sort_by_key(|width| width.along);
    Ok(widths)
}

/// The tag of messages of this direction, whose steps are the digits of a number.
fn tag_of(comm: &Communicator, direction: &[i64]) -> Tag {
    let digits = direction.iter().map(|step| i32::try_from(step + 1).unwrap_or(0));
    tag(comm, digits.fold(0, |number, digit| 3 * number + digit), Part::Data)
}

fn add(edges: &mut Vec<Edge>, peer: Rank, tag: Tag, region: Region) {
    if peer != PROC_NULL && !region.is_empty() {
        edges.push(Edge { peer, tag, region });
    }
}
