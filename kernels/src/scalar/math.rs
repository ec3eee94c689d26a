//! Element-wise functions and norms.

pub fn rms_norm(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
    let mean = x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
        *y = x * scale * w;
    }
}

pub fn layer_norm(x: &[f32], w: &[f32], b: &[f32], eps: f32, y: &mut [f32]) {
    let n = x.len() as f32;
    let mean = x.iter().sum::<f32>() / n;
    let var = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / n;
    let scale = 1.0 / (var + eps).sqrt();
    for (((y, x), w), b) in y.iter_mut().zip(x).zip(w).zip(b) {
        *y = (x - mean) * scale * w + b;
    }
}

pub fn silu_mul(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = *g / (1.0 + (-*g).exp()) * u;
    }
}

pub fn silu(x: &mut [f32]) {
    for x in x {
        *x /= 1.0 + (-*x).exp();
    }
}

/// Abramowitz and Stegun 7.1.26 is too coarse here (1.5e-7): this is the complementary series of W. J. Cody's rational form.
fn erf(x: f32) -> f32 {
    let x = f64::from(x);
    let t = 1.0 / (1.0 + 0.5 * x.abs());
    let tau = t
        * (-x * x - 1.26551223
            + t * (1.00002368
                + t * (0.37409196
                    + t * (0.09678418
                        + t * (-0.18628806
                            + t * (0.27886807
                                + t * (-1.13520398 + t * (1.48851587 + t * (-0.82215223 + t * 0.17087277)))))))))
            .exp();
    (if x >= 0.0 { 1.0 - tau } else { tau - 1.0 }) as f32
}

pub fn gelu_erf(x: &mut [f32]) {
    for x in x {
        *x = 0.5 * *x * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2));
    }
}

pub fn gelu_tanh(x: &mut [f32]) {
    for x in x {
        *x = 0.5 * *x * (1.0 + (0.797_884_6 * (*x + 0.044715 * *x * *x * *x)).tanh());
    }
}

pub fn gelu_quick(x: &mut [f32]) {
    for x in x {
        *x /= 1.0 + (-1.702 * *x).exp();
    }
}

pub fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

pub fn to_f16(x: &[f32], y: &mut [u16]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = half::f16::from_f32(*x).to_bits();
    }
}

pub fn rope(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    for ((p, c), s) in x.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
        *p = [p[0] * c - p[1] * s, p[0] * s + p[1] * c];
    }
}
