//! Blocks to quants, scales and mins, and from there to floats and to panels.

use super::unpack_small;
use crate::block::*;
use crate::interleave;
use crate::panel::{FLOAT_COLS, FloatPanel, Form, PANEL_COLS, PANEL_ROWS, Panel, Source};
use half::f16;
use std::borrow::Cow;

/// One block: weight `i` is `scale[i / 16] · q[i] − min[i / 16]`.
pub(crate) struct Expanded {
    pub q: [i8; QK_K],
    pub scale: [f32; QK_K / 16],
    pub min: [f32; QK_K / 16],
}

impl Expanded {
    pub fn new() -> Expanded {
        Expanded { q: [0; QK_K], scale: [0.0; QK_K / 16], min: [0.0; QK_K / 16] }
    }
}

pub(crate) fn float(h: Half) -> f32 {
    f16::from_le_bytes(h).to_f32()
}

/// Scales and mins of Q4_K and Q5_K.
pub(crate) fn scales_k4(s: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scale, mut min) = ([0; 8], [0; 8]);
    for i in 0..4 {
        scale[i] = s[i] & 63;
        min[i] = s[4 + i] & 63;
        scale[4 + i] = s[8 + i] & 15 | s[i] >> 6 << 4;
        min[4 + i] = s[8 + i] >> 4 | s[4 + i] >> 6 << 4;
    }
    (scale, min)
}

/// Scales of Q3_K.
pub(crate) fn scales_k3(s: &[u8; 12]) -> [i8; 16] {
    let mut scale = [0; 16];
    for (i, out) in scale.iter_mut().enumerate() {
        let low = s[i % 8] >> (i / 8 * 4) & 15;
        let high = s[8 + i % 4] >> (i / 4 * 2) & 3;
        *out = (low | high << 4) as i8 - 32;
    }
    scale
}

/// Scales of IQ4_XS.
pub(crate) fn scales_iq4(b: &IQ4_XS) -> [i8; 8] {
    let high = u16::from_le_bytes(b.scales_h);
    let mut scale = [0; 8];
    for (i, out) in scale.iter_mut().enumerate() {
        let low = b.scales_l[i / 2] >> (i % 2 * 4) & 15;
        *out = (low | ((high >> (2 * i)) as u8 & 3) << 4) as i8 - 32;
    }
    scale
}

pub(super) fn nibble(qs: &[u8; 16], i: usize) -> u8 {
    qs[i % 16] >> (i / 16 * 4) & 15
}

fn bit(qh: &[u8; 4], i: usize) -> u8 {
    qh[i / 8] >> (i % 8) & 1
}

/// Expands the one block of `dtype` in `bytes`; a block of 32 fills the first 32 quants and two groups.
pub(crate) fn expand(dtype: Dtype, bytes: &[u8], out: &mut Expanded) {
    groups(dtype, bytes, &mut out.scale, &mut out.min);
    quants(dtype, bytes, &mut out.q);
}

/// The scale and the min of each 16 weights of the one block in `bytes`.
pub(crate) fn groups(dtype: Dtype, bytes: &[u8], scale: &mut [f32; 16], min: &mut [f32; 16]) {
    let mut all = |d: Half, m: f32| {
        scale[..2].fill(float(d));
        min[..2].fill(m);
    };
    match dtype {
        Dtype::Q4_0 => all(Q4_0::slice(bytes)[0].d, 0.0),
        Dtype::Q4_1 => all(Q4_1::slice(bytes)[0].d, -float(Q4_1::slice(bytes)[0].m)),
        Dtype::Q5_0 => all(Q5_0::slice(bytes)[0].d, 0.0),
        Dtype::Q5_1 => all(Q5_1::slice(bytes)[0].d, -float(Q5_1::slice(bytes)[0].m)),
        Dtype::Q8_0 => all(Q8_0::slice(bytes)[0].d, 0.0),
        Dtype::IQ4_NL => all(IQ4_NL::slice(bytes)[0].d, 0.0),
        Dtype::Q2_K => {
            let b = &Q2_K::slice(bytes)[0];
            let (d, dmin) = (float(b.d), float(b.dmin));
            for g in 0..16 {
                scale[g] = d * f32::from(b.scales[g] & 15);
                min[g] = dmin * f32::from(b.scales[g] >> 4);
            }
        }
        Dtype::Q3_K => {
            let b = &Q3_K::slice(bytes)[0];
            let (d, s) = (float(b.d), scales_k3(&b.scales));
            (0..16).for_each(|g| scale[g] = d * f32::from(s[g]));
            min.fill(0.0);
        }
        Dtype::Q4_K => {
            let b = &Q4_K::slice(bytes)[0];
            groups_k4(b.d, b.dmin, &b.scales, scale, min);
        }
        Dtype::Q5_K => {
            let b = &Q5_K::slice(bytes)[0];
            groups_k4(b.d, b.dmin, &b.scales, scale, min);
        }
        Dtype::Q6_K => {
            let b = &Q6_K::slice(bytes)[0];
            let d = float(b.d);
            (0..16).for_each(|g| scale[g] = d * f32::from(b.scales[g] as i8));
            min.fill(0.0);
        }
        Dtype::IQ4_XS => {
            let b = &IQ4_XS::slice(bytes)[0];
            let (d, s) = (float(b.d), scales_iq4(b));
            (0..16).for_each(|g| scale[g] = d * f32::from(s[g / 2]));
            min.fill(0.0);
        }
        _ => unpack_small::groups(dtype, bytes, scale, min),
    }
}

/// The quants of the one block in `bytes`, in order.
pub(crate) fn quants(dtype: Dtype, bytes: &[u8], q: &mut [i8; QK_K]) {
    match dtype {
        Dtype::Q4_0 => {
            let b = &Q4_0::slice(bytes)[0];
            (0..32).for_each(|i| q[i] = nibble(&b.qs, i) as i8 - 8);
        }
        Dtype::Q4_1 => {
            let b = &Q4_1::slice(bytes)[0];
            (0..32).for_each(|i| q[i] = nibble(&b.qs, i) as i8);
        }
        Dtype::Q5_0 => {
            let b = &Q5_0::slice(bytes)[0];
            (0..32).for_each(|i| q[i] = (nibble(&b.qs, i) | bit(&b.qh, i) << 4) as i8 - 16);
        }
        Dtype::Q5_1 => {
            let b = &Q5_1::slice(bytes)[0];
            (0..32).for_each(|i| q[i] = (nibble(&b.qs, i) | bit(&b.qh, i) << 4) as i8);
        }
        Dtype::Q8_0 => {
            let b = &Q8_0::slice(bytes)[0];
            (0..32).for_each(|i| q[i] = b.qs[i] as i8);
        }
        Dtype::IQ4_NL => {
            let b = &IQ4_NL::slice(bytes)[0];
            (0..32).for_each(|i| q[i] = IQ4_CODES[usize::from(nibble(&b.qs, i))]);
        }
        Dtype::Q2_K => {
            let b = &Q2_K::slice(bytes)[0];
            (0..QK_K).for_each(|i| q[i] = two_bits(&b.qs, i) as i8);
        }
        Dtype::Q3_K => {
            let b = &Q3_K::slice(bytes)[0];
            (0..QK_K).for_each(|i| q[i] = (two_bits(&b.qs, i) | (b.hmask[i % 32] >> (i / 32) & 1) << 2) as i8 - 4);
        }
        Dtype::Q4_K => {
            let b = &Q4_K::slice(bytes)[0];
            (0..QK_K).for_each(|i| q[i] = nibble_k4(&b.qs, i) as i8);
        }
        Dtype::Q5_K => {
            let b = &Q5_K::slice(bytes)[0];
            (0..QK_K).for_each(|i| q[i] = (nibble_k4(&b.qs, i) | (b.qh[i % 32] >> (i / 32) & 1) << 4) as i8);
        }
        Dtype::Q6_K => {
            let b = &Q6_K::slice(bytes)[0];
            for (i, q) in q.iter_mut().enumerate() {
                let low = b.ql[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 15;
                *q = (low | two_bits(&b.qh, i) << 4) as i8 - 32;
            }
        }
        Dtype::IQ4_XS => {
            let b = &IQ4_XS::slice(bytes)[0];
            (0..QK_K).for_each(|i| q[i] = IQ4_CODES[usize::from(b.qs[i / 32 * 16 + i % 16] >> (i % 32 / 16 * 4) & 15)]);
        }
        _ => unpack_small::quants(dtype, bytes, q),
    }
}

pub(super) fn two_bits(qs: &[u8; 64], i: usize) -> u8 {
    qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3
}

fn nibble_k4(qs: &[u8; 128], i: usize) -> u8 {
    qs[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15
}

fn groups_k4(d: Half, dmin: Half, s: &[u8; 12], scale: &mut [f32; 16], min: &mut [f32; 16]) {
    let (d, dmin, (s, m)) = (float(d), float(dmin), scales_k4(s));
    for g in 0..16 {
        scale[g] = d * f32::from(s[g / 2]);
        min[g] = dmin * f32::from(m[g / 2]);
    }
}

/// What makes the quants of a symmetric type unsigned.
pub(crate) const fn offset(dtype: Dtype) -> i8 {
    match dtype {
        Dtype::Q4_0 => 8,
        Dtype::Q5_0 => 16,
        Dtype::Q3_K => 4,
        Dtype::Q6_K => 32,
        Dtype::TQ1_0 | Dtype::TQ2_0 | Dtype::Q1_0 | Dtype::Q2_0 => 1,
        Dtype::IQ1_S | Dtype::IQ1_M => 9,
        Dtype::MXFP4 | Dtype::NVFP4 => 12,
        Dtype::IQ3_S => 15,
        Dtype::IQ3_XXS => 31,
        Dtype::IQ2_XXS | Dtype::IQ2_XS | Dtype::IQ2_S => 43,
        _ => 0,
    }
}

/// See [`crate::Kernels::unpack`].
pub fn unpack(dtype: Dtype, source: &Source<'_>, panel: &mut Panel) {
    let (weights, size) = dtype.block();
    let group = Form::of(dtype).group();
    let offset = offset(dtype);
    let mut block = Expanded::new();
    assert!(source.row_bytes() / size * weights <= PANEL_COLS);
    for r in 0..PANEL_ROWS {
        for (i, bytes) in row(dtype, source, r).chunks_exact(size).enumerate() {
            expand(dtype, bytes, &mut block);
            for (j, q) in block.q[..weights].iter().enumerate() {
                let col = i * weights + j;
                panel.q[col / 4][r * 4 + col % 4] = (q + offset) as u8;
            }
            for g in 0..weights / group {
                let from = g * group / 16;
                let to = i * weights / group + g;
                let scale = block.scale[from];
                panel.scale[to][r] = scale;
                panel.min[to][r] = if offset == 0 { block.min[from] } else { scale * f32::from(offset) };
            }
        }
    }
}

/// Row `r` as it was stored.
fn row<'a>(dtype: Dtype, source: &Source<'a>, r: usize) -> Cow<'a, [u8]> {
    match *source {
        Source::Rows(rows) => Cow::Borrowed(rows[r]),
        Source::Panel(panel) => {
            let mut row = vec![0; source.row_bytes()];
            interleave::row(dtype, panel, r, &mut row);
            Cow::Owned(row)
        }
    }
}

/// See [`crate::Kernels::unpack_float`].
pub fn unpack_float(dtype: Dtype, source: &Source<'_>, panel: &mut FloatPanel) {
    let size = dtype.block().1;
    assert!(source.row_bytes() / size <= FLOAT_COLS);
    for r in 0..PANEL_ROWS {
        for (to, b) in panel.0.iter_mut().zip(row(dtype, source, r).chunks_exact(size)) {
            to[r] = match dtype {
                Dtype::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
                Dtype::F16 => float([b[0], b[1]]),
                Dtype::BF16 => f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16),
                _ => unreachable!("{dtype} has quants"),
            };
        }
    }
}
