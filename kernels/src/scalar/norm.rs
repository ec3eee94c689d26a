//! Norms over one row. Sums are taken in f64, so that neither length nor magnitude of a row costs accuracy.

pub fn rms_norm(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
    assert_eq!((x.len(), w.len()), (y.len(), y.len()));
    let squares: f64 = x.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    let scale = rms_scale(squares, x.len(), eps);
    for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
        *y = (f64::from(*x) * scale) as f32 * w;
    }
}

pub fn layer_norm(x: &[f32], w: &[f32], b: &[f32], eps: f32, y: &mut [f32]) {
    assert_eq!((x.len(), w.len(), b.len()), (y.len(), y.len(), y.len()));
    let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / x.len() as f64;
    let squares: f64 = x.iter().map(|&v| (f64::from(v) - mean) * (f64::from(v) - mean)).sum();
    let scale = rms_scale(squares, x.len(), eps);
    for (((y, x), w), b) in y.iter_mut().zip(x).zip(w).zip(b) {
        *y = ((f64::from(*x) - mean) * scale) as f32 * w + b;
    }
}

/// `1 / sqrt(squares / n + eps)`.
pub(crate) fn rms_scale(squares: f64, n: usize, eps: f32) -> f64 {
    1.0 / (squares / n as f64 + f64::from(eps)).sqrt()
}
