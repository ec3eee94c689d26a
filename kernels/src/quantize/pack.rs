//! Integers and scales to the bytes of blocks, as `block.rs` draws them. A byte is a sum of integers times powers of two.

use super::batch::Out;
use super::lanes::Lanes;

/// `low + 2^shift · high`
#[inline(always)]
fn join<V: Lanes>(low: V, high: V, shift: u32) -> V {
    low + V::splat((1 << shift) as f32) * high
}

/// An integer's low `bits` bits and the rest.
#[inline(always)]
fn split<V: Lanes>(q: V, bits: u32) -> (V, V) {
    let unit = (1 << bits) as f32;
    let high = (q * V::splat(1.0 / unit)).trunc();
    (q - V::splat(unit) * high, high)
}

/// Four integers of 2 bits.
#[inline(always)]
fn four<V: Lanes>(a: V, b: V, c: V, d: V) -> V {
    join(join(a, b, 2), join(c, d, 2), 4)
}

/// What eight integers have above their low bits, one bit each: `q[from]`, `q[from + step]` and so on.
#[inline(always)]
fn bits<V: Lanes>(q: &[V], from: usize, step: usize, low: u32) -> V {
    let mut byte = V::splat(0.0);
    for bit in 0..8 {
        byte = byte + V::splat((1 << bit) as f32).keep(q[from + step * bit].ge(V::splat((1 << low) as f32)));
    }
    byte
}

/// 16 bytes: `q[i]` low, `q[16 + i]` high.
#[inline(always)]
pub(crate) fn nibbles_32<V: Lanes>(out: &mut Out<'_>, at: usize, q: &[V; 32]) {
    for i in 0..16 {
        out.byte(at + i, join(q[i], q[16 + i], 4));
    }
}

/// 20 bytes: the fifth bits as a word, then the others as nibbles.
#[inline(always)]
pub(crate) fn five_bits_32<V: Lanes>(out: &mut Out<'_>, at: usize, q: &[V; 32]) {
    for k in 0..4 {
        out.byte(at + k, bits(q, 8 * k, 1, 4));
    }
    for i in 0..16 {
        out.byte(at + 4 + i, join(split(q[i], 4).0, split(q[16 + i], 4).0, 4));
    }
}

/// 16 bytes, a bit for each number that is not negative.
#[inline(always)]
pub(crate) fn signs_128<V: Lanes>(out: &mut Out<'_>, at: usize, x: &[V; 128]) {
    let mut positive = *x;
    for x in &mut positive {
        *x = V::splat(1.0).keep(x.ge(V::splat(0.0)));
    }
    for k in 0..16 {
        out.byte(at + k, bits(&positive, 8 * k, 1, 0));
    }
}

/// 16 bytes of integers of 2 bits, in order.
#[inline(always)]
pub(crate) fn two_bits_64<V: Lanes>(out: &mut Out<'_>, at: usize, q: &[V; 64]) {
    for (i, q) in q.as_chunks::<4>().0.iter().enumerate() {
        out.byte(at + i, four(q[0], q[1], q[2], q[3]));
    }
}

/// 64 bytes of integers of 2 bits.
#[inline(always)]
pub(crate) fn two_bits_256<V: Lanes>(out: &mut Out<'_>, at: usize, q: &[V; 256]) {
    for half in 0..2 {
        for i in 0..32 {
            let q = &q[128 * half + i..];
            out.byte(at + 32 * half + i, four(q[0], q[32], q[64], q[96]));
        }
    }
}

/// The blocks of Q2_K.
#[inline(always)]
pub(crate) fn q2_k<V: Lanes>(out: &mut Out<'_>, s: &[V; 16], m: &[V; 16], q: &[V; 256]) {
    for g in 0..16 {
        out.byte(g, join(s[g], m[g], 4));
    }
    two_bits_256(out, 16, q);
}

/// The blocks of Q3_K but for their factor; `s` and `q` from 0.
#[inline(always)]
pub(crate) fn q3_k<V: Lanes>(out: &mut Out<'_>, s: &[V; 16], q: &mut [V; 256]) {
    for i in 0..32 {
        out.byte(i, bits(q, i, 32, 2));
    }
    for q in q.iter_mut() {
        *q = split(*q, 2).0;
    }
    two_bits_256(out, 32, q);
    for i in 0..8 {
        out.byte(96 + i, join(split(s[i], 4).0, split(s[8 + i], 4).0, 4));
    }
    for i in 0..4 {
        let s = &s[i..];
        out.byte(104 + i, four(split(s[0], 4).1, split(s[4], 4).1, split(s[8], 4).1, split(s[12], 4).1));
    }
}

/// The 12 bytes of the scales and mins of Q4_K and Q5_K.
#[inline(always)]
pub(crate) fn scales_k4<V: Lanes>(out: &mut Out<'_>, at: usize, s: &[V; 8], m: &[V; 8]) {
    for i in 0..4 {
        let ((s_low, s_high), (m_low, m_high)) = (split(s[4 + i], 4), split(m[4 + i], 4));
        out.byte(at + i, join(s[i], s_high, 6));
        out.byte(at + 4 + i, join(m[i], m_high, 6));
        out.byte(at + 8 + i, join(s_low, m_low, 4));
    }
}

/// 128 bytes: pairs of groups of 32 as nibbles.
#[inline(always)]
pub(crate) fn nibbles_256<V: Lanes>(out: &mut Out<'_>, at: usize, q: &[V; 256]) {
    for j in 0..4 {
        for i in 0..32 {
            out.byte(at + 32 * j + i, join(q[64 * j + i], q[64 * j + 32 + i], 4));
        }
    }
}

/// The integers of Q5_K: their fifth bits, then the others.
#[inline(always)]
pub(crate) fn five_bits_256<V: Lanes>(out: &mut Out<'_>, at: usize, q: &mut [V; 256]) {
    for i in 0..32 {
        out.byte(at + i, bits(q, i, 32, 4));
    }
    for q in q.iter_mut() {
        *q = split(*q, 4).0;
    }
    nibbles_256(out, at + 32, q);
}

/// The blocks of Q6_K but for their factor; `q` from 0, `s` signed.
#[inline(always)]
pub(crate) fn q6_k<V: Lanes>(out: &mut Out<'_>, s: &[V; 16], q: &[V; 256]) {
    for half in 0..2 {
        for i in 0..32 {
            let q = &q[128 * half + i..];
            let q = [split(q[0], 4), split(q[32], 4), split(q[64], 4), split(q[96], 4)];
            out.byte(64 * half + i, join(q[0].0, q[2].0, 4));
            out.byte(64 * half + 32 + i, join(q[1].0, q[3].0, 4));
            out.byte(128 + 32 * half + i, four(q[0].1, q[1].1, q[2].1, q[3].1));
        }
    }
    for (g, s) in s.iter().enumerate() {
        out.byte(192 + g, *s);
    }
}

/// The blocks of IQ4_XS but for their factor; `s` from 0.
#[inline(always)]
pub(crate) fn iq4_xs<V: Lanes>(out: &mut Out<'_>, s: &[V; 8], q: &[V; 256]) {
    for i in 0..2 {
        let s = &s[4 * i..];
        out.byte(2 + i, four(split(s[0], 4).1, split(s[1], 4).1, split(s[2], 4).1, split(s[3], 4).1));
    }
    for i in 0..4 {
        out.byte(4 + i, join(split(s[2 * i], 4).0, split(s[2 * i + 1], 4).0, 4));
    }
    for (g, q) in q.as_chunks().0.iter().enumerate() {
        nibbles_32(out, 8 + 16 * g, q);
    }
}
