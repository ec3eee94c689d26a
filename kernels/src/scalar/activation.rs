//! Activation functions, element by element.
//!
//! All of them are `x · σ(u)` or `x · Φ(x)`, written with exponentials of negative numbers only: nothing overflows, and
//! the small results on the negative side keep their relative accuracy.

/// `σ(x)`, the logistic function.
fn sigmoid(x: f32) -> f32 {
    let e = (-x.abs()).exp();
    if x >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) }
}

pub fn silu(x: &mut [f32]) {
    for x in x {
        *x *= sigmoid(*x);
    }
}

pub fn silu_mul(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len());
    for (g, u) in gate.iter_mut().zip(up) {
        *g = *g * sigmoid(*g) * u;
    }
}

pub fn gelu_quick(x: &mut [f32]) {
    for x in x {
        *x *= sigmoid(1.702 * *x);
    }
}

/// `2 sqrt(2/π)`: with it `(1 + tanh(u)) / 2 = σ(2u)` turns the tanh form of GELU into a logistic one.
pub(crate) const TANH_SLOPE: f32 = 1.595_769;
/// The factor of the cubic term.
pub(crate) const TANH_CUBE: f32 = 0.044_715;

pub fn gelu_tanh(x: &mut [f32]) {
    for x in x {
        *x *= sigmoid(TANH_SLOPE * *x * (1.0 + TANH_CUBE * *x * *x));
    }
}

/// `Φ(-t) · exp(t²/2) = s · Σ TAIL[i] sⁱ` with `s = 1 / (1 + TAIL_SHAPE · t)`, for `0 <= t <= 14`, where f32 ends.
/// A Chebyshev fit in `s`; its relative error stays below 5e-9.
pub(crate) const TAIL: [f64; 10] = [
    0.119687693145,
    0.119551763229,
    0.110405179847,
    0.0775890643774,
    0.0984807401835,
    -0.0837425490162,
    0.196940677017,
    -0.232038482936,
    0.114040272074,
    -0.0209143597288,
];
/// See [`TAIL`].
pub(crate) const TAIL_SHAPE: f32 = 0.3;

/// `Φ(x)`, the standard normal distribution: `(1 + erf(x/√2)) / 2`.
fn normal_cdf(x: f64) -> f64 {
    let t = x.abs();
    let s = 1.0 / (1.0 + f64::from(TAIL_SHAPE) * t);
    let tail = TAIL.iter().rev().fold(0.0, |sum, c| sum * s + c) * s * (-0.5 * t * t).exp();
    if x >= 0.0 { 1.0 - tail } else { tail }
}

pub fn gelu_erf(x: &mut [f32]) {
    for x in x {
        let v = f64::from(*x);
        *x = (v * normal_cdf(v)) as f32;
    }
}

/// `ln` of the smallest normal number, rounded up. With what follows, it makes exponentials of vectors.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) const LOWEST: f32 = -87.336_54;
/// `ln 2` in two parts, the first with few enough bits that a product with an exponent is exact.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
/// `exp(r) = 1 + r + r² · Σ EXP[i] rⁱ` for `|r| <= ln2 / 2`, a Chebyshev fit to 1.2e-8.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) const EXP: [f32; 5] = [0.5, 0.166_665_76, 0.041_666_554, 0.008_363_233, 0.001_392_625];
