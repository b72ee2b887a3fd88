//! Draws work of each rank on its own tensors.

use super::{Draft, Known, LARGEST, MOST_ELEMENTS, is_same};
use crate::local::Local;
use crate::program::Step;

impl Draft {
    pub(super) fn local(&mut self) {
        let (x, y) = (self.any(), self.any());
        let alike = x.shapes == y.shapes;
        let mut joins =
            x.shapes.iter().zip(&y.shapes).all(|(a, b)| a.len() == b.len() && a[1..] == b[1..]);
        // By libtorch, the gradient of an empty part is a constant: the losses of second derivatives do
        // not depend on what comes after it.
        joins &= !self.needs_no_tape || x.shapes.iter().chain(&y.shapes).all(|shape| shape[0] > 0);
        let most = y.shapes.iter().map(|shape| shape.iter().product::<i64>()).max().unwrap_or(0);
        let flat = x.shapes.iter().all(|shape| shape.len() == 1);
        let plane = x.shapes.iter().all(|shape| shape.len() == 2);
        let each = |f: fn(&Vec<i64>) -> Vec<i64>| x.shapes.iter().map(f).collect::<Vec<_>>();
        match self.random.below(9) {
            0 => self.work(Local::Sin(x.var), x.shapes, 1.0),
            1 => self.scaled(&x),
            2 if !self.needs_no_tape && self.random.one_in(2) => {
                let ranks = self.some_ranks();
                self.work(Local::Detach(x.var, ranks), x.shapes, x.bound)
            }
            3 if alike => self.work(Local::Add(x.var, y.var), x.shapes, x.bound + y.bound),
            4 if alike => self.work(Local::Mul(x.var, y.var), x.shapes, x.bound * y.bound),
            5 if joins => {
                let ends = x.shapes.iter().zip(&y.shapes);
                let shapes = ends
                    .map(|(a, b)| {
                        let mut shape = a.clone();
                        shape[0] += b[0];
                        shape
                    })
                    .collect();
                self.work(Local::Cat(x.var, y.var), shapes, x.bound.max(y.bound))
            }
            6 => self.narrowed(&x),
            7 if plane => {
                let shapes = each(|shape| vec![shape[1], shape[0]]);
                self.work(Local::Transpose(x.var), shapes, x.bound)
            }
            8 if !flat => {
                let shapes = each(|shape| vec![shape.iter().product()]);
                self.work(Local::Flatten(x.var), shapes, x.bound)
            }
            _ => {
                let bound = x.bound + most as f64 * y.bound;
                self.work(Local::AddSum(x.var, y.var), x.shapes, bound)
            }
        };
    }

    /// A step of local work, whose result later steps may use.
    pub(super) fn work(&mut self, work: Local, shapes: Vec<Vec<i64>>, bound: f64) -> Known {
        let y = self.var();
        self.steps.push(Step::Local { y, work });
        self.add(Known { var: y, shapes, bound })
    }

    /// Lets later steps use a tensor, or what it is made small by.
    pub(super) fn add(&mut self, known: Known) -> Known {
        let largest = known.shapes.iter().map(|shape| shape.iter().product::<i64>()).max();
        if largest > Some(MOST_ELEMENTS) {
            return self.narrowed(&known);
        }
        if known.bound > LARGEST {
            return self.scaled(&known);
        }
        self.pool.push(known.clone());
        known
    }

    /// By a factor that differs from rank to rank.
    pub(super) fn scaled(&mut self, x: &Known) -> Known {
        let factors = (0..self.ranks).map(|_| self.random.factor() / x.bound.max(1.0)).collect();
        let bound = 1.5 * (x.bound / x.bound.max(1.0));
        self.work(Local::Scale(x.var, factors), x.shapes.clone(), bound)
    }

    /// A few rows or columns, other ones on each rank.
    fn narrowed(&mut self, x: &Known) -> Known {
        let axis = self.random.below(x.shapes.iter().map(Vec::len).min().unwrap_or(1));
        let same = self.random.one_in(2) && is_same(&x.shapes);
        let most = x.shapes[0][axis].min(4);
        let length = self.random.extent(most.min(1), most);
        let (mut parts, mut shapes) = (Vec::new(), x.shapes.clone());
        for shape in &mut shapes {
            let most = shape[axis].min(4);
            let length = if same { length } else { self.random.extent(0, most) };
            parts.push((self.random.extent(0, shape[axis] - length), length));
            shape[axis] = length;
        }
        let axis = i64::try_from(axis).expect("axes are few");
        self.work(Local::Narrow(x.var, axis, parts), shapes, x.bound)
    }
}
