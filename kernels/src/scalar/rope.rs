//! Rotary position embedding of neighbouring pairs.

pub fn rope(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    assert_eq!((cos.len() * 2, sin.len() * 2), (x.len(), x.len()));
    for ((p, c), s) in x.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
        *p = [p[0] * c - p[1] * s, p[0] * s + p[1] * c];
    }
}
