//! The closed-form solution, to compare with.

use std::error::Error;

use mpi4tch::tch::Tensor;
use mpi4tch::{Communicator, Op};

use crate::data::Standardized;

/// The normal equations XᵀX·w = Xᵀy for the rows of all ranks, divided by the number of rows.
pub struct NormalEquations {
    correlations: Tensor,
    moments: Tensor,
}

impl NormalEquations {
    pub fn new(world: &Communicator, data: &Standardized) -> mpi4tch::Result<Self> {
        let transposed = data.features.tr();
        let correlations = transposed.matmul(&data.features) / data.rows;
        let moments = transposed.mv(&data.target) / data.rows;
        Ok(Self {
            correlations: world.all_reduce(&correlations, Op::Sum)?,
            moments: world.all_reduce(&moments, Op::Sum)?,
        })
    }

    /// The coefficients, or an error that names features that are linearly dependent.
    pub fn solve(&self, names: &[String]) -> Result<Vec<f64>, Box<dyn Error>> {
        let (eigenvalues, eigenvectors) = self.correlations.f_linalg_eigh("L")?;
        if eigenvalues.double_value(&[0]) < 1e-7 {
            let weights = Vec::<f64>::try_from(eigenvectors.select(1, 0))?;
            let dependent = names.iter().zip(weights).filter(|(_, weight)| weight.abs() > 1e-3);
            let dependent: Vec<&str> = dependent.map(|(name, _)| name.as_str()).collect();
            return Err(format!("columns {} are linearly dependent", dependent.join(", ")).into());
        }
        let solution = Tensor::f_linalg_solve(&self.correlations, &self.moments, true)?;
        Ok(Vec::try_from(solution)?)
    }

    /// The gradient of the mean squared residual where all coefficients are zero.
    pub fn gradient_at_zero(&self) -> Result<Vec<f64>, Box<dyn Error>> {
        Ok(Vec::try_from(&self.moments * -2.0)?)
    }
}
