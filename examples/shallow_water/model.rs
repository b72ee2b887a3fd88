//! A shallow layer of water on a rotating planet, between two walls.
//!
//! The heights h are in the middles of the cells, the velocities u on their eastern and v on their
//! northern sides: Arakawa's C-grid. With the depth-averaged fluxes F = h (u, v), the potential
//! vorticity q = (f + ∂v/∂x − ∂u/∂y) / h on the cells' corners and B = g h + (u² + v²) / 2:
//!
//! ```text
//! ∂h/∂t = −∂Fx/∂x − ∂Fy/∂y
//! ∂u/∂t =  q Fy − ∂B/∂x + ν Δu
//! ∂v/∂t = −q Fx − ∂B/∂y + ν Δv
//! ```

use mpi4tch::tch::{Device, Kind, Tensor};
use mpi4tch::{Cartesian, Halo, Result, Tape};

use super::stencil::{X, Y, difference, inner, mean};

/// The lengths of the basin to the east and to the north, and its mean depth, in m.
pub const LENGTHS: [f64; 2] = [1.8e6, 9e5];
pub const DEPTH: f64 = 100.0;

/// In m/s².
const GRAVITY: f64 = 9.81;

/// The Coriolis parameter f at the southern wall, in 1/s, and its growth to the north, in 1/(m s).
const CORIOLIS: f64 = 2e-4;
const BETA: f64 = 2e-11;

/// The viscosity ν, in units of f times the area of a square as wide as a cell.
const VISCOSITY: f64 = 1e-3 * CORIOLIS;

/// The weights of this step's and the last one's rates of change, of Adams and Bashforth.
const WEIGHTS: [f64; 2] = [1.6, -0.6];

/// Corners included: the rate of change of each cell depends on its eight neighbours.
const HALOS: [Halo; 2] = [
    Halo { axis: Y, along: 0, before: 1, after: 1 },
    Halo { axis: X, along: 1, before: 1, after: 1 },
];

/// The basin, cut over a grid of ranks. It is periodic to the east; the rows go from the southern to
/// the northern wall.
#[derive(Clone)]
pub struct Model {
    pub grid: Cartesian,
    rows: i64,
    columns: i64,
    dx: f64,
    dy: f64,
}

impl Model {
    pub fn new(grid: Cartesian, rows: i64, columns: i64) -> Self {
        let (dx, dy) = (LENGTHS[0] / columns as f64, LENGTHS[1] / rows as f64);
        Self { grid, rows, columns, dx, dy }
    }

    /// The time step in s: an eighth of the time in which waves cross a cell.
    pub fn time_step(&self) -> f64 {
        0.125 * self.dx.min(self.dy) / (GRAVITY * DEPTH).sqrt()
    }

    /// A jet to the east in geostrophic balance, ∂h/∂y = −f u / g, and small waves that break its
    /// symmetry. Returns this rank's h, u and v, stacked.
    pub fn initial_fields(&self) -> Tensor {
        let (rows, columns) = (self.grid.block(0, self.rows), self.grid.block(1, self.columns));
        let y = (cells(0, self.rows) + 0.5) * self.dy;
        let jet = ((&y - 0.5 * LENGTHS[1]).square() / -(0.02 * LENGTHS[0]).powi(2)).exp() * 10.0;
        let slope = (&y * BETA + CORIOLIS) * &jet * (-self.dy / GRAVITY);
        let height = slope.cumsum(0, Kind::Double);
        let height = &height - height.mean(Kind::Double) + DEPTH;
        let [y, jet, height] =
            [y, jet, height].map(|x| x.narrow(0, rows.start, rows.end - rows.start).unsqueeze(1));
        let x = (cells(columns.start, columns.end) + 0.5) * self.dx;
        let pi = std::f64::consts::PI;
        let waves = (x * (10.0 * pi / LENGTHS[0])).sin() * (y * (8.0 * pi / LENGTHS[1])).cos();
        let u = jet.expand_as(&waves);
        Tensor::stack(&[height + &waves * 0.2, u, waves.zeros_like()], 0)
    }

    /// The fields after so many steps. The backward pass keeps as many states as there are slots, and
    /// computes the steps between them again.
    pub fn run(
        &self,
        tape: &Tape,
        fields: &Tensor,
        steps: usize,
        slots: usize,
        count: impl Fn() + Send + Sync + 'static,
    ) -> Result<Tensor> {
        let model = self.clone();
        let state = [fields, &fields.zeros_like()];
        let step = move |number: usize, state: &[Tensor]| {
            count();
            model.step(number, &state[0], &state[1])
        };
        Ok(tape.checkpoint_steps(&state, steps, slots, step)?.remove(0))
    }

    /// The next fields, and the rates of change that lead to them. One exchange is all the step needs.
    fn step(&self, number: usize, fields: &Tensor, last: &Tensor) -> Result<Vec<Tensor>> {
        let rates = self.rates(&self.grid.halo_exchange(fields, &HALOS)?);
        let change = match number {
            0 => rates.shallow_clone(),
            _ => &rates * WEIGHTS[0] + last * WEIGHTS[1],
        };
        Ok(vec![fields + change * self.time_step(), rates])
    }

    /// The rates of change of h, u and v, from the fields with a halo of one cell.
    ///
    /// Beyond the walls, the exchange gives zeros, and v is zero on the northern wall: so no flux
    /// passes a wall. The heights beyond are part of nothing that is not multiplied by such a flux.
    fn rates(&self, fields: &Tensor) -> Tensor {
        let &Self { dx, dy, .. } = self;
        let [h, u, v] = [0, 1, 2].map(|i| fields.get(i));
        let flux_x = mean(&h, X) * but_last(&u, X);
        let flux_y = mean(&h, Y) * but_last(&v, Y);
        let h_rate =
            -difference(&inner(&flux_x, Y), X) / dx - difference(&inner(&flux_y, X), Y) / dy;

        let rows = self.grid.block(0, self.rows);
        let coriolis = (cells(rows.start, rows.end + 1) * (self.dy * BETA) + CORIOLIS).unsqueeze(1);
        let vorticity = but_last(&difference(&v, X), Y) / dx - but_last(&difference(&u, Y), X) / dy;
        let q = (vorticity + coriolis) / mean(&mean(&h, X), Y);
        let squares = but_first(&mean(&u.square(), X), Y) + but_first(&mean(&v.square(), Y), X);
        let b = but_first(&but_first(&h, X), Y) * GRAVITY + squares * 0.5;
        let u_rate =
            but_first(&mean(&(&q * mean(&flux_y, X)), Y), X) - but_last(&difference(&b, X), Y) / dx;
        let v_rate = -but_first(&mean(&(&q * mean(&flux_x, Y)), X), Y)
            - but_last(&difference(&b, Y), X) / dy;

        let velocities = fields.narrow(0, 1, 2);
        let along = |axis, other| inner(&difference(&difference(&velocities, axis), axis), other);
        let friction = (along(X, Y) / (dx * dx) + along(Y, X) / (dy * dy)) * (VISCOSITY * dx * dx);
        let is_inside = cells(rows.start, rows.end).lt((self.rows - 1) as f64).unsqueeze(1);
        Tensor::stack(
            &[h_rate, u_rate + friction.get(0), (v_rate + friction.get(1)) * is_inside],
            0,
        )
    }
}

/// The numbers of cells along an axis.
fn cells(start: i64, end: i64) -> Tensor {
    Tensor::arange_start(start, end, (Kind::Double, Device::Cpu))
}

fn but_first(x: &Tensor, axis: i64) -> Tensor {
    x.slice(axis, 1, None, 1)
}

fn but_last(x: &Tensor, axis: i64) -> Tensor {
    x.slice(axis, 0, -1, 1)
}
