//! Sums and conversions, element by element.

use half::f16;

pub fn add(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len());
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

pub fn to_f16(x: &[f32], y: &mut [u16]) {
    assert_eq!(x.len(), y.len());
    for (y, x) in y.iter_mut().zip(x) {
        *y = f16::from_f32(*x).to_bits();
    }
}

pub fn from_f16(x: &[u16], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    for (y, x) in y.iter_mut().zip(x) {
        *y = f16::from_bits(*x).to_f32();
    }
}
