//! Variables in a store of tch's.

use tch::nn::VarStore;
use tch::{Device, Tensor};

use super::device;

/// A store of these parameters, which may be on any device.
pub fn store_of<'a>(parameters: impl IntoIterator<Item = &'a Tensor>) -> VarStore {
    let store = VarStore::new(Device::Cpu);
    for (i, parameter) in parameters.into_iter().enumerate() {
        // tch lets a variable be replaced, and not be added.
        let name = i.to_string();
        let _ = store.root().zeros(&name, &[]);
        let mut variables = store.variables_.lock().expect("nobody panicked");
        variables.named_variables.insert(name, parameter.shallow_clone());
        let added = variables.trainable_variables.last_mut().expect("it was added");
        added.tensor = parameter.shallow_clone();
    }
    store
}

/// An empty store, which makes variables on the device of the test. On the stand-in there is none:
/// what needs it is left out there.
pub fn empty_store() -> Option<VarStore> {
    let store = device::in_tch().map(VarStore::new);
    if store.is_none() {
        println!("left out on the stand-in: tch's stores make no variables there");
    }
    store
}
