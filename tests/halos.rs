//! Halo exchange: against a serial cut of the whole field.

mod common;

use std::process::ExitCode;

use common::tensors::{range, tensor, variable};
use common::{Context, start, without_lines, works};
use mpi4tch::{Cartesian, Communicator, Error, Halo, Result, testing};
use tch::{Kind, Tensor};

fn main() -> ExitCode {
    harness::run(
        start,
        harness::tests![
            ghosts_are_the_cells_beside_the_block,
            every_kind_and_layout,
            adjoints,
            second_derivatives,
            on_a_tape,
            started_and_blocking_at_the_same_time,
            what_goes_backward_comes_from_ahead,
            what_is_refused,
            halos_that_differ,
            halos_in_another_order,
            blocks_that_do_not_fit,
            a_block_that_is_changed_meanwhile,
        ],
    )
}

/// A grid, the shape of a field, and its halos.
struct Case {
    grid: Cartesian,
    shape: Vec<i64>,
    halos: Vec<Halo>,
}

fn halo(axis: i64, along: usize, before: i64, after: i64) -> Halo {
    Halo { axis, along, before, after }
}

/// Extents that do not divide, periodic axes of one and two ranks, further axes.
fn cases(world: &Communicator) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let mut add = |dims: &[i32], periodic: &[bool], shape: &[i64], halos: &[Halo]| -> Result<()> {
        let grid = world.cartesian(dims, periodic, false)?.expect("all ranks are in it");
        cases.push(Case { grid, shape: shape.to_vec(), halos: halos.to_vec() });
        Ok(())
    };
    for periodic in [false, true] {
        add(&[0], &[periodic], &[17], &[halo(0, 0, 1, 1)])?;
        add(&[0], &[periodic], &[15, 3], &[halo(0, 0, 2, 1)])?;
        add(&[0], &[periodic], &[2, 14], &[halo(-1, 0, 0, 2)])?;
        add(&[0], &[periodic], &[9], &[halo(0, 0, 0, 0)])?;
        add(&[0, 0], &[periodic, !periodic], &[15, 16], &[halo(0, 0, 1, 1), halo(1, 1, 1, 1)])?;
        add(&[0, 0], &[periodic; 2], &[15, 2, 17], &[halo(2, 1, 2, 1), halo(0, 0, 1, 2)])?;
        add(&[0, 0], &[!periodic, periodic], &[15, 8], &[halo(0, 0, 0, 1), halo(1, 1, 1, 0)])?;
        add(&[0, 0], &[periodic; 2], &[9, 8], &[halo(0, 1, 1, 1)])?;
        add(
            &[0, 1, 1],
            &[true, periodic, true],
            &[3, 15, 4],
            &[halo(0, 2, 1, 1), halo(1, 0, 1, 2), halo(2, 1, 2, 0)],
        )?;
        let three = [halo(0, 0, 1, 1), halo(1, 1, 1, 1), halo(2, 2, 1, 1)];
        add(&[0, 0, 0], &[periodic, true, !periodic], &[8, 7, 9, 2], &three)?;
    }
    add(&[0, 0], &[true; 2], &[7, 8], &[])?;
    add(&[0], &[true], &[16, 0], &[halo(0, 0, 1, 1)])?;
    Ok(cases)
}

impl Case {
    fn place(&self, axis: i64) -> usize {
        let axes = i64::try_from(self.shape.len()).expect("few");
        usize::try_from(axis.rem_euclid(axes)).expect("in range")
    }

    /// The whole field, equal on all ranks.
    fn whole(&self, kind: Kind) -> Result<Tensor> {
        self.grid.broadcast(&testing::random(&self.grid, &self.shape, kind)?, 0)
    }

    /// This rank's block of the whole, with ghosts of these widths, cut by index.
    fn cut(&self, whole: &Tensor, wide: bool) -> Tensor {
        let mut part = whole.shallow_clone();
        for Halo { axis, along, before, after } in &self.halos {
            let extent = self.shape[self.place(*axis)];
            let own = self.grid.block(*along, extent);
            let (before, after) = if wide { (*before, *after) } else { (0, 0) };
            let cells: Vec<i64> = (own.start - before..own.end + after)
                .map(|cell| match self.grid.periodic()[*along] {
                    true => cell.rem_euclid(extent),
                    false if (0..extent).contains(&cell) => cell,
                    // Beyond the whole is a cell of zeros.
                    false => extent,
                })
                .collect();
            let zeros = part.narrow(*axis, 0, 1).zeros_like();
            part = Tensor::cat(&[part, zeros], *axis).index_select(*axis, &tensor(&cells));
        }
        part
    }

    fn block(&self, whole: &Tensor) -> Tensor {
        self.cut(whole, false)
    }

    fn exchange(&self, form: Form, x: &Tensor) -> Result<Tensor> {
        form.exchange(&self.grid, x, &self.halos)
    }
}

#[derive(Clone, Copy, Debug)]
enum Form {
    Blocking,
    Started,
}

const FORMS: [Form; 2] = [Form::Blocking, Form::Started];

impl Form {
    fn exchange(self, grid: &Cartesian, x: &Tensor, halos: &[Halo]) -> Result<Tensor> {
        match self {
            Self::Blocking => grid.halo_exchange(x, halos),
            Self::Started => grid.ihalo_exchange(x, halos)?.wait(),
        }
    }
}

fn ghosts_are_the_cells_beside_the_block(context: &Context) -> Result<()> {
    for case in cases(&context.world)? {
        let whole = case.whole(Kind::Double)?;
        let expected = case.cut(&whole, true);
        for form in FORMS {
            let y = case.exchange(form, &case.block(&whole))?;
            assert_eq!(
                y,
                expected,
                "{form:?} {:?} {:?} {:?}",
                case.grid.dims(),
                case.shape,
                case.halos
            );
            assert!(y.is_contiguous());
        }
    }
    Ok(())
}

fn every_kind_and_layout(context: &Context) -> Result<()> {
    let kinds = [
        Kind::Uint8,
        Kind::Int8,
        Kind::Int16,
        Kind::Int,
        Kind::Int64,
        Kind::Half,
        Kind::BFloat16,
        Kind::Float,
        Kind::ComplexFloat,
        Kind::ComplexDouble,
        Kind::Bool,
    ];
    let dims = [true, false];
    let grid = context.world.cartesian(&[0, 0], &dims, false)?.expect("all ranks are in it");
    let case = Case { grid, shape: vec![16, 15], halos: vec![halo(0, 0, 1, 2), halo(1, 1, 1, 1)] };
    for form in FORMS {
        for kind in kinds {
            let whole = case.whole(kind)?;
            assert_eq!(
                case.exchange(form, &case.block(&whole))?,
                case.cut(&whole, true),
                "{kind:?}"
            );
        }
        let whole = case.whole(Kind::Double)?;
        let (block, expected) = (case.block(&whole), case.cut(&whole, true));
        let turned = block.transpose(0, 1).contiguous().transpose(0, 1);
        assert_eq!(case.exchange(form, &turned)?, expected);
        // A block within a larger tensor.
        let within = block.constant_pad_nd([1, 2, 3, 4]).narrow(0, 3, block.size()[0]);
        let within = within.narrow(1, 1, block.size()[1]);
        assert_eq!(case.exchange(form, &within)?, expected);
        let conjugated = case.whole(Kind::ComplexDouble)?;
        let y = case.exchange(form, &case.block(&conjugated).conj())?;
        assert_eq!(y, case.cut(&conjugated, true).conj().resolve_conj());
    }
    Ok(())
}

fn adjoints(context: &Context) -> Result<()> {
    for case in cases(&context.world)? {
        let x = testing::random(
            &case.grid,
            &case.block(&case.whole(Kind::Double)?).size(),
            Kind::Double,
        )?;
        for form in FORMS {
            testing::assert_adjoint(&case.grid, &x, |x| case.exchange(form, x))?;
        }
    }
    Ok(())
}

fn second_derivatives(context: &Context) -> Result<()> {
    for case in cases(&context.world)? {
        if case.shape.contains(&0) || case.shape.iter().product::<i64>() > 300 {
            continue;
        }
        let shape = case.block(&case.whole(Kind::Double)?).size();
        for form in FORMS {
            let x = variable(&case.grid, &shape)?;
            testing::gradgradcheck(&case.grid, &x, |x| Ok(case.exchange(form, &x.exp())?.sin()))?;
        }
    }
    Ok(())
}

/// The steps of a nonlinear field, forward and back, also where only one rank has a loss.
fn on_a_tape(context: &Context) -> Result<()> {
    let step = |wide: &Tensor| {
        let (rows, columns) = (wide.size()[0] - 2, wide.size()[1] - 2);
        let cells = |i, j| wide.narrow(0, i, rows).narrow(1, j, columns);
        (cells(0, 1)
            + cells(2, 1) * 2.0
            + cells(1, 0) * 3.0
            + cells(1, 2)
            + cells(0, 0) * cells(2, 2))
        .tanh()
    };
    let halos = vec![halo(0, 0, 1, 1), halo(1, 1, 1, 1)];
    for periodic in [false, true] {
        let tape = context.world.tape();
        let grid = tape.cartesian(&[0, 0], &[periodic, true], false)?.expect("all ranks are in it");
        let case = Case { grid, shape: vec![9, 8], halos: halos.clone() };
        let whole = case.whole(Kind::Double)?.detach();
        for form in FORMS {
            let x = case.block(&whole).set_requires_grad(true);
            let mut y = x.shallow_clone();
            for _ in 0..3 {
                y = step(&case.exchange(form, &y)?);
            }
            let loss = (case.grid.rank() == 0).then(|| y.square().sum(Kind::Double));
            tape.backward(loss.as_ref())?;
            // The same on the whole field, on every rank.
            let all = whole.copy().set_requires_grad(true);
            let alone = context.world.split(Some(context.world.rank()), 0)?.expect("a rank alone");
            let line = alone.cartesian(&[1, 1], &[periodic, true], false)?.expect("one rank");
            let serial = Case { grid: line, shape: vec![9, 8], halos: halos.clone() };
            let mut y = all.shallow_clone();
            for _ in 0..3 {
                y = step(&serial.cut(&y, true));
            }
            let (rows, columns) = (case.grid.dims()[0], case.grid.dims()[1]);
            let first = y.narrow(0, 0, (9 + i64::from(rows) - 1) / i64::from(rows));
            let first = first.narrow(1, 0, (8 + i64::from(columns) - 1) / i64::from(columns));
            first.square().sum(Kind::Double).backward();
            let difference = (x.grad() - case.block(&all.grad())).abs().max().double_value(&[]);
            assert!(difference < 1e-13, "{form:?} {difference:e}");
        }
    }
    Ok(())
}

/// A blocking exchange between the start of another and its end, and requests that are waited for in
/// the reverse order.
fn started_and_blocking_at_the_same_time(context: &Context) -> Result<()> {
    let grid = context.world.cartesian(&[0, 0], &[true; 2], false)?.expect("all ranks are in it");
    let case = Case { grid, shape: vec![8, 9], halos: vec![halo(0, 0, 1, 1), halo(1, 1, 1, 1)] };
    let fields: Vec<Tensor> = (0..5).map(|_| case.whole(Kind::Double)).collect::<Result<_>>()?;
    let requests: Vec<_> = fields
        .iter()
        .map(|field| case.grid.ihalo_exchange(&case.block(field), &case.halos))
        .collect::<Result<_>>()?;
    let y = case.exchange(Form::Blocking, &case.block(&fields[0]))?;
    assert_eq!(y, case.cut(&fields[0], true));
    for (request, field) in requests.into_iter().zip(&fields).rev() {
        assert_eq!(request.wait()?, case.cut(field, true));
    }
    // Dropped undone: it completes all the same.
    drop(case.grid.ihalo_exchange(&y, &case.halos)?);
    let again = case.exchange(Form::Blocking, &case.block(&fields[1]))?;
    assert_eq!(again, case.cut(&fields[1], true));
    Ok(())
}

/// On a periodic axis of one or two ranks both neighbours are the same rank.
fn what_goes_backward_comes_from_ahead(context: &Context) -> Result<()> {
    let world = &context.world;
    for ranks in [1, 2] {
        let Some(ring) = world.cartesian(&[ranks.min(world.size())], &[true], false)? else {
            continue;
        };
        let (rank, ranks) = (i64::from(ring.rank()), i64::from(ring.size()));
        let x = range(3, Kind::Int64) + 3 * rank;
        let all = 3 * ranks;
        let expected: Vec<i64> =
            (3 * rank - 2..3 * rank + 4).map(|cell| cell.rem_euclid(all)).collect();
        for form in FORMS {
            let y = form.exchange(&ring, &x, &[halo(0, 0, 2, 1)])?;
            assert_eq!(y, tensor(&expected));
        }
    }
    Ok(())
}

fn what_is_refused(context: &Context) -> Result<()> {
    let grid = context.world.cartesian(&[0, 0], &[true; 2], false)?.expect("all ranks are in it");
    let x = testing::random(&grid, &[4, 5], Kind::Double)?;
    let both = halo(0, 0, 1, 1);
    let cases: [(&[Halo], &str); 8] = [
        (&[halo(2, 0, 1, 1)], "axis 2 is out of range for a tensor of shape [4, 5]"),
        (&[halo(0, 2, 1, 1)], "a halo is along axis 2 of a grid of 2 axes"),
        (&[halo(0, 0, 1, -1)], "a halo has the widths 1 and -1; one is negative"),
        (&[both, halo(-2, 1, 1, 1)], "axis 0 of the tensor has two halos"),
        (&[both, halo(1, 0, 1, 1)], "two halos are along axis 0 of the grid"),
        (&[halo(0, 0, 5, 0)], "axis 0 has extent 4, less than the width 5 of its halo"),
        (&[halo(1, 1, 0, 6)], "axis 1 has extent 5, less than the width 6 of its halo"),
        (&[both; 8], "8 halos were given; at most 7 are possible"),
    ];
    for (halos, text) in cases {
        for form in FORMS {
            let error = form.exchange(&grid, &x, halos).expect_err(text);
            assert_eq!(error.to_string(), format!("halo_exchange: {text}"));
        }
    }
    works(&grid)
}

/// Widths, axes, or a thin block on one rank only: an error on all ranks.
fn halos_that_differ(context: &Context) -> Result<()> {
    let grid = context.world.cartesian(&[0], &[true], false)?.expect("all ranks are in it");
    if grid.size() == 1 {
        return Ok(());
    }
    let last = grid.rank() == grid.size() - 1;
    let x = testing::random(&grid, &[6], Kind::Double)?;
    let others = if grid.size() == 2 {
        "rank 0".to_owned()
    } else {
        let list: Vec<String> = (0..grid.size() - 1).map(|rank| rank.to_string()).collect();
        format!("ranks {}", list.join(", "))
    };
    for form in FORMS {
        let error = form.exchange(&grid, &x, &[halo(0, 0, if last { 2 } else { 1 }, 1)]);
        let text = without_lines(&error.expect_err("halos differ"));
        let expected = format!(
            "halos: axis 0 along 0: 1 before, 1 after on {others}; axis 0 along 0: 2 before, 1 after on rank {}",
            grid.size() - 1
        );
        assert!(text.contains(&expected), "{text}");
        let thin = if last { x.narrow(0, 0, 1) } else { x.shallow_clone() };
        let error = form.exchange(&grid, &thin, &[halo(0, 0, 2, 1)]).expect_err("a thin block");
        let refusal = "halo_exchange: axis 0 has extent 1, less than the width 2 of its halo";
        if last {
            assert_eq!(error.to_string(), refusal);
        } else {
            assert!(matches!(error, Error::Mismatch { .. }), "{error}");
            assert!(error.to_string().contains(refusal), "{error}");
        }
    }
    works(&grid)
}

/// The same halos, in another order, by other numbers of the axes, with an empty one more.
fn halos_in_another_order(context: &Context) -> Result<()> {
    let grid = context.world.cartesian(&[0, 0], &[true; 2], false)?.expect("all ranks are in it");
    let (shape, halos) = (vec![16, 17, 2], vec![halo(0, 0, 1, 2), halo(1, 1, 2, 1)]);
    let case = Case { grid, shape, halos };
    let whole = case.whole(Kind::Double)?;
    let (block, expected) = (case.block(&whole), case.cut(&whole, true));
    let turned = vec![halo(-2, 1, 2, 1), halo(-3, 0, 1, 2)];
    let own = if case.grid.rank() % 2 == 0 { &case.halos } else { &turned };
    for form in FORMS {
        assert_eq!(form.exchange(&case.grid, &block, own)?, expected, "{form:?}");
    }
    Ok(())
}

/// Blocks beside each other whose other extents differ: memory is safe, and all ranks get the error.
fn blocks_that_do_not_fit(context: &Context) -> Result<()> {
    let grid = context.world.cartesian(&[0], &[true], false)?.expect("all ranks are in it");
    if grid.size() == 1 {
        return Ok(());
    }
    let last = grid.rank() == grid.size() - 1;
    for form in FORMS {
        for (wide, narrow) in [(1 << 16, 3), (4, 6)] {
            let x = testing::random(&grid, &[2, if last { wide } else { narrow }], Kind::Float)?;
            let error = form.exchange(&grid, &x, &[halo(0, 0, 1, 1)]).expect_err("they do not fit");
            let text = error.to_string();
            assert!(matches!(error, Error::Mismatch { .. }), "{text}");
            for line in ["blocks to send", "blocks to receive"] {
                assert!(text.contains(line), "{text}");
            }
            assert!(text.contains(&format!("[1, {wide}] to rank 0")), "{text}");
        }
        // The same number of elements in another shape.
        let x = testing::random(&grid, if last { &[2, 2, 3] } else { &[2, 3, 2] }, Kind::Float)?;
        let error = form.exchange(&grid, &x, &[halo(0, 0, 1, 1)]).expect_err("they do not fit");
        assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    }
    works(&grid)
}

fn a_block_that_is_changed_meanwhile(context: &Context) -> Result<()> {
    let grid = context.world.cartesian(&[0], &[true], false)?.expect("all ranks are in it");
    let mut x = testing::random(&grid, &[6], Kind::Double)?;
    let request = grid.ihalo_exchange(&x, &[halo(0, 0, 1, 1)])?;
    let _ = x.fill_(0.0);
    assert!(matches!(request.wait(), Err(Error::InFlight { .. })));
    works(&grid)
}
