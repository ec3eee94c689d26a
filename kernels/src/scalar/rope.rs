//! Rotary position embedding: of neighbouring pairs, and of pairs from the two halves of a head.

pub fn rope(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    assert_eq!((cos.len() * 2, sin.len() * 2), (x.len(), x.len()));
    for ((p, c), s) in x.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
        *p = [p[0] * c - p[1] * s, p[0] * s + p[1] * c];
    }
}

pub fn rope_half(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    assert_eq!((cos.len() * 2, sin.len() * 2), (x.len(), x.len()));
    let (a, b) = x.split_at_mut(cos.len());
    for (((a, b), c), s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
        (*a, *b) = (*a * c - *b * s, *a * s + *b * c);
    }
}
