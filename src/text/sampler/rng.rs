//! MT19937, the generator of llama.cpp's samplers: the same seed then draws the same numbers, on every platform.

const N: usize = 624;
const M: usize = 397;

/// The generator of Matsumoto and Nishimura (1998), 32 bits at a time.
#[derive(Clone)]
pub(super) struct Rng {
    state: Box<[u32; N]>,
    next: usize,
}

impl Rng {
    pub fn new(seed: u32) -> Rng {
        let mut state = Box::new([seed; N]);
        for i in 1..N {
            let last = state[i - 1];
            state[i] = (last ^ last >> 30).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Rng { state, next: N }
    }

    /// The numbers that it draws from, and how many of them are drawn.
    pub fn state(&self) -> (Vec<u32>, usize) {
        (self.state.to_vec(), self.next)
    }

    /// One that goes on from what [`Rng::state`] gave; `None` if it gives no such thing.
    pub fn restored((state, next): &(Vec<u32>, usize)) -> Option<Rng> {
        let state: [u32; N] = state.as_slice().try_into().ok()?;
        (*next <= N).then(|| Rng { state: Box::new(state), next: *next })
    }

    pub fn u32(&mut self) -> u32 {
        if self.next == N {
            for i in 0..N {
                let bits = self.state[i] & 0x8000_0000 | self.state[(i + 1) % N] & 0x7FFF_FFFF;
                let odd = if bits & 1 == 1 { 0x9908_B0DF } else { 0 };
                self.state[i] = self.state[(i + M) % N] ^ bits >> 1 ^ odd;
            }
            self.next = 0;
        }
        let mut x = self.state[self.next];
        self.next += 1;
        x ^= x >> 11;
        x ^= x << 7 & 0x9D2C_5680;
        x ^= x << 15 & 0xEFC6_0000;
        x ^ x >> 18
    }

    /// Uniform in `[0, 1)`, from two draws, low half first.
    pub fn f64(&mut self) -> f64 {
        let (low, high) = (self.u32() as f64, self.u32() as f64);
        let x = (low + high * 4_294_967_296.0) / 18_446_744_073_709_551_616.0;
        if x < 1.0 { x } else { 1.0 - f64::EPSILON / 2.0 }
    }

    /// Uniform in `[0, 1)`, from one draw.
    pub fn f32(&mut self) -> f32 {
        let x = self.u32() as f32 / 4_294_967_296.0;
        if x < 1.0 { x } else { 1.0 - f32::EPSILON / 2.0 }
    }
}

/// A seed that differs from run to run: the standard library's hash keys come from the system's randomness.
pub(super) fn random_seed() -> u32 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_10000th_number_is_the_standards() {
        let mut rng = Rng::new(5489);
        let last = (0..10_000).map(|_| rng.u32()).last();
        assert_eq!(last, Some(4_123_659_995));
    }

    #[test]
    fn floats_lie_below_one() {
        let mut rng = Rng::new(1);
        for _ in 0..2000 {
            assert!((0.0..1.0).contains(&rng.f64()));
            assert!((0.0..1.0).contains(&rng.f32()));
        }
    }
}
