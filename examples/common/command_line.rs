//! The arguments of an example.

use std::error::Error;

use clap::Parser;
use mpi4tch::Universe;

/// Parses the arguments and runs the example with them, unless they ask for the help text.
pub fn parse_and_run<A: Parser>(
    universe: &Universe,
    run: impl FnOnce(&Universe, &A) -> Result<(), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    match A::try_parse() {
        Ok(arguments) => run(universe, &arguments),
        Err(usage) => {
            // All ranks have the same arguments, so one of them prints the message.
            if universe.world().rank() == 0 {
                usage.print()?;
            }
            if usage.use_stderr() { Err("the arguments are wrong".into()) } else { Ok(()) }
        }
    }
}
