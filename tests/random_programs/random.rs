//! Random numbers, the same on all ranks and machines.

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n.max(1) as u64).expect("it is below n")
    }

    pub fn extent(&mut self, from: i64, to: i64) -> i64 {
        let count = usize::try_from(to - from + 1).expect("from is no more than to");
        from + i64::try_from(self.below(count)).expect("extents are small")
    }

    /// Once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn among<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }

    /// From 0.5 to 1.5, and of either sign.
    pub fn factor(&mut self) -> f64 {
        let size = 0.5 + self.extent(0, 1 << 30) as f64 / f64::from(1 << 30);
        if self.one_in(2) { size } else { -size }
    }
}
