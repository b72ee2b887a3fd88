//! Tests that `stored.rs`, which the documentation on docs.rs is made of, has the declarations that a
//! build with the feature `abi` makes of the `mpi_abi.h` of MPICH 5.0.2. With `MPI4TCH_STORE=1` the test
//! writes the file.

#[cfg(feature = "abi")]
#[test]
fn the_stored_declarations_are_those_of_the_abi() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/stored.rs");
    let made = include_str!(concat!(env!("OUT_DIR"), "/bindings.rs"));
    if std::env::var_os("MPI4TCH_STORE").is_some() {
        std::fs::write(path, made).unwrap();
    }
    let stored = std::fs::read_to_string(path).unwrap();
    let different = stored.lines().zip(made.lines()).find(|(stored, made)| stored != made);
    assert_eq!(different, None);
    assert_eq!(stored.len(), made.len());
}
