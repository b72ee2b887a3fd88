//! The mixture of experts: its parameters, and how images are routed to the experts.

use std::ops::Range;

use mpi4tch::tch::{self, Device, Kind, Tensor, nn};
use mpi4tch::{Communicator, Rank, Replicated, Result, Tape};

use super::data::Digits;
use super::layer::linear;

const SEED: i64 = 1;

/// The widths of the embedding and of the hidden layer of an expert.
const EMBEDDING: i64 = 32;
const HIDDEN: i64 = 16;

/// The weight of the loss that grows if the experts' shares of the images differ.
const BALANCE: f64 = 0.3;

#[derive(Clone, Copy)]
pub struct Shape {
    /// The number of experts, on all ranks together.
    pub experts: i64,
    /// How many experts see each image.
    pub choices: i64,
    /// How many of the experts, the last ones, are never chosen.
    pub idle: i64,
}

/// The embedding and the gate, which all ranks have, and this rank's experts.
///
/// The last row of a layer is its bias.
pub struct Model {
    pub store: nn::VarStore,
    pub shape: Shape,
    pub embedding: Tensor,
    pub gate: Tensor,
    /// The two layers of each expert.
    pub first: Tensor,
    pub second: Tensor,
}

/// What becomes of some images.
pub struct Routed {
    /// The output for each image.
    pub output: Tensor,
    /// The gate's probability of each expert, for each image.
    pub probabilities: Tensor,
    /// For each expert, how many of the images it sees.
    pub load: Tensor,
}

impl Model {
    /// The initial values do not depend on the number of ranks.
    pub fn new(comm: &Communicator, shape: Shape) -> Self {
        tch::manual_seed(SEED);
        let mut store = nn::VarStore::new(Device::Cpu);
        store.set_kind(Kind::Double);
        let parameter = |name: &str, size: &[i64], own: Range<i64>| {
            let deviation = 1.0 / (size[size.len() - 2] as f64).sqrt();
            let all = Tensor::randn(size, (Kind::Double, Device::Cpu)) * deviation;
            store.root().var_copy(name, &all.slice(0, own.start, own.end, 1))
        };
        let own = own_experts(shape.experts, comm.rank(), comm.size());
        let (inputs, experts) = (Digits::PIXELS + 1, shape.experts);
        Self {
            embedding: parameter("embedding", &[inputs, EMBEDDING], 0..inputs),
            gate: parameter("gate", &[EMBEDDING + 1, experts], 0..EMBEDDING + 1),
            first: parameter("first", &[experts, EMBEDDING + 1, HIDDEN], own.clone()),
            second: parameter("second", &[experts, HIDDEN + 1, Digits::CLASSES], own),
            shape,
            store,
        }
    }

    pub fn parameters(&self) -> [(&'static str, &Tensor); 4] {
        [
            ("embedding", &self.embedding),
            ("gate", &self.gate),
            ("experts' first layers", &self.first),
            ("experts' second layers", &self.second),
        ]
    }

    /// Takes this rank's images through the experts of all ranks. The numbers of images that travel
    /// have no derivatives, and are exchanged on `comm`.
    pub fn forward(&self, comm: &Communicator, tape: &Tape, images: &Tensor) -> Result<Routed> {
        let embedding = Replicated::assume(tape, &self.embedding)?.vary()?;
        let gate = Replicated::assume(tape, &self.gate)?.vary()?;
        let embedded = linear(images, &embedding).relu();
        let probabilities = self.shape.probabilities(&linear(&embedded, &gate));
        let (weights, chosen) = probabilities.topk(self.shape.choices, 1, true, false);

        // One row for each choice, in the order of the experts, which is that of their ranks.
        let chosen = chosen.flatten(0, -1);
        let load = chosen.bincount(None::<Tensor>, self.shape.experts);
        let order = chosen.argsort_stable(true, 0, false);
        let places = order.divide_scalar_mode(self.shape.choices, "floor");
        let rows = embedded.index_select(0, &places);

        let route = Route::new(comm, &load)?;
        let rows = tape.all_to_all_v_with_counts(&rows, 0, &route.send, &route.receive)?;
        let outputs = self.experts(&rows, &route.experts);
        let outputs = tape.all_to_all_v_with_counts(&outputs, 0, &route.receive, &route.send)?;

        let outputs = outputs.index_select(0, &order.argsort(0, false));
        let outputs = outputs.view([-1, self.shape.choices, Digits::CLASSES]);
        let output = (weights.unsqueeze(2) * outputs).sum_dim_intlist(1, false, Kind::Double);
        Ok(Routed { output, probabilities, load })
    }

    /// Takes each row through the expert of that number among this rank's experts.
    fn experts(&self, rows: &Tensor, experts: &Tensor) -> Tensor {
        let size = [rows.size()[0], Digits::CLASSES];
        let mut outputs = Tensor::zeros(size, (Kind::Double, Device::Cpu));
        for expert in 0..self.first.size()[0] {
            let places = experts.eq(expert).nonzero().view(-1);
            let hidden = linear(&rows.index_select(0, &places), &self.first.get(expert)).relu();
            let output = linear(&hidden, &self.second.get(expert));
            outputs = outputs.index_copy(0, &places, &output);
        }
        outputs
    }
}

impl Shape {
    /// The probability of each expert. Those that are idle have a probability of 0.
    pub fn probabilities(&self, gate: &Tensor) -> Tensor {
        let idle = Tensor::arange(self.experts, (Kind::Int64, Device::Cpu));
        let idle = idle.ge(self.experts - self.idle);
        gate.masked_fill(&idle, f64::NEG_INFINITY).softmax(1, Kind::Double)
    }
}

/// How many rows travel between this rank and each other.
struct Route {
    send: Vec<i64>,
    receive: Vec<i64>,
    /// For each row that this rank receives, the number of the expert among its own.
    experts: Tensor,
}

impl Route {
    /// Tells each rank how many rows each of its experts is to get from this rank.
    fn new(comm: &Communicator, load: &Tensor) -> Result<Self> {
        let experts = load.size()[0];
        let own: Vec<_> =
            (0..comm.size()).map(|rank| own_experts(experts, rank, comm.size())).collect();
        let sizes: Vec<_> = own.iter().map(|own| own.end - own.start).collect();
        // The rows of this table are the ranks that send, its columns are this rank's experts.
        let table = comm.all_to_all_v(load, 0, &sizes)?.view([comm.size().into(), -1]);
        let send = own.iter().map(|own| sum(&load.slice(0, own.start, own.end, 1))).collect();
        let receive = (0..comm.size()).map(|rank| sum(&table.get(rank.into()))).collect();
        let numbers = Tensor::arange(table.size()[1], (Kind::Int64, Device::Cpu));
        let experts = numbers.expand_as(&table).flatten(0, -1);
        let experts = experts.repeat_interleave_self_tensor(&table.flatten(0, -1), 0, None);
        Ok(Self { send, receive, experts })
    }
}

fn sum(counts: &Tensor) -> i64 {
    counts.sum(Kind::Int64).int64_value(&[])
}

/// The experts of a rank: none on some if there are fewer experts than ranks.
fn own_experts(experts: i64, rank: Rank, ranks: Rank) -> Range<i64> {
    let begin = |rank| experts * i64::from(rank) / i64::from(ranks);
    begin(rank)..begin(rank + 1)
}

/// The contribution of some images of a batch to the loss that is smallest if all experts have equal
/// shares of the batch: of W. Fedus, B. Zoph, N. Shazeer, "Switch Transformers", 2021. `load` is
/// that of the whole batch, `rows` the number of its images.
pub fn balance(load: &Tensor, probabilities: &Tensor, rows: i64) -> Tensor {
    let shares = load / load.sum(Kind::Double);
    let probabilities = probabilities.sum_dim_intlist(0, false, Kind::Double) / rows;
    shares.dot(&probabilities) * (BALANCE * load.size()[0] as f64)
}
