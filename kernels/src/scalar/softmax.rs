//! Sums over the exponentials of a row of logits. They are taken in f64, so that the length of a vocabulary costs no accuracy.

pub fn sum_exp(x: &[f32]) -> (f32, f64) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (max, x.iter().map(|x| f64::from((x - max).exp())).sum())
}

pub fn cross_exp(x: &[f32], x_max: f32, y: &[f32], y_max: f32) -> f64 {
    assert_eq!(x.len(), y.len());
    x.iter().zip(y).map(|(x, y)| cross(x - x_max, y - y_max)).sum()
}

/// `exp(x) · (x - y)`, 0 where the exponential is.
pub(crate) fn cross(x: f32, y: f32) -> f64 {
    let p = x.exp();
    if p == 0.0 { 0.0 } else { f64::from(p) * f64::from(x - y) }
}
