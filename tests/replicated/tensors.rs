use crate::common::Context;
pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![]
}
