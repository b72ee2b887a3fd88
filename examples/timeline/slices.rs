//! The slices of a timeline, drawn.

use std::error::Error;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::picture::{ABOVE, BELOW, BESIDE, Drawing, MARGIN, Pixels, TEXT, short};

/// What a rank did for some time. Times are in milliseconds.
#[derive(Clone)]
pub struct Slice {
    pub rank: i32,
    pub name: String,
    pub sort: Sort,
    pub begin: f64,
    pub end: f64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// A backward pass.
    Pass,
    /// A call in the forward pass, or in the backward pass.
    Forward,
    Backward,
    /// A wait for other ranks.
    Wait,
}

/// A message, from a rank and time to another.
#[derive(Clone, Copy)]
pub struct Arrow {
    pub from: (i32, f64),
    pub to: (i32, f64),
}

/// A part of a timeline.
pub struct Slices {
    pub ranks: i32,
    pub list: Vec<Slice>,
    pub arrows: Vec<Arrow>,
}

/// The height of a rank's line, and of the picture's inner part above and below.
const HEIGHT: u32 = 84;

/// Colors that people with any kind of color vision can tell apart, of M. Okabe and K. Ito.
const FORWARD: RGBColor = RGBColor(0, 114, 178);
const BACKWARD: RGBColor = RGBColor(213, 94, 0);
const WAIT: RGBColor = RGBColor(205, 205, 205);
const WORK: RGBColor = RGBColor(170, 222, 203);
const PASS: RGBColor = RGBColor(240, 228, 66);

impl Slices {
    /// What lies between the end of the backward pass before the one of this number and its own end, on
    /// each rank. Times are counted from the first.
    pub fn of_pass(self, number: u64) -> Result<Self, String> {
        let mut windows = Vec::new();
        for rank in 0..self.ranks {
            let of_rank = self.list.iter().filter(|s| s.rank == rank && s.sort == Sort::Pass);
            let mut ends: Vec<f64> = of_rank.map(|slice| slice.end).collect();
            ends.sort_by(f64::total_cmp);
            let place = usize::try_from(number).unwrap_or(usize::MAX) - 1;
            let Some(end) = ends.get(place) else {
                return Err(format!("there are {} backward passes on rank {rank}", ends.len()));
            };
            windows.push((if place == 0 { f64::MIN } else { ends[place - 1] }, *end));
        }
        let is_within = |rank: i32, time: f64| {
            let window = usize::try_from(rank).ok().and_then(|rank| windows.get(rank));
            window.is_some_and(|&(begin, end)| begin < time && time <= end)
        };
        let mut list = self.list;
        list.retain(|slice| is_within(slice.rank, slice.end));
        let first = list.iter().map(|slice| slice.begin).fold(f64::INFINITY, f64::min);
        for slice in &mut list {
            (slice.begin, slice.end) = (slice.begin - first, slice.end - first);
        }
        let mut arrows = self.arrows;
        arrows.retain(|arrow| {
            is_within(arrow.from.0, arrow.from.1) && is_within(arrow.to.0, arrow.to.1)
        });
        for Arrow { from, to } in &mut arrows {
            (from.1, to.1) = (from.1 - first, to.1 - first);
        }
        Ok(Self { list, arrows, ..self })
    }

    fn end(&self) -> f64 {
        self.list.iter().map(|slice| slice.end).fold(0.0, f64::max)
    }

    /// Where a rank's line is: its middle.
    fn middle(&self, rank: i32) -> f64 {
        f64::from(self.ranks - rank) - 0.5
    }

    /// A part of a rank's line, from below its middle to above it.
    fn part(&self, rank: i32, [begin, end]: [f64; 2], [below, above]: [f64; 2]) -> [(f64, f64); 2] {
        let middle = self.middle(rank);
        [(begin, middle + below), (end, middle + above)]
    }

    fn draw_names(area: &Pixels) -> Result<(), Box<dyn Error>> {
        let centre = Pos::new(HPos::Left, VPos::Center);
        let style = TextStyle::from(("sans-serif", TEXT).into_font()).pos(centre);
        let (mut x, y) = (i32::try_from(MARGIN + BESIDE).unwrap_or(0), 20);
        let names = [
            ("forward", FORWARD),
            ("backward", BACKWARD),
            ("waits for other ranks", WAIT),
            ("local work", WORK),
            ("Tape::backward", PASS),
        ];
        for (name, color) in names {
            area.draw(&Rectangle::new([(x, y - 6), (x + 12, y + 6)], color.filled()))?;
            area.draw_text(name, &style, (x + 20, y))?;
            let (width, _) = area.estimate_text_size(name, &style)?;
            x += i32::try_from(width).unwrap_or(0) + 50;
        }
        Ok(())
    }
}

impl Drawing for Slices {
    fn size(&self) -> (u32, u32) {
        (1280, ABOVE + BELOW + HEIGHT * self.ranks.unsigned_abs())
    }

    fn draw(&self, area: &Pixels) -> Result<(), Box<dyn Error>> {
        let (top, area) = area.split_vertically(ABOVE);
        Self::draw_names(&top)?;
        let ranks = f64::from(self.ranks);
        let mut chart = ChartBuilder::on(&area)
            .margin_left(MARGIN)
            .margin_right(MARGIN)
            .x_label_area_size(BELOW)
            .y_label_area_size(BESIDE)
            .build_cartesian_2d(0.0..self.end(), 0.0..ranks)?;
        chart
            .configure_mesh()
            .disable_mesh()
            .disable_y_axis()
            .x_desc("time in ms")
            .x_label_formatter(&short)
            .label_style(("sans-serif", TEXT))
            .axis_desc_style(("sans-serif", TEXT))
            .draw()?;
        let names = TextStyle::from(("sans-serif", TEXT).into_font())
            .pos(Pos::new(HPos::Right, VPos::Center));
        for rank in 0..self.ranks {
            let (x, y) = chart.backend_coord(&(0.0, self.middle(rank)));
            // In the whole picture's pixels.
            area.draw_text(&format!("rank {rank}"), &names, relative(&area, (x - 10, y)))?;
            let own = self.list.iter().filter(|slice| slice.rank == rank);
            let last = own.map(|slice| slice.end).fold(0.0, f64::max);
            let line = self.part(rank, [0.0, last], [-0.25, 0.25]);
            chart.draw_series([Rectangle::new(line, WORK.filled())])?;
        }
        // The parts of a slice are drawn over it.
        for (sort, color, heights) in [
            (Sort::Pass, PASS, [-0.36, -0.27]),
            (Sort::Forward, FORWARD, [-0.25, 0.25]),
            (Sort::Backward, BACKWARD, [-0.25, 0.25]),
            (Sort::Wait, WAIT, [-0.19, 0.19]),
        ] {
            let slices = self.list.iter().filter(|slice| slice.sort == sort);
            chart.draw_series(slices.map(|slice| {
                let place = self.part(slice.rank, [slice.begin, slice.end], heights);
                Rectangle::new(place, color.filled())
            }))?;
        }
        for arrow in &self.arrows {
            let ends = [arrow.from, arrow.to].map(|(rank, time)| (time, self.middle(rank)));
            chart.draw_series([PathElement::new(ends.to_vec(), BLACK.stroke_width(1))])?;
            chart.draw_series([Circle::new(ends[1], 3, BLACK.filled())])?;
        }
        let text = ("sans-serif", TEXT - 4);
        for slice in
            self.list.iter().filter(|slice| matches!(slice.sort, Sort::Forward | Sort::Backward))
        {
            let middle = self.middle(slice.rank) + 0.25;
            let [left, right] = [slice.begin, slice.end].map(|x| chart.backend_coord(&(x, middle)));
            let style = TextStyle::from(text.into_font()).pos(Pos::new(HPos::Left, VPos::Bottom));
            let (width, _) = area.estimate_text_size(&slice.name, &style)?;
            if i64::from(right.0 - left.0) > i64::from(width) {
                area.draw_text(&slice.name, &style, relative(&area, (left.0, left.1 - 1)))?;
            }
        }
        Ok(())
    }
}

/// A pixel of the whole picture as one of the area.
fn relative(area: &Pixels, (x, y): (i32, i32)) -> (i32, i32) {
    let (left, top) = area.get_base_pixel();
    (x - left, y - top)
}
