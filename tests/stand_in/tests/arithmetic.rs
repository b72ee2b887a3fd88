//! Operations give on the device what they give on the host.

mod common;

use std::time::Duration;

use tch::{Device, Kind, Tensor};

use common::{alone, on_device};

type Operation = fn(&Tensor, &Tensor) -> Tensor;

/// Of two matrices of equal shape and any kind.
const OF_ANY_KIND: &[(&str, Operation)] = &[
    ("+", |x, y| x + y),
    ("*", |x, y| x * y),
    ("a number", |x, _| x * 3),
    ("eq", |x, y| x.eq_tensor(y)),
    ("narrow", |x, y| x.narrow(1, 1, 2) + y.narrow(1, 0, 2)),
    ("narrow, in place", |x, y| {
        let z = x.copy();
        let _ = z.narrow(0, 1, 2).g_add_(&y.narrow(0, 0, 2));
        z
    }),
    ("copy to a view", |x, y| {
        let z = x.copy();
        z.select(1, 2).copy_(&y.select(1, 0));
        z
    }),
    ("copy of one row to all", |x, y| {
        let mut z = x.copy();
        z.copy_(&y.narrow(0, 0, 1));
        z
    }),
    ("fill of a view", |x, _| {
        let z = x.copy();
        let _ = z.narrow(1, 1, 2).fill_(1);
        z
    }),
    ("zero of a view", |x, _| {
        let z = x.copy();
        let _ = z.narrow(1, 1, 2).zero_();
        z
    }),
    ("fill with a tensor", |x, y| x.empty_like().fill_tensor_(&y.select(0, 0).select(0, 0))),
    ("cat", |x, y| Tensor::cat(&[x, y, x], 1)),
    ("stack", |x, y| Tensor::stack(&[x, y], 2)),
    ("transposed and contiguous", |x, _| x.tr().contiguous()),
    ("transposed", |x, _| x.tr()),
    ("reshape", |x, _| x.tr().reshape([-1])),
    ("view", |x, _| x.view([-1])),
    ("movedim", |x, _| x.unsqueeze(2).movedim_int(0, 2)),
    ("expand", |x, _| x.unsqueeze(0).expand([3, 4, 6], false)),
    ("expand and contiguous", |x, _| x.unsqueeze(0).expand([3, 4, 6], false).contiguous()),
    ("unfold", |x, _| x.unfold(1, 2, 3)),
    ("flip", |x, _| x.flip([0])),
    ("roll", |x, _| x.roll([1], [0])),
    ("zeros", |x, _| x.zeros_like()),
    ("ones", |x, _| x.ones_like()),
    ("full", |x, _| x.full_like(1)),
    ("nothing", |x, _| x.narrow(0, 0, 0) + 1),
    ("a part of the storage", |x, _| x.as_strided([2, 2], [5, 1], 1)),
    ("resized, smaller", |x, _| x.copy().resize_([3, 2])),
    ("resized, larger", |x, _| x.copy().resize_([5, 6]).narrow(0, 0, 4)),
    ("set", |x, y| x.copy().set_source_tensor(y)),
    ("of another kind", |x, _| x.to_kind(Kind::ComplexDouble)),
    ("where", |x, y| x.where_self(&x.eq_tensor(y), y)),
    ("masked", |x, y| x.masked_fill(&x.eq_tensor(y), 1)),
    ("any", |x, y| x.eq_tensor(y).any()),
];

/// Of two matrices of real numbers.
const OF_REAL_NUMBERS: &[(&str, Operation)] = &[
    ("-", |x, y| x - y),
    ("/", |x, y| x / y),
    ("1 -", |x, _| 1.0 - x),
    ("sum", |x, _| x.sum(x.kind())),
    ("sum of columns", |x, _| x.sum_dim_intlist(0, true, x.kind())),
    ("mean", |x, _| x.mean(x.kind())),
    ("norm", |x, _| x.norm()),
    ("matmul", |x, y| x.matmul(&y.tr())),
    ("linear", |x, y| x.linear(y, Some(&y.select(1, 0)))),
    ("einsum", |x, y| Tensor::einsum("ij,kj->ik", &[x, y], None::<&[i64]>)),
    ("index_select", |x, y| x.index_select(1, &y.select(0, 0).argsort(0, false))),
    ("gather", |x, y| x.gather(1, &y.argsort(1, false), false)),
    ("index_put_", |x, y| {
        let rows = y.select(1, 0).argsort(0, false);
        x.copy().index_put_(&[Some(rows)], y, true)
    }),
    ("ge", |x, y| x.ge_tensor(y)),
    ("of an integer", |x, _| x.ge(0).to_kind(Kind::Int64).cumsum(0, Kind::Int64)),
    ("maximum", |x, y| x.maximum(y)),
    ("max", |x, _| x.max_dim(1, false).0),
    ("sort", |x, _| x.sort(1, true).0),
    ("softmax", |x, _| x.log_softmax(1, x.kind())),
    ("relu_", |x, _| x.copy().relu_()),
    ("triangle", |x, _| x.tril(0)),
    ("half", |x, _| x.to_kind(Kind::Half) * 2.0),
    ("bfloat16", |x, _| x.to_kind(Kind::BFloat16) * 2.0),
    ("complex", |x, y| Tensor::complex(x, y) * Tensor::complex(y, x)),
    ("conjugated", |x, y| Tensor::complex(x, y).conj()),
    ("conjugated, and resolved", |x, y| Tensor::complex(x, y).conj().resolve_conj()),
    ("conjugated, and copied", |x, y| Tensor::complex(x, y).tr().conj().contiguous()),
    ("imaginary part", |x, y| Tensor::complex(x, y).imag()),
    ("imaginary part of the conjugated", |x, y| Tensor::complex(x, y).conj().imag() * 2),
    ("in place in the real part", |x, y| {
        let z = Tensor::complex(x, y);
        let _ = z.real().g_add_(y);
        z
    }),
    ("view as complex", |x, _| x.view([-1, 2]).view_as_complex()),
    ("abs", |x, y| Tensor::complex(x, y).abs()),
    ("convolution", |x, y| {
        let (x, y) = (x.view([1, 1, 4, 6]), y.narrow(0, 0, 3).narrow(1, 0, 3));
        x.conv2d(&y.reshape([1, 1, 3, 3]), None::<Tensor>, 1, 1, 1, 1)
    }),
    ("pooling", |x, _| x.view([1, 1, 4, 6]).max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false)),
];

fn check(operations: &[(&str, Operation)], kind: Kind) {
    let x = (Tensor::randn([4, 6], (Kind::Float, Device::Cpu)) * 3).to_kind(kind);
    let y = (Tensor::randn([4, 6], (Kind::Float, Device::Cpu)) * 3).to_kind(kind);
    for (name, operation) in operations {
        let expected = operation(&x, &y);
        let result = operation(&on_device(&x), &on_device(&y));
        assert!(stand_in::is_on_device(&result), "{name} of {kind:?} is not on the device");
        let result = stand_in::to_host(&result);
        assert_eq!(result.kind(), expected.kind(), "{name} of {kind:?}");
        assert!(result.equal(&expected), "{name} of {kind:?}: {result} is not {expected}");
    }
}

#[test]
fn operations_give_what_the_host_computes() {
    let _settings = alone(Duration::from_millis(1));
    use Kind::*;
    for kind in [Bool, Uint8, Int, Int64, Half, BFloat16, Float, Double, ComplexFloat] {
        check(OF_ANY_KIND, kind);
    }
    check(OF_REAL_NUMBERS, Float);
    check(OF_REAL_NUMBERS, Double);
}

#[test]
fn values_are_read() {
    let _settings = alone(Duration::from_millis(1));
    let x = on_device(&Tensor::from_slice(&[1.0, 2.0, 3.0]));
    assert_eq!(Vec::<f64>::try_from(&x * 2).unwrap(), [2.0, 4.0, 6.0]);
    assert_eq!(x.narrow(0, 1, 2).sum(Kind::Double).double_value(&[]), 5.0);
    assert_eq!(x.double_value(&[1]), 2.0);
    assert!(x.equal(&x.copy()) && !x.equal(&(&x * 2)));
    assert!(x.allclose(&(&x + 1e-12), 1e-5, 1e-8, false) && !x.allclose(&-&x, 1e-5, 1e-8, false));
    let mut values = [0.0; 3];
    (&x + 1).copy_data(&mut values, 3);
    assert_eq!(values, [2.0, 3.0, 4.0]);
}

#[test]
fn copies_go_from_device_to_device() {
    let _settings = alone(Duration::from_millis(5));
    let x = Tensor::randn([3, 5], (Kind::Float, Device::Cpu));
    let y = stand_in::to_device(&(on_device(&x) * 2), 1);
    assert!(stand_in::to_host(&(y + 1)).equal(&(&x * 2 + 1)));
}

#[test]
fn the_device_has_a_generator_of_its_own() {
    let _settings = alone(Duration::ZERO);
    let zeros = Tensor::zeros([5], (Kind::Float, Device::Cpu));
    let draw = |x: &Tensor| stand_in::to_host(&x.randn_like());
    tch::manual_seed(5);
    let first = draw(&on_device(&zeros));
    let of_host = draw(&zeros);
    tch::manual_seed(5);
    assert!(draw(&zeros).equal(&of_host), "the device draws from the host's generator");
    assert!(draw(&on_device(&zeros)).equal(&first));
    assert!(!draw(&on_device(&zeros)).equal(&first));
}
